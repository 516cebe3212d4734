"use strict";
// Headings become buttons that sort by data-value; undefined values stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") === "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.value;
      const numeric = heading.classList.contains("right");
      const order = (a, b) => (numeric ? a - b : a.localeCompare(b)) * (up ? 1 : -1);
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const defined = rows.filter((row) => key(row) !== undefined).sort((a, b) => order(key(a), key(b)));
      body.append(...defined, ...rows.filter((row) => key(row) === undefined));
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
