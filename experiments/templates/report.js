"use strict";

// A cell's leading number ("0.31±0.02" is 0.31), its text, or null where it is empty or a dash.
function numberIn(text) {
  const cleaned = text.replace("−", "-");
  return /^[+-]?inf/i.test(cleaned) ? (cleaned[0] === "-" ? -Infinity : Infinity) : parseFloat(cleaned);
}

function isMissing(text) {
  return /^(|[-–—]|nan)$/i.test(text);
}

function sortBy(table, column, direction) {
  const rows = Array.from(table.tBodies[0].rows, row => ({ row, text: row.cells[column]?.textContent.trim() ?? "" }));
  const filled = rows.filter(one => !isMissing(one.text));
  const numeric = filled.every(one => !Number.isNaN(numberIn(one.text)));
  filled.sort((a, b) => {
    const first = numberIn(a.text), second = numberIn(b.text);
    const order = numeric ? Number(first > second) - Number(first < second) : a.text.localeCompare(b.text);
    return direction * order;
  });
  const missing = rows.filter(one => isMissing(one.text));
  table.tBodies[0].append(...[...filled, ...missing].map(one => one.row));
}

for (const table of document.querySelectorAll("table")) {
  if (!table.closest(".scroll")) {
    const box = document.createElement("div");
    box.className = "scroll";
    box.tabIndex = 0;
    table.replaceWith(box);
    box.append(table);
  }
  if (!table.tHead || !table.tBodies.length) continue;
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sortBy(table, column, ascending ? 1 : -1);
    });
  });
}

// A link to something inside a closed run opens it.
function reveal() {
  const target = document.getElementById(location.hash.slice(1));
  for (let element = target; element; element = element.parentElement) {
    if (element.tagName === "DETAILS") element.open = true;
  }
  target?.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();
