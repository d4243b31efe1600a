// One image on the screen: where it is seen from, how it is drawn, and what a pointer does to it.
//
// (u, v) are columns and rows of the stored image counted from its edge, so that the centre of pixel (r, c) lies at
// (c + 0.5, r + 0.5). A view is a scale, in device pixels for each stored pixel, and the (u, v) in the pane's middle.

import { Tiles, Window, loadHeat } from "./tiles.js";

const LARGEST = 64;
const STILL_PX = 4; // less than that is a click

export class Pane {
  constructor(element, desk) {
    this.element = element;
    this.desk = desk; // what all panes share: switches, and whom to tell
    this.canvas = element.querySelector("canvas");
    this.context = this.canvas.getContext("2d", { alpha: false });
    this.meta = null;
    this.tiles = null;
    this.heat = null;
    this.view = { scale: 1, u: 0, v: 0 };
    this.mirrored = false;
    this.window = new Window(0, 65535);
    this.pointers = new Map();
    this.drawing = null;
    this.cursor = null;
    this.waiting = false;
    this.draws = 0;
    this.fitted = true;
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    this.listen();
  }

  show(meta, side) {
    this.side = side;
    this.element.dataset.side = side ?? "";
    if (meta === this.meta) return;
    if (this.tiles) this.tiles.drop();
    this.meta = meta;
    this.tiles = null;
    this.heat = null;
    this.drawing = null;
    this.element.classList.toggle("empty", meta === null);
    if (meta !== null && meta.state === "shown") {
      this.tiles = new Tiles(meta.key, meta, () => this.invalidate());
      this.mirrored = meta.mirrored;
      this.window = new Window(meta.window[0], meta.window[1], this.window.inverted);
    }
    this.element.dataset.state = meta === null ? "empty" : meta.state === "shown" ? "loading" : meta.state;
    this.resize();
  }

  /** The heat map, if it is there; it is asked for when it is to be seen for the first time. */
  findHeat() {
    if (this.heat === null && this.meta.heat) {
      const { meta } = this;
      this.heat = { canvas: null };
      loadHeat(meta.key).then((heat) => {
        if (this.meta !== meta || !heat) return;
        this.heat = heat;
        meta.scale = heat;
        this.desk.tellHeat();
        this.invalidate();
      });
    }
    return this.heat?.canvas ?? null;
  }

  get rows() {
    return this.meta.levels[0][0];
  }

  get cols() {
    return this.meta.levels[0][1];
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    // What is written on the canvas grows with the text around it.
    this.unit = (ratio * parseFloat(getComputedStyle(document.documentElement).fontSize)) / 14;
    const [width, height] = [this.canvas.clientWidth * ratio, this.canvas.clientHeight * ratio].map(Math.round);
    if (!width || !height) return;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    if (this.fitted) this.fit();
    this.invalidate();
  }

  /** The scale at which the whole image is seen. */
  get fitScale() {
    return Math.min(this.canvas.width / this.cols, this.canvas.height / this.rows);
  }

  /** Show the whole image, with its chest wall at the seam between the two breasts. */
  fit() {
    if (!this.tiles) return;
    const scale = this.desk.fitScale(this);
    const spare = this.canvas.width / scale - this.cols;
    const inwards = this.side === "R" ? 1 : this.side === "L" ? -1 : 0; // to the right, to the left
    const shift = (spare > 0 ? spare / 2 : 0) * inwards * (this.mirrored ? -1 : 1);
    this.view = { scale, u: this.cols / 2 - shift, v: this.rows / 2 };
    this.fitted = true;
    this.invalidate();
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.tiles) return;
    const [u, v] = this.toImage(x, y);
    const least = this.fitScale / 4;
    this.view.scale = Math.min(LARGEST, Math.max(least, this.view.scale * factor));
    const [u2, v2] = this.toImage(x, y);
    this.move(u - u2, v - v2);
  }

  /** One device pixel for each stored one. */
  actual(x, y) {
    this.zoom(1 / this.view.scale, x, y);
  }

  move(du, dv) {
    if (!this.tiles) return;
    // A part of the image stays in view.
    const [across, down] = [this.canvas.width, this.canvas.height].map((size) => (0.4 * size) / this.view.scale);
    this.view.u = Math.min(this.cols + across, Math.max(-across, this.view.u + du));
    this.view.v = Math.min(this.rows + down, Math.max(-down, this.view.v + dv));
    this.fitted = false;
    this.invalidate();
  }

  /** Bring a place to the middle, near enough to see a region of this many stored pixels. */
  visit(row, col, across) {
    if (!this.tiles) return;
    const room = Math.min(this.canvas.width, this.canvas.height);
    const scale = Math.max(this.fitScale, Math.min(2 * (window.devicePixelRatio || 1), room / (3 * across)));
    this.view = { scale, u: col + 0.5, v: row + 0.5 };
    this.fitted = false;
    this.invalidate();
  }

  setWindow(low, high, inverted = this.window.inverted) {
    const floor = Math.max(-65535, Math.min(low, 65535));
    this.window = new Window(floor, Math.min(131070, high), inverted);
    this.invalidate();
  }

  resetWindow() {
    if (this.tiles) this.setWindow(this.meta.window[0], this.meta.window[1]);
  }

  /** Stored (u, v) at a place of the canvas. */
  toImage(x, y, view = this.view, box = [0, 0, this.canvas.width, this.canvas.height]) {
    const across = (x - box[0] - box[2] / 2) / view.scale;
    return [view.u + (this.mirrored ? -across : across), view.v + (y - box[1] - box[3] / 2) / view.scale];
  }

  toCanvas(u, v, view = this.view, box = [0, 0, this.canvas.width, this.canvas.height]) {
    const across = (u - view.u) * (this.mirrored ? -1 : 1);
    return [box[0] + box[2] / 2 + across * view.scale, box[1] + box[3] / 2 + (v - view.v) * view.scale];
  }

  invalidate() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const { context, canvas } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!this.tiles) return;
    const whole = [0, 0, canvas.width, canvas.height];
    const ready = this.drawImage(this.view, whole);
    this.drawMarks(this.view, whole);
    if (this.desk.magnifier && this.cursor) this.drawMagnifier();
    this.draws += 1;
    this.element.dataset.draws = this.draws;
    if (ready && this.element.dataset.state !== "shown") {
      this.element.dataset.state = "shown";
      this.desk.tellShown(this);
    }
    this.desk.tellView(this);
  }

  /** Draw pixels and heat into a box of the canvas; return whether anything of the image was there to draw. */
  drawImage(view, box) {
    const { context, tiles } = this;
    const best = Math.max(0, Math.min(tiles.coarsest, Math.floor(-Math.log2(view.scale) + 1e-9)));
    context.save();
    context.beginPath();
    context.rect(...box);
    context.clip();
    const plans = this.listTiles(best, view, box);
    const whole = plans.every((tile) => tiles.find(best, tile.row, tile.col, true));
    let any = whole;
    context.imageSmoothingEnabled = view.scale < 3;
    const from = whole ? best : tiles.coarsest;
    for (let level = from; level >= best; level--) {
      const ask = level === best || level === tiles.coarsest;
      for (const tile of level === best ? plans : this.listTiles(level, view, box)) {
        const drawn = tiles.draw(level, tile.row, tile.col, this.window, ask);
        if (!drawn) continue;
        any = true;
        this.place(drawn, tile.box);
      }
    }
    const heat = this.desk.heat > 0 ? this.findHeat() : null;
    if (heat) {
      context.imageSmoothingEnabled = true;
      context.globalAlpha = this.desk.heat;
      const [x0, y0] = this.toCanvas(0, 0, view, box);
      const [x1, y1] = this.toCanvas(this.cols, this.rows, view, box);
      this.place(heat, [x0, y0, x1, y1]);
      context.globalAlpha = 1;
    }
    context.restore();
    return any;
  }

  /** Draw a picture between two corners, the first of which is that of its first row and column. */
  place(picture, [x0, y0, x1, y1]) {
    if (x1 >= x0) {
      this.context.drawImage(picture, x0, y0, x1 - x0, y1 - y0);
    } else {
      this.context.save();
      this.context.translate(x0, 0);
      this.context.scale(-1, 1);
      this.context.drawImage(picture, 0, y0, x0 - x1, y1 - y0);
      this.context.restore();
    }
  }

  /** The tiles of a level that are seen in a box, with whole device pixels as their corners. */
  listTiles(level, view, box) {
    const { rows, cols } = this.tiles.levels[level];
    const step = 2 ** level;
    const size = this.tiles.size * step;
    const corners = [this.toImage(box[0], box[1], view, box), this.toImage(box[0] + box[2], box[1] + box[3], view, box)];
    const [left, right] = [corners[0][0], corners[1][0]].sort((a, b) => a - b);
    const [top, bottom] = [corners[0][1], corners[1][1]];
    const found = [];
    const lastRow = Math.min(Math.ceil(rows / this.tiles.size) - 1, Math.floor(bottom / size));
    const lastCol = Math.min(Math.ceil(cols / this.tiles.size) - 1, Math.floor(right / size));
    for (let row = Math.max(0, Math.floor(top / size)); row <= lastRow; row++) {
      for (let col = Math.max(0, Math.floor(left / size)); col <= lastCol; col++) {
        const end = [Math.min((col + 1) * this.tiles.size, cols) * step, Math.min((row + 1) * this.tiles.size, rows) * step];
        const from = this.toCanvas(col * size, row * size, view, box);
        const to = this.toCanvas(end[0], end[1], view, box);
        found.push({ row, col, box: [...from, ...to].map(Math.round) });
      }
    }
    return found;
  }

  drawMarks(view, box) {
    const { context, desk, unit } = this;
    context.save();
    context.beginPath();
    context.rect(...box);
    context.clip();
    if (desk.outlines) {
      for (const mark of desk.listMarks(this.meta)) this.drawMark(mark, view, box, unit);
    }
    if (this.drawing) this.trace(this.drawing, view, box, false, "#7fd6ff", 2 * unit);
    if (box[0] === 0) this.drawScale(view, unit);
    context.restore();
  }

  drawMark(mark, view, box, unit) {
    const { context } = this;
    const at = mark.points.map(([row, col]) => this.toCanvas(col + 0.5, row + 0.5, view, box));
    const seen = [0, 1].every((axis) => {
      const along = at.map((point) => point[axis]);
      return Math.max(...along) >= box[axis] && Math.min(...along) <= box[axis] + box[axis + 2];
    });
    if (!seen) return;
    const dash = mark.dashed ? [6 * unit, 4 * unit] : [];
    if (mark.kind === "point") {
      const [x, y] = this.toCanvas(mark.points[0][1] + 0.5, mark.points[0][0] + 0.5, view, box);
      for (const [colour, width] of [["#000c", 4 * unit], [mark.colour, 2 * unit]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.beginPath();
        context.arc(x, y, 9 * unit, 0, 2 * Math.PI);
        context.stroke();
      }
      this.label(mark, x + 11 * unit, y, unit);
      return;
    }
    context.setLineDash(dash);
    this.trace(mark.points, view, box, true, "#000a", (mark.active ? 5 : 3.2) * unit);
    const [x, y] = this.trace(mark.points, view, box, true, mark.colour, (mark.active ? 2.4 : 1.4) * unit);
    context.setLineDash([]);
    this.label(mark, x, y, unit);
  }

  /** Draw a line through (row, col) points; return its upper right corner on the canvas. */
  trace(points, view, box, closed, colour, width) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.beginPath();
    let [right, top] = [-Infinity, Infinity];
    points.forEach(([row, col], number) => {
      const [x, y] = this.toCanvas(col + 0.5, row + 0.5, view, box);
      right = Math.max(right, x);
      top = Math.min(top, y);
      if (number) context.lineTo(x, y);
      else context.moveTo(x, y);
    });
    if (closed) context.closePath();
    context.stroke();
    return [right + width, top];
  }

  label(mark, x, y, unit) {
    const { context } = this;
    context.font = `${mark.active ? "bold " : ""}${12 * unit}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const wide = context.measureText(mark.text).width + 8 * unit;
    const left = Math.max(2 * unit, Math.min(x + 2 * unit, this.canvas.width - wide - 2 * unit));
    y = Math.max(10 * unit, Math.min(y, this.canvas.height - 10 * unit));
    context.fillStyle = "#000b";
    context.fillRect(left, y - 9 * unit, wide, 18 * unit);
    context.fillStyle = mark.colour;
    context.fillText(mark.text, left + 4 * unit, y);
  }

  drawScale(view, unit) {
    const spacing = this.meta.spacing_mm;
    if (!spacing) return;
    const { context, canvas } = this;
    const room = canvas.width * 0.3;
    const length = [50, 20, 10, 5, 2, 1, 0.5, 0.2].find((mm) => (mm / spacing[1]) * view.scale <= room) ?? 0.1;
    const wide = (length / spacing[1]) * view.scale;
    const [x, y] = [(canvas.width - wide) / 2, canvas.height - 12 * unit];
    context.fillStyle = "#0009";
    context.fillRect(x - 5 * unit, y - 20 * unit, wide + 10 * unit, 26 * unit);
    context.strokeStyle = "#cfd6dc";
    context.lineWidth = 2 * unit;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + wide, y);
    context.stroke();
    context.font = `${11 * unit}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    context.textAlign = "center";
    context.fillStyle = "#cfd6dc";
    context.fillText(`${length} mm`, x + wide / 2, y - 8 * unit);
    context.textAlign = "left";
  }

  drawMagnifier() {
    const { context, cursor, canvas, unit } = this;
    const size = Math.round(Math.min(320 * unit, 0.6 * Math.min(canvas.width, canvas.height)));
    const [u, v] = this.toImage(cursor.x, cursor.y);
    const box = [Math.round(cursor.x - size / 2), Math.round(cursor.y - size / 2), size, size];
    const view = { scale: Math.max(2 * (window.devicePixelRatio || 1), 3 * this.view.scale), u, v };
    context.fillStyle = "#000";
    context.fillRect(...box);
    this.drawImage(view, box);
    this.drawMarks(view, box);
    context.strokeStyle = "#cfd6dc";
    context.lineWidth = 1.5 * unit;
    context.strokeRect(...box);
  }

  locate(event) {
    const ratio = window.devicePixelRatio || 1;
    const frame = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - frame.left) * ratio, y: (event.clientY - frame.top) * ratio };
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => {
      this.cursor = null;
      if (this.desk.magnifier) this.invalidate();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.desk.enlarge(this));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const { x, y } = this.locate(event);
        const lines = event.deltaMode === 1 ? 33 * event.deltaY : event.deltaY;
        this.zoom(Math.exp(-Math.max(-240, Math.min(240, lines)) * 0.0018), x, y);
      },
      { passive: false },
    );
    this.element.addEventListener("focusin", () => this.desk.activate(this));
  }

  press(event) {
    this.desk.activate(this);
    this.element.focus({ preventScroll: true });
    if (!this.tiles) return;
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.locate(event);
    const windowing = event.button === 2 || event.shiftKey;
    this.pointers.set(event.pointerId, { ...at, from: at, windowing, moved: false });
    if (this.desk.marking && !windowing && this.pointers.size === 1) {
      const [u, v] = this.toImage(at.x, at.y);
      this.drawing = [[v - 0.5, u - 0.5]];
    }
    event.preventDefault();
  }

  drag(event) {
    const at = this.locate(event);
    this.cursor = at;
    this.desk.tellCursor(this, at);
    const held = this.pointers.get(event.pointerId);
    if (!held) {
      if (this.desk.magnifier) this.invalidate();
      return;
    }
    const [dx, dy] = [at.x - held.x, at.y - held.y];
    if (Math.hypot(at.x - held.from.x, at.y - held.from.y) > STILL_PX) held.moved = true;
    if (this.pointers.size === 2) {
      this.pinch(event.pointerId, at);
    } else if (held.windowing) {
      const width = this.window.high - this.window.low;
      const pace = Math.max(1, (this.meta.window[1] - this.meta.window[0]) / 500);
      const wider = Math.max(1, width + dx * pace);
      const level = (this.window.high + this.window.low) / 2 + dy * pace;
      this.setWindow(level - wider / 2, level + wider / 2);
    } else if (this.drawing) {
      const [u, v] = this.toImage(at.x, at.y);
      const last = this.drawing[this.drawing.length - 1];
      if (Math.hypot(v - 0.5 - last[0], u - 0.5 - last[1]) * this.view.scale > 3) this.drawing.push([v - 0.5, u - 0.5]);
      this.invalidate();
    } else {
      this.move(((this.mirrored ? 1 : -1) * dx) / this.view.scale, -dy / this.view.scale);
    }
    held.x = at.x;
    held.y = at.y;
  }

  pinch(moved, at) {
    const [other] = [...this.pointers].filter(([id]) => id !== moved).map(([, held]) => held);
    const held = this.pointers.get(moved);
    const before = Math.hypot(held.x - other.x, held.y - other.y);
    const after = Math.hypot(at.x - other.x, at.y - other.y);
    this.drawing = null;
    if (before > 0) this.zoom(after / before, (at.x + other.x) / 2, (at.y + other.y) / 2);
  }

  release(event) {
    const held = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!held || !this.tiles) return;
    const drawn = this.drawing;
    this.drawing = null;
    if (drawn && this.desk.marking) {
      const inside = drawn.map(([row, col]) => [clamp(row, this.rows - 1), clamp(col, this.cols - 1)]);
      this.desk.takeMark(this, held.moved && inside.length > 2 ? thin(inside) : inside.slice(0, 1));
    } else if (!held.moved && !held.windowing) {
      const [u, v] = this.toImage(held.x, held.y);
      this.desk.click(this, v - 0.5, u - 0.5);
    }
    this.invalidate();
  }
}

const clamp = (value, most) => Math.round(10 * Math.min(most, Math.max(0, value))) / 10;

/** At most 300 of the points, evenly. */
function thin(points) {
  const step = Math.ceil(points.length / 300);
  return points.filter((_, number) => number % step === 0);
}
