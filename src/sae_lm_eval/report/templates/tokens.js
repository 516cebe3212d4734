// Tab comes to a text once; the arrow keys go through it, Escape leaves.
for (const text of document.querySelectorAll(".read")) {
  const tokens = [...text.querySelectorAll(".t")];
  tokens.forEach((token, index) => { token.tabIndex = index ? -1 : 0; });
  text.addEventListener("focusin", (event) => {
    tokens.forEach((token) => { token.tabIndex = token === event.target ? 0 : -1; });
  });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") document.activeElement.blur();
    if (!step) return;
    event.preventDefault();
    tokens[tokens.indexOf(document.activeElement) + step]?.focus();
  });
}
