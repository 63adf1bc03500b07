"use strict";
(() => {
  const root = document.documentElement;

  // Light and dark: as the system says, until the button is used.
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remember = (value) => {
    // A file may have no storage.
    try { localStorage.setItem("report-theme", value); } catch { /* stays until reloaded */ }
  };
  const recall = () => {
    try { return localStorage.getItem("report-theme"); } catch { return null; }
  };
  const show = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    button.textContent = now === "dark" ? "Light colors" : "Dark colors";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    show(now === "dark" ? "light" : "dark");
    remember(root.dataset.theme);
  });
  dark.addEventListener("change", () => show());
  show(recall());

  // Tables are sorted by the button in a column's heading: first the largest numbers, or A to Z.
  const collator = new Intl.Collator(undefined, { numeric: true });
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b);
  for (const heading of document.querySelectorAll("table.sortable th[aria-sort] button")) {
    heading.addEventListener("click", () => {
      const cell = heading.parentElement;
      const body = cell.closest("table").tBodies[0];
      const rows = [...body.rows];
      const numeric = rows.length > 0 && typeof key(rows[0], cell.cellIndex) === "number";
      const before = cell.getAttribute("aria-sort");
      const order = before === "none"
        ? (numeric ? "descending" : "ascending")
        : before === "ascending" ? "descending" : "ascending";
      for (const other of cell.parentElement.querySelectorAll("[aria-sort]")) {
        other.setAttribute("aria-sort", "none");
      }
      cell.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => sign * compare(key(a, cell.cellIndex), key(b, cell.cellIndex)));
      body.append(...rows);
    });
  }

  // A large plot grows and shrinks inside its frame.
  for (const zoom of document.querySelectorAll(".zoom")) {
    const plot = zoom.parentElement.querySelector("svg.plot");
    const { width, height } = plot.getBoundingClientRect();
    const slider = zoom.querySelector("input");
    const resize = () => { plot.style.width = `${width * slider.value / 100}px`; };
    zoom.hidden = false;
    slider.addEventListener("input", resize);
    if (zoom.hasAttribute("data-whole")) {
      // A part without names would say nothing.
      const room = Math.min(zoom.parentElement.clientWidth / width, 0.8 * innerHeight / height);
      slider.value = 5 * Math.floor(20 * room);
      resize();
    }
  }

  // Marks of plots tell what they mean: under the pointer, when tapped, and when focused.
  const tip = document.getElementById("tip");
  const [image, words] = tip.children;
  const collections = JSON.parse(document.getElementById("marks").textContent);
  let told = null;
  const hide = () => {
    tip.hidden = true;
    if (told) told.classList.remove("told");
    told = null;
  };
  const tell = (mark) => {
    if (told === mark) return;
    hide();
    told = mark;
    mark.classList.add("told");
    words.textContent = mark.getAttribute("aria-label");
    const source = sources.get(mark);
    image.hidden = !source;
    if (source) image.src = source;
    tip.hidden = false;
    put();
  };
  const put = () => {
    const place = told.getBoundingClientRect();
    const width = tip.offsetWidth;
    const height = tip.offsetHeight;
    const middle = place.left + place.width / 2 - width / 2;
    const above = place.top - height - 8;
    const left = Math.max(8, Math.min(middle, root.clientWidth - width - 8));
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 8 ? above : Math.min(place.bottom + 8, innerHeight - height - 8)}px`;
  };
  const sources = new Map();
  for (const [id, labels] of Object.entries(collections.labels)) {
    const images = collections.images[id] || [];
    const drawn = [...document.querySelectorAll(`g#${id} use, g#${id} path`)]
      .filter((mark) => !mark.closest("defs"));
    drawn.forEach((mark, number) => {
      mark.classList.add("mark");
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", labels[number]);
      if (images[number]) sources.set(mark, images[number]);
    });
  }
  for (const plot of document.querySelectorAll("svg.plot")) {
    const marks = [...plot.querySelectorAll(".mark")];
    if (!marks.length) continue;
    // Tab stops once at a plot; the arrow keys move between its marks.
    let current = marks[0];
    current.setAttribute("tabindex", "0");
    plot.addEventListener("pointerover", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) tell(mark); else hide();
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("pointerdown", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) tell(mark);
    });
    plot.addEventListener("focusin", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) tell(mark);
    });
    plot.addEventListener("focusout", hide);
    plot.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
      const at = marks.indexOf(current);
      let next;
      if (event.key in steps) next = (at + steps[event.key] + marks.length) % marks.length;
      else if (event.key === "Home") next = 0;
      else if (event.key === "End") next = marks.length - 1;
      else if (event.key === "Escape") return hide();
      else return;
      event.preventDefault();
      current.setAttribute("tabindex", "-1");
      current = marks[next];
      current.setAttribute("tabindex", "0");
      current.focus();
    });
  }
  // A focused mark may have been scrolled to; a pointer is over another mark by then.
  const follow = () => {
    if (told && told === document.activeElement) put(); else hide();
  };
  addEventListener("scroll", follow, { passive: true, capture: true });
})();
