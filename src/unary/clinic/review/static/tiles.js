// Tiles of 16-bit pixels: fetched once, kept in bounded memory, and made grey by a table of all 65,536 values.

const MOST_BYTES = 48 * 2 ** 20; // of an image's pixels as they came
const MOST_DRAWN = 60; // canvases of at most 512 x 512

/** A grey for each of the 65,536 words: black up to `low`, white from `high` on. */
export class Window {
  constructor(low, high, inverted = false) {
    this.low = low;
    this.high = Math.max(high, low + 1);
    this.inverted = inverted;
    this.table = null;
  }

  greys() {
    if (this.table === null) {
      const table = new Uint32Array(65536);
      const slope = 255 / (this.high - this.low);
      for (let word = 0; word < 65536; word++) {
        let grey = Math.round((word - this.low) * slope);
        grey = grey < 0 ? 0 : grey > 255 ? 255 : grey;
        if (this.inverted) grey = 255 - grey;
        table[word] = (255 << 24) | (grey << 16) | (grey << 8) | grey;
      }
      this.table = table;
    }
    return this.table;
  }
}

const scratch = new ImageData(512, 512);
const scratchWords = new Uint32Array(scratch.data.buffer);

/** The tiles of one image. `changed` is called whenever one has come. */
export class Tiles {
  constructor(key, meta, changed) {
    this.key = key;
    this.levels = meta.levels.map(([rows, cols]) => ({ rows, cols }));
    this.size = meta.tile;
    this.changed = changed;
    this.words = new Map(); // in the order of their last use
    this.drawn = new Map();
    this.asked = new Set();
    this.failed = false;
  }

  get coarsest() {
    return this.levels.length - 1;
  }

  /** The words of a tile, or null and a request for it if `ask`. */
  find(level, row, col, ask) {
    const name = `${level}/${row}/${col}`;
    const found = this.words.get(name);
    if (found) return found;
    if (ask && !this.asked.has(name)) this.load(name, level, row, col);
    return null;
  }

  async load(name, level, row, col) {
    this.asked.add(name);
    try {
      const answer = await fetch(`api/images/${this.key}/tiles/${name}`);
      if (!answer.ok) throw new Error(String(answer.status));
      const words = new Uint16Array(await answer.arrayBuffer());
      const { rows, cols } = this.levels[level];
      const tile = {
        words,
        rows: Math.min(this.size, rows - row * this.size),
        cols: Math.min(this.size, cols - col * this.size),
      };
      if (tile.rows * tile.cols !== words.length) throw new Error("size");
      this.words.set(name, tile);
      this.trim();
      this.asked.delete(name);
      this.changed();
    } catch {
      this.failed = true;
      setTimeout(() => this.asked.delete(name), 3000); // then it may be asked for again
      this.changed();
    }
  }

  trim() {
    let size = 0;
    for (const tile of this.words.values()) size += tile.words.byteLength;
    for (const [name, tile] of this.words) {
      if (size <= MOST_BYTES) break;
      this.words.delete(name);
      this.drawn.delete(name);
      size -= tile.words.byteLength;
    }
  }

  /** A canvas of a tile with this window, or null if the tile is not there yet. */
  draw(level, row, col, window, ask) {
    const tile = this.find(level, row, col, ask);
    if (tile === null) return null;
    const name = `${level}/${row}/${col}`;
    let drawn = this.drawn.get(name);
    if (drawn && drawn.window === window) return drawn.canvas;
    if (!drawn) {
      const canvas = document.createElement("canvas");
      canvas.width = tile.cols;
      canvas.height = tile.rows;
      drawn = { canvas, context: canvas.getContext("2d", { alpha: false }), window: null };
      this.drawn.set(name, drawn);
      if (this.drawn.size > MOST_DRAWN) this.drawn.delete(this.drawn.keys().next().value);
    }
    paint(drawn.context, tile, window);
    drawn.window = window;
    return drawn.canvas;
  }

  /** The stored value at a pixel of full size, as a word, or null. */
  wordAt(row, col) {
    const { rows, cols } = this.levels[0];
    if (row < 0 || col < 0 || row >= rows || col >= cols) return null;
    const tile = this.words.get(`0/${Math.floor(row / this.size)}/${Math.floor(col / this.size)}`);
    return tile ? tile.words[(row % this.size) * tile.cols + (col % this.size)] : null;
  }

  drop() {
    this.words.clear();
    this.drawn.clear();
  }
}

function paint(context, tile, window) {
  const greys = window.greys();
  const { words, rows, cols } = tile;
  if (cols === 512) {
    for (let place = 0; place < words.length; place++) scratchWords[place] = greys[words[place]];
  } else {
    for (let row = 0, place = 0; row < rows; row++) {
      for (let out = row * 512, end = out + cols; out < end; out++, place++) scratchWords[out] = greys[words[place]];
    }
  }
  context.putImageData(scratch, 0, 0, 0, 0, cols, rows);
}

const STOPS = [
  [255, 214, 90],
  [255, 140, 40],
  [226, 40, 60],
];

/** A heat map as a canvas whose opacity rises with the score, for a slider to scale, and the scores of its scale. */
export async function loadHeat(key) {
  const answer = await fetch(`api/images/${key}/heat`);
  if (!answer.ok) return null;
  const scale = JSON.parse(answer.headers.get("x-unary-scale"));
  const [rows, cols] = scale.shape;
  const shades = new Uint8Array(await answer.arrayBuffer());
  if (shades.length !== rows * cols) return null;
  const canvas = document.createElement("canvas");
  canvas.width = cols;
  canvas.height = rows;
  const picture = new ImageData(cols, rows);
  for (let place = 0; place < shades.length; place++) {
    if (shades[place] === 0) continue;
    const [red, green, blue] = heatColour(shades[place] / 255);
    picture.data.set([red, green, blue, 70 + Math.round(185 * (shades[place] / 255))], 4 * place);
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return { canvas, ...scale };
}

function heatColour(share) {
  const at = share * (STOPS.length - 1);
  const first = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[first].map((from, part) => Math.round(from + (STOPS[first + 1][part] - from) * (at - first)));
}
