"use strict";
// What a page does beyond showing: tables sort and filter, pictures enlarge. Without it everything is there to be read.
(() => {
  const make = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  };

  // ---- tables ----
  const value = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.value;
    return number === undefined ? cell.textContent.trim() : Number(number);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1; // what is unknown comes last
    if (typeof b === "number") return 1;
    return a.localeCompare(b, undefined, { numeric: true });
  };
  const sort = (table, column, falling) => {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => [value(row, column), row]);
    const known = rows.filter(([key]) => key !== "\u2013"), unknown = rows.filter(([key]) => key === "\u2013");
    known.sort(([a], [b]) => (falling ? compare(b, a) : compare(a, b)));
    body.append(...known.concat(unknown).map(([, row]) => row));
    table.querySelectorAll("thead th").forEach((head, place) => {
      if (place === column) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };
  const prepare = (table) => {
    const heads = table.querySelectorAll("thead th");
    heads.forEach((head, column) => {
      const button = make("button", "sort", head.textContent);
      button.type = "button";
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(table, column, now ? now === "ascending" : head.classList.contains("number"));
      });
      head.replaceChildren(button);
    });
    const finder = table.closest(".wide").previousElementSibling;
    const field = finder.querySelector("input"), count = finder.querySelector("output");
    const rows = Array.from(table.tBodies[0].rows), texts = rows.map((row) => row.textContent.toLowerCase());
    const chips = Array.from(finder.querySelectorAll("button"));
    const filter = () => {
      const sought = field.value.toLowerCase();
      const chosen = chips.some((chip) => chip.dataset.words === field.value); // its words belong together
      const words = chosen ? [sought] : sought.split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, place) => {
        row.hidden = !words.every((word) => texts[place].includes(word));
        if (!row.hidden) shown += 1;
      });
      count.textContent = words.length ? `${shown} of ${rows.length} shown` : "";
      chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.dataset.words === field.value)));
    };
    let waiting = 0;
    field.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
    chips.forEach((chip) => chip.addEventListener("click", () => {
      field.value = chip.dataset.words === field.value ? "" : chip.dataset.words;
      filter();
    }));
    finder.hidden = false;
    if (field.value) filter(); // what the browser kept over a reload
  };
  document.querySelectorAll("table.sortable").forEach(prepare);

  // ---- enlarging ----
  const plates = Array.from(document.querySelectorAll(".plate"));
  if (!plates.length) return;
  const dialog = make("dialog", "zoom");
  dialog.setAttribute("aria-label", "Enlarged picture");
  const room = make("div", "room"), bar = make("div", "tools");
  dialog.append(room, bar);
  document.body.append(dialog);
  let at = 0, stage = null, view = null; // view: width in CSS pixels, left, top
  const touches = new Map();

  const lay = () => {
    stage.style.width = `${view.width}px`;
    stage.style.left = `${view.left}px`;
    stage.style.top = `${view.top}px`;
  };
  const fit = () => {
    const rows = Number(plates[at].dataset.rows), cols = Number(plates[at].dataset.cols);
    const width = Math.min(room.clientWidth, (room.clientHeight * cols) / rows);
    view = { width, left: (room.clientWidth - width) / 2, top: (room.clientHeight - (width * rows) / cols) / 2 };
    lay();
  };
  const zoom = (by, x = room.clientWidth / 2, y = room.clientHeight / 2) => {
    const width = Math.min(Math.max(view.width * by, 60), 16 * Number(plates[at].dataset.cols));
    const ratio = width / view.width;
    view = { width, left: x - (x - view.left) * ratio, top: y - (y - view.top) * ratio };
    lay();
  };
  const open = (place) => {
    at = (place + plates.length) % plates.length;
    stage = plates[at].querySelector(".stage").cloneNode(true);
    stage.querySelectorAll("img").forEach((img) => { img.loading = "eager"; });
    room.replaceChildren(stage, stage.querySelector(".name")); // which stays in sight
    room.classList.toggle("whole", plates[at].classList.contains("whole"));
    if (!dialog.open) dialog.showModal();
    fit();
  };
  const add = (text, title, act) => {
    const button = make("button", "", text);
    button.type = "button";
    button.title = title;
    button.addEventListener("click", act);
    bar.append(button);
    return button;
  };
  add("\u2039", "the picture before (left arrow)", () => open(at - 1));
  add("\u203a", "the next picture (right arrow)", () => open(at + 1));
  add("\u2212", "smaller (-)", () => zoom(1 / 1.5));
  add("+", "larger (+)", () => zoom(1.5));
  add("fit", "all of it (0)", () => fit());
  const switches = Array.from(document.querySelectorAll(".toggles input"), (box) => {
    const button = add(box.parentElement.textContent.trim(), "show or hide", () => { box.checked = !box.checked; say(); });
    return [box, button];
  });
  const say = () => switches.forEach(([box, button]) => button.setAttribute("aria-pressed", String(box.checked)));
  say();
  document.querySelectorAll(".toggles input").forEach((box) => box.addEventListener("change", say));
  add("\u00d7", "close (Esc)", () => dialog.close());
  dialog.addEventListener("close", () => { room.replaceChildren(); plates[at].focus(); });
  dialog.addEventListener("keydown", (event) => {
    const keys = { "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), "0": fit, ArrowLeft: () => open(at - 1), ArrowRight: () => open(at + 1) };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  room.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = room.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  room.addEventListener("dblclick", (event) => {
    const box = room.getBoundingClientRect();
    zoom(2, event.clientX - box.left, event.clientY - box.top);
  });
  room.addEventListener("pointerdown", (event) => {
    room.setPointerCapture(event.pointerId);
    touches.set(event.pointerId, [event.clientX, event.clientY]);
  });
  const spread = () => {
    const [[x0, y0], [x1, y1]] = touches.values();
    return [Math.hypot(x1 - x0, y1 - y0), (x0 + x1) / 2, (y0 + y1) / 2];
  };
  room.addEventListener("pointermove", (event) => {
    const before = touches.get(event.pointerId);
    if (!before) return;
    const wide = touches.size === 2 ? spread() : null;
    touches.set(event.pointerId, [event.clientX, event.clientY]);
    const box = room.getBoundingClientRect();
    if (wide) {
      const [now, x, y] = spread();
      zoom(now / Math.max(wide[0], 1), x - box.left, y - box.top);
    } else if (touches.size === 1) {
      view.left += event.clientX - before[0];
      view.top += event.clientY - before[1];
      lay();
    }
  });
  for (const end of ["pointerup", "pointercancel"]) room.addEventListener(end, (event) => touches.delete(event.pointerId));
  window.addEventListener("resize", () => { if (dialog.open) fit(); });
  plates.forEach((plate, place) => {
    plate.addEventListener("click", () => open(place));
    plate.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open(place);
    });
  });
})();
