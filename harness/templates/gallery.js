{
  const byId = (id) => document.getElementById(id);
  const entries = [...document.querySelectorAll("article")];
  const kinds = [...document.querySelectorAll("[data-kind]")];
  const texts = entries.map((entry) => entry.textContent.toLowerCase());

  function show() {
    const words = byId("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = kinds.find((button) => button.ariaPressed === "true").dataset.kind;
    entries.forEach((entry, i) => {
      const fits = !kind || entry.dataset.kinds.split("|").includes(kind);
      entry.hidden = !fits || !words.every((word) => texts[i].includes(word));
    });
    byId("count").textContent = `${entries.filter((entry) => !entry.hidden).length} of ${entries.length} queries`;
  }

  for (const button of kinds) {
    button.addEventListener("click", () => { for (const other of kinds) other.ariaPressed = String(other === button); show(); });
  }
  byId("words").addEventListener("input", show);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("tools").hidden = false;
  show();
}
