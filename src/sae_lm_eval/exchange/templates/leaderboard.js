// Rows are shown that fit all filters, and the categories in which any of them has a number; a link to a row's provenance opens it.
const form = document.querySelector("form.filters");
const lines = [...document.querySelectorAll("table.sortable tbody tr")];
const filter = () => {
  const wanted = Object.fromEntries(new FormData(form));
  const words = wanted.text.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const line of lines) {
    const chosen = ["model", "mode", "asked"].every((name) => !wanted[name] || line.dataset[name] === wanted[name]);
    line.hidden = !(chosen && words.every((word) => line.dataset.text.includes(word)));
    count += !line.hidden;
  }
  const shown = new Set();
  for (const part of document.querySelectorAll("tbody tr:not([hidden]) [data-category][data-value]")) {
    shown.add(part.dataset.category);
  }
  for (const part of document.querySelectorAll("[data-category]")) {
    const { category } = part.dataset;
    part.hidden = !shown.has(category) || (wanted.category !== "" && category !== wanted.category);
  }
  form.querySelector("output").textContent = `${count} of ${lines.length} rows`;
};
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
filter();
const openRow = () => {
  const part = location.hash.startsWith("#row-") && document.getElementById(location.hash.slice(1));
  if (part) {
    part.open = true;
    part.scrollIntoView();
  }
};
addEventListener("hashchange", openRow);
for (const link of document.querySelectorAll('a[href^="#row-"]')) link.addEventListener("click", () => setTimeout(openRow));
openRow();
