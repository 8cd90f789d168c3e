{
  const byId = (id) => document.getElementById(id);
  const details = JSON.parse(byId("details").textContent);
  const sizes = JSON.parse(byId("sizes").textContent);
  const tables = [...document.querySelectorAll("table.board")].map(read);
  const tip = byId("tip");

  function read(table) {
    const [groups, titles] = table.tHead.rows;
    const rows = [...table.querySelectorAll("tbody tr:not(.group)")];
    rows.forEach((row, i) => { row.at = i; row.text = fold(`${row.cells[0].dataset.v} ${row.dataset.size} ${row.dataset.block}`); });
    const fixed = titles.querySelectorAll("th:not([data-group])").length;
    return { table, groups: [...groups.querySelectorAll("th")], titles: [...titles.cells], rows, fixed, sort: null };
  }

  function fold(text) { return text.toLowerCase(); }

  function value(row, column) {
    const text = row.cells[column].dataset.v;
    return column ? (text === "" ? null : Number(text)) : fold(text);
  }

  function compare(a, b, { column, down }) {
    const x = value(a, column), y = value(b, column);
    if (x === null || y === null) return (x === null) - (y === null) || a.at - b.at;
    const order = x < y ? -1 : x > y ? 1 : 0;
    return (down ? -order : order) || a.at - b.at;
  }

  function arrange(board) {
    const key = byId("group").value;
    const rows = board.sort ? board.rows.toSorted((a, b) => compare(a, b, board.sort)) : board.rows;
    const names = [...new Set(board.rows.map((row) => (key ? row.dataset[key] : "")))];
    if (key === "sizes") names.sort((a, b) => sizes.indexOf(a) - sizes.indexOf(b));
    const bodies = names.map((name) => {
      const body = document.createElement("tbody");
      const title = body.insertRow(), cell = document.createElement("th"), text = document.createElement("span");
      title.className = "group";
      title.hidden = !key || names.length < 2;
      cell.scope = "rowgroup";
      cell.colSpan = board.titles.length;
      text.textContent = name;
      cell.append(text);
      title.append(cell);
      body.append(...rows.filter((row) => !key || row.dataset[key] === name));
      return body;
    });
    for (const body of [...board.table.tBodies]) body.remove();
    board.table.append(...bodies);
    filter(board);
  }

  function filter(board) {
    const words = fold(byId("rows").value).split(/\s+/).filter(Boolean);
    const reported = document.querySelector('[data-show="reported"]')?.checked ?? true;
    for (const row of board.rows) {
      row.hidden = !words.every((word) => row.text.includes(word)) || (!reported && row.classList.contains("reported"));
    }
    for (const body of board.table.tBodies) body.classList.toggle("empty", [...body.rows].slice(1).every((row) => row.hidden));
  }

  function filterColumns(board) {
    const words = fold(byId("columns").value).split(/\s+/).filter(Boolean);
    const shown = board.titles.map((title, i) => {
      const text = fold(`${title.dataset.group} ${title.textContent}`);
      return i < board.fixed || words.every((word) => text.includes(word));
    });
    board.shown = shown.slice(board.fixed).filter(Boolean).length;
    for (const row of [board.titles, ...board.rows.map((row) => row.cells)]) {
      for (let i = board.fixed; i < row.length; i++) row[i].hidden = !shown[i];
    }
    let at = board.fixed;
    for (const group of board.groups) {
      group.whole ??= group.colSpan;
      const left = shown.slice(at, at + group.whole).filter(Boolean).length;
      group.hidden = !left;
      group.colSpan = Math.max(left, 1);
      at += group.whole;
    }
  }

  function say() {
    const count = (list) => [list.filter((row) => !row.hidden).length, list.length];
    const [some, all] = count(tables.flatMap((board) => board.rows));
    const columns = tables.reduce((sum, board) => sum + board.titles.length - board.fixed, 0);
    const left = tables.reduce((sum, board) => sum + board.shown, 0);
    byId("count").textContent = `${some} of ${all} rows, ${left} of ${columns} columns`;
  }

  function sortBy(board, column) {
    const first = column > 0, last = board.sort;
    const again = last?.column === column;
    board.sort = !again ? { column, down: first } : last.down === first ? { column, down: !first } : null;
    board.titles.forEach((title, i) => {
      if (board.sort?.column === i) title.ariaSort = board.sort.down ? "descending" : "ascending";
      else title.removeAttribute("aria-sort");
    });
    arrange(board);
    say();
  }

  function explain(cell) {
    const lines = (cell.dataset.l ?? "").split(" ").filter(Boolean);
    tip.hidden = !lines.length;
    tip.replaceChildren(...lines.map((line) => {
      const p = document.createElement("p");
      p.textContent = details[line];
      return p;
    }));
    if (tip.hidden) return;
    const box = cell.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const below = box.bottom + 6 + own.height < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${Math.max(8, below ? box.bottom + 6 : box.top - own.height - 6)}px`;
  }

  function leave() { tip.hidden = true; document.querySelector("[aria-describedby=tip]")?.removeAttribute("aria-describedby"); }

  function enter(cell) {
    document.querySelector("table.board [tabindex='0']")?.setAttribute("tabindex", "-1");
    cell.tabIndex = 0;
    cell.focus();
  }

  function next(cell, key) {
    const row = cell.parentElement;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const along = key === "ArrowLeft" ? "previousElementSibling" : "nextElementSibling";
      let at = cell[along];
      while (at?.hidden) at = at[along];
      return at;
    }
    const rows = [...row.closest("table").querySelectorAll("tbody tr:not(.group)")].filter((r) => !r.hidden);
    return rows[rows.indexOf(row) + (key === "ArrowUp" ? -1 : 1)]?.cells[cell.cellIndex];
  }

  const cellOf = (target) => (target instanceof Element ? target.closest("tbody [data-l]") : null);
  for (const board of tables) {
    board.titles.forEach((title, i) => title.querySelector("button").addEventListener("click", () => sortBy(board, i)));
    board.table.addEventListener("pointerover", (event) => { const cell = cellOf(event.target); if (cell) explain(cell); else leave(); });
    board.table.addEventListener("pointerleave", leave);
    board.table.addEventListener("focusin", (event) => { const cell = cellOf(event.target); if (cell) { explain(cell); cell.setAttribute("aria-describedby", "tip"); } });
    board.table.addEventListener("focusout", leave);
    board.table.addEventListener("keydown", (event) => {
      const cell = event.target;
      if (!event.key.startsWith("Arrow") || !(cell.matches("tbody td, tbody th"))) return;
      const to = next(cell, event.key);
      if (!to) return;
      event.preventDefault();
      enter(to);
    });
    board.table.addEventListener("click", (event) => { const cell = cellOf(event.target); if (cell && event.target.tagName !== "A") enter(cell); });
    const first = board.rows[0]?.cells[0];
    if (first) first.tabIndex = 0;
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });
  addEventListener("scroll", () => { const cell = cellOf(document.activeElement); if (cell && !tip.hidden) explain(cell); else leave(); }, true);
  const all = (work) => () => { tables.forEach(work); say(); };
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("rows").addEventListener("input", all(filter));
  byId("columns").addEventListener("input", all(filterColumns));
  byId("group").addEventListener("change", all(arrange));
  for (const box of document.querySelectorAll("[data-show]")) {
    const show = () => document.body.classList.toggle(`no-${box.dataset.show}`, !box.checked);
    box.addEventListener("change", () => { show(); all(filter)(); });
    show();
  }
  byId("tools").hidden = false;
  tables.forEach(filterColumns);
  all(arrange)();
}
