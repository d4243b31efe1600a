// The page: which study is hung where, what the buttons and keys do, and what is sent to the server.

import { fillAbout, fillFindings, fillMissed, fillStudies, findVerdict, listMarks, make, showP } from "./findings.js";
import { KEYS, fillHelp, listenToKeys } from "./keys.js";
import { Pane } from "./pane.js";

const $ = (name) => document.getElementById(name);
const POLL_MS = 5000;
const LIKE_CC = ["CC", "XCCL", "XCCM", "FB", "XCC"];
const SLOTS = { four: ["R CC", "L CC", "R MLO", "L MLO"], CC: ["R CC", "L CC"], MLO: ["R MLO", "L MLO"] };

const state = {
  studies: [],
  version: "",
  study: null, // its key
  images: [], // what is known of those of the study
  active: 0, // of the images
  hang: "four",
  before: "four",
  rank: null, // of the finding that keys speak of
  reader: recall("reader") ?? "",
  opened: 0,
};

const desk = {
  outlines: true,
  heat: 0,
  lastHeat: 0.6,
  magnifier: false,
  marking: false,
  listMarks: (meta) => listMarks(meta, state.reader, meta === image() ? state.rank : null),
  fitScale,
  activate: (pane) => pane.meta && setActive(state.images.indexOf(pane.meta)),
  enlarge: (pane) => {
    if (desk.marking) return;
    if (pane.meta) setActive(state.images.indexOf(pane.meta));
    act.enlarge();
  },
  click: chooseFinding,
  takeMark,
  tellCursor,
  tellHeat: () => image() && fillAbout($("about"), image()),
  tellView,
  tellShown,
};
const panes = [];

function recall(name) {
  try {
    return localStorage.getItem(`unary.${name}`);
  } catch {
    return null;
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(`unary.${name}`, value);
  } catch {
    // a browser that keeps nothing
  }
}

function say(text) {
  $("status").textContent = text;
}

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "x-unary": "1", "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer");
  }
  if (answer.status === 401) location.reload();
  const known = await answer.json();
  if (!answer.ok) throw new Error(known.error ?? `error ${answer.status}`);
  return known;
}

const image = () => state.images[state.active] ?? null;
const paneOf = (meta) => panes.find((pane) => pane.meta === meta && !pane.element.hidden) ?? null;
const pane = () => paneOf(image()) ?? panes.find((one) => one.tiles && !one.element.hidden) ?? null;

// Studies

async function look() {
  try {
    const known = await ask(`api/studies?sort=${$("sort").value}&since=${encodeURIComponent(state.version)}`);
    if (known.same) return;
    const fresh = known.studies.filter((study) => !state.studies.some((one) => one.key === study.key)).length;
    const first = state.version === "";
    state.version = known.version;
    state.studies = known.studies;
    $("logout").hidden = !known.session;
    if (!$("lesion-name").length) for (const name of known.names) $("lesion-name").append(make("option", name));
    const notes = [];
    if (known.total > known.studies.length) notes.push(`${known.studies.length} of ${known.total} studies are listed.`);
    if (known.unreadable) notes.push(`${known.unreadable} folder(s) hold a result.json that is no result of this version's unary detect.`);
    if (!known.total) notes.push("No results yet. They appear here as they come.");
    $("study-note").textContent = notes.join(" ");
    if (!first && fresh) say(`${fresh} new ${fresh === 1 ? "study" : "studies"}`);
    listStudies();
    const current = state.studies.find((one) => one.key === state.study);
    if (current === undefined && state.studies.length && (first || state.study === null)) await open(state.studies[0].key);
    else if (current && keysOf(current) !== keysOf(state)) await open(current.key);
  } catch (error) {
    say(error.message);
  }
}

const keysOf = (study) => study.images.map((one) => `${one.key} ${one.version ?? ""}`).sort().join("\n");

function listStudies() {
  fillStudies($("study-list"), state.studies, state.study, open);
}

async function open(key) {
  const study = state.studies.find((one) => one.key === key);
  if (!study) return;
  state.study = key;
  state.opened = performance.now();
  setMarking(false);
  listStudies();
  say("");
  state.images = study.images.map((one) => ({ ...one, state: "loading", findings: [], judgements: [], out_of_domain: [], notes: [], model: {}, guarantee: "", operating_point: {} }));
  state.active = 0;
  state.rank = null;
  if (study.images.length === 1) state.hang = "one";
  else if (state.hang === "one") state.hang = state.before;
  hang();
  await Promise.all(study.images.map((one, number) => describe(key, one, number)));
  const next = state.studies[state.studies.indexOf(state.studies.find((one) => one.key === key)) + 1];
  if (next && state.study === key) for (const one of next.images.slice(0, 4)) await fetch(`api/images/${one.key}`).catch(() => null);
}

async function describe(key, one, number) {
  try {
    const meta = await ask(`api/images/${one.key}`);
    if (state.study !== key) return;
    state.images[number] = { ...meta, version: one.version };
  } catch (error) {
    if (state.study !== key) return;
    state.images[number] = { ...state.images[number], state: "refused", message: error.message };
  }
  if (number === state.active) state.rank = image().findings[0]?.rank ?? null;
  hang();
}

// Hanging

function slotOf(meta) {
  if (!meta.laterality || !meta.view) return null;
  return `${meta.laterality} ${LIKE_CC.includes(meta.view) ? "CC" : "MLO"}`;
}

/** The images for each place of the hanging; of several for one place the active one, or the first. */
function plan() {
  if (state.hang === "one") return [[null, image()]];
  const slots = SLOTS[state.hang];
  const taken = new Map();
  for (const meta of state.images) {
    const slot = slotOf(meta);
    if (slots.includes(slot) && (!taken.has(slot) || meta === image())) taken.set(slot, meta);
  }
  const rest = state.images.filter((meta) => slotOf(meta) === null);
  return slots.map((slot) => [slot, taken.get(slot) ?? rest.shift() ?? null]);
}

function hang() {
  const planned = plan();
  $("stage").dataset.hang = state.hang === "four" ? "four" : state.hang === "one" ? "one" : "pair";
  panes.forEach((one, number) => {
    one.element.hidden = number >= planned.length;
    if (number >= planned.length) return;
    const [slot, meta] = planned[number];
    one.show(meta, meta?.laterality ?? slot?.[0] ?? null);
    name(one, slot, meta);
  });
  for (const one of panes) if (!one.element.hidden && one.fitted) one.fit();
  for (const [action, which] of [["hang4", "four"], ["hangCC", "CC"], ["hangMLO", "MLO"], ["hang1", "one"]]) press(action, state.hang === which);
  refresh();
}

function name(one, slot, meta) {
  const [corner, , message] = one.element.querySelectorAll(".name, .values, .message");
  const title = meta ? [meta.laterality, meta.view].filter(Boolean).join(" ") || meta.name : slot;
  one.element.setAttribute("aria-label", meta ? `${title}, ${meta.name}, ${showP(meta.image_p_value)}` : `${slot}: no image`);
  corner.replaceChildren();
  if (meta) corner.append(make("b", title), make("span", showP(meta.image_p_value)));
  message.replaceChildren();
  if (!meta) message.append(make("span", `No ${slot}`));
  else if (meta.state === "loading") message.append(make("span", "Loading"));
  else if (meta.state !== "shown") {
    message.append(make("strong", `${meta.message[0].toUpperCase()}${meta.message.slice(1)}.`));
    if (meta.picture) {
      message.append(make("span", "The picture that was made with the result:"));
      message.append(make("img", "", { src: `api/images/${meta.key}/picture`, alt: `Findings in ${meta.name} as they were drawn` }));
    }
  }
}

/** One scale in millimetres for all images that are hung, where their spacing is known. */
function fitScale(one) {
  const shown = panes.filter((each) => each.tiles && !each.element.hidden);
  const spacings = shown.map((each) => each.meta.spacing_mm?.[1] ?? null);
  if (spacings.includes(null) || !one.meta.spacing_mm) return one.fitScale;
  const least = Math.min(...shown.map((each, number) => each.fitScale / spacings[number]));
  return least * one.meta.spacing_mm[1];
}

function setActive(number) {
  if (number < 0 || number >= state.images.length) return;
  if (number !== state.active) {
    state.active = number;
    state.rank = image().findings[0]?.rank ?? null;
    const seen = paneOf(image());
    if (!seen) hang();
  }
  refresh();
}

// The panel

function refresh() {
  const meta = image();
  for (const one of panes) one.element.classList.toggle("active", one.meta !== null && one.meta === meta && state.images.length > 1);
  const strip = $("image-strip");
  const focused = strip.contains(document.activeElement) ? [...strip.children].indexOf(document.activeElement) : -1;
  strip.replaceChildren();
  state.images.forEach((each, number) => {
    const button = make("button", "", { type: "button" });
    button.setAttribute("aria-pressed", String(number === state.active));
    const title = [each.laterality, each.view].filter(Boolean).join(" ") || each.name;
    const done = each.judgements.some((one) => one.target === "image" && one.reader === state.reader);
    button.append(make("span", `${title}${done ? " ✓" : ""}`), make("small", showP(each.image_p_value)));
    button.addEventListener("click", () => setActive(number));
    strip.append(button);
  });
  if (focused >= 0) strip.children[focused]?.focus();
  if (!meta) return;
  fillAbout($("about"), meta);
  fillFindings($("findings"), meta, state, act);
  fillMissed($("missed"), meta, state, act);
  const read = meta.judgements.find((one) => one.target === "image" && one.reader === state.reader);
  press("read", read !== undefined);
  for (const one of panes) one.invalidate();
}

function press(action, on) {
  document.querySelector(`[data-do="${action}"]`)?.setAttribute("aria-pressed", String(on));
}

function tellCursor(one, at) {
  if (!one.tiles) return;
  const [u, v] = one.toImage(at.x, at.y);
  const [row, col] = [Math.floor(v), Math.floor(u)];
  const word = one.tiles.wordAt(row, col);
  const value = word === null ? "" : `, value ${+(one.meta.offset + one.meta.step * word).toPrecision(6)}`;
  $("reading").textContent = row < 0 || col < 0 || row >= one.rows || col >= one.cols ? "" : `row ${row}, col ${col}${value}`;
}

function tellView(one) {
  const { low, high } = one.window;
  const { offset, step } = one.meta;
  const shown = [(low + high) / 2, high - low].map((each, number) => Math.round((number ? 0 : offset) + step * each));
  const mirrored = one.mirrored !== one.meta.mirrored ? "\nmirrored by hand" : one.mirrored ? "\nmirrored" : "";
  one.element.querySelector(".values").textContent = `${Math.round(100 * one.view.scale)} %\nL ${shown[0]}  W ${shown[1]}${one.window.inverted ? "\ninverted" : ""}${mirrored}`;
}

function tellShown() {
  const root = document.documentElement.dataset;
  const now = performance.now();
  root.firstImageMs ??= Math.round(now);
  if (root.shownStudy !== state.study) {
    root.shownStudy = state.study;
    root.studyMs = Math.round(now - state.opened);
  }
}

// Verdicts

function needReader() {
  if (state.reader) return true;
  act.panelOn();
  $("reader").closest(".reader").classList.add("needed");
  $("reader").focus();
  say("Who is reading? Give a name first.");
  return false;
}

async function send(path, body, done) {
  const meta = image();
  try {
    const known = await ask(path, { image: meta.key, reader: state.reader, ...body });
    meta.judgements = known.judgements;
    say(done);
    refresh();
    look();
  } catch (error) {
    say(`Not saved: ${error.message}`);
  }
}

function chooseFinding(one, row, col) {
  const inside = one.meta.findings.filter(({ box }) => row >= box[0] - 8 && row < box[2] + 8 && col >= box[1] - 8 && col < box[3] + 8);
  if (!inside.length || !desk.outlines) return;
  const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  state.rank = inside.sort((a, b) => area(a) - area(b))[0].rank;
  refresh();
}

function takeMark(one, points) {
  setMarking(false);
  if (!needReader()) return;
  const kind = points.length === 1 ? "point" : "contour";
  send("api/judgements", { target: "missed", verdict: "missed", kind, points, name: $("lesion-name").value || "lesion" }, "Marked as missed");
}

function setMarking(on) {
  desk.marking = on;
  document.body.classList.toggle("marking", on);
  press("mark", on);
  if (on) say("Click the place that was missed, or draw around it; Esc leaves");
}

function stepFinding(by) {
  const ranks = image()?.findings.map((one) => one.rank) ?? [];
  if (!ranks.length) return say("No finding in this image");
  const place = ranks.indexOf(state.rank);
  act.visit(ranks[(place + by + ranks.length) % ranks.length]);
}

function stepStudy(by) {
  const place = state.studies.findIndex((one) => one.key === state.study) + by;
  if (state.studies[place]) open(state.studies[place].key);
  else say(by > 0 ? "This is the last study" : "This is the first study");
}

function setHang(which) {
  if (which !== "one") state.before = which;
  state.hang = which;
  for (const one of panes) one.fitted = true;
  const slots = SLOTS[which];
  if (slots && !slots.includes(slotOf(image() ?? {}))) {
    const number = state.images.findIndex((meta) => slots.includes(slotOf(meta)));
    if (number >= 0) state.active = number;
    state.rank = image()?.findings[0]?.rank ?? null;
  }
  hang();
}

function setHeat(share) {
  desk.heat = Math.min(1, Math.max(0, share));
  if (desk.heat > 0) desk.lastHeat = desk.heat;
  $("opacity").value = String(Math.round(100 * desk.heat));
  press("heat", desk.heat > 0);
  if (desk.heat > 0 && image() && !image().heat) say("This result has no heat map: unary detect --maps writes it");
  for (const one of panes) one.invalidate();
}

function shiftWindow(level, width) {
  const one = pane();
  if (!one) return;
  const { low, high } = one.window;
  const [middle, wide] = [(low + high) / 2 + level * (high - low), (high - low) * width];
  one.setWindow(middle - wide / 2, middle + wide / 2);
}

function setReader(text) {
  state.reader = text.trim();
  remember("reader", state.reader);
  if (state.reader) $("reader").closest(".reader").classList.remove("needed");
  refresh();
}

const stride = (one, share) => (share * Math.min(one.canvas.width, one.canvas.height)) / one.view.scale;
const go = (across, down) => {
  const one = pane();
  one?.move(stride(one, across) * (one.mirrored ? -1 : 1), stride(one, down));
};
const toggleClass = (name, action) => press(action, !document.body.classList.toggle(name));

const act = {
  nextStudy: () => stepStudy(1),
  lastStudy: () => stepStudy(-1),
  nextImage: () => setActive((state.active + 1) % state.images.length),
  lastImage: () => setActive((state.active - 1 + state.images.length) % state.images.length),
  hang4: () => setHang("four"),
  hangCC: () => setHang("CC"),
  hangMLO: () => setHang("MLO"),
  hang1: () => act.enlarge(),
  enlarge: () => setHang(state.hang === "one" && state.images.length > 1 ? state.before : "one"),
  fit: () => pane()?.fit(),
  actual: () => pane()?.actual(),
  zoomIn: () => pane()?.zoom(1.25),
  zoomOut: () => pane()?.zoom(0.8),
  moveUp: () => go(0, -0.15),
  moveDown: () => go(0, 0.15),
  moveLeft: () => go(-0.15, 0),
  moveRight: () => go(0.15, 0),
  magnify: () => {
    desk.magnifier = !desk.magnifier;
    press("magnify", desk.magnifier);
    const one = pane();
    if (one && desk.magnifier && !panes.some((each) => each.cursor)) one.cursor = { x: one.canvas.width / 2, y: one.canvas.height / 2 };
    for (const each of panes) each.invalidate();
  },
  invert: () => {
    const inverted = !panes[0].window.inverted;
    for (const one of panes) one.setWindow(one.window.low, one.window.high, inverted);
    press("invert", inverted);
  },
  resetWindow: () => pane()?.resetWindow(),
  brighter: () => shiftWindow(-0.05, 1),
  darker: () => shiftWindow(0.05, 1),
  harder: () => shiftWindow(0, 0.9),
  softer: () => shiftWindow(0, 1 / 0.9),
  spreadWindow: () => {
    const one = pane();
    if (one) for (const each of panes) if (each.tiles) each.setWindow(one.window.low, one.window.high);
  },
  mirror: () => {
    const one = pane();
    if (!one) return;
    one.mirrored = !one.mirrored;
    one.fitted ? one.fit() : one.invalidate();
  },
  outlines: () => {
    desk.outlines = !desk.outlines;
    press("outlines", desk.outlines);
    for (const one of panes) one.invalidate();
  },
  heat: () => setHeat(desk.heat > 0 ? 0 : desk.lastHeat),
  fainter: () => setHeat(desk.heat - 0.1),
  stronger: () => setHeat(desk.heat + 0.1),
  visit: (rank) => {
    state.rank = rank;
    const finding = image().findings.find((one) => one.rank === rank);
    const [r0, c0, r1, c1] = finding.box;
    pane()?.visit((r0 + r1 - 1) / 2, (c0 + c1 - 1) / 2, Math.max(r1 - r0, c1 - c0));
    refresh();
  },
  nextFinding: () => stepFinding(1),
  lastFinding: () => stepFinding(-1),
  judge: (rank, verdict) => {
    state.rank = rank;
    if (image() && needReader()) send("api/judgements", { target: "finding", rank, verdict, name: $("lesion-name").value || "lesion" }, `Finding ${rank}: ${verdict}`);
  },
  agree: () => state.rank !== null && act.judge(state.rank, "agree"),
  disagree: () => state.rank !== null && act.judge(state.rank, "disagree"),
  unsure: () => state.rank !== null && act.judge(state.rank, "unsure"),
  takeBack: (id) => {
    const own = id ?? findVerdict(image(), state.rank, state.reader)?.id;
    if (own !== undefined) send(`api/judgements/${own}/withdrawal`, {}, "Taken back");
  },
  mark: () => setMarking(!desk.marking),
  markMiddle: () => {
    const one = pane();
    if (one) takeMark(one, [[one.view.v - 0.5, one.view.u - 0.5].map((each, axis) => Math.min(Math.max(0, each), (axis ? one.cols : one.rows) - 1))]);
  },
  read: () => {
    const meta = image();
    if (!meta || !needReader()) return;
    const own = meta.judgements.find((one) => one.target === "image" && one.reader === state.reader);
    if (own) act.takeBack(own.id);
    else send("api/judgements", { target: "image", verdict: "read" }, "Image read");
  },
  reader: () => {
    act.panelOn();
    $("reader").focus();
    $("reader").select();
  },
  panelOn: () => {
    if (document.body.classList.contains("no-panel")) act.panel();
  },
  lists: () => toggleClass("no-lists", "lists"),
  panel: () => toggleClass("no-panel", "panel"),
  theme: () => {
    const root = document.documentElement.dataset;
    root.theme = root.theme === "dark" ? "light" : "dark";
    remember("theme", root.theme);
  },
  help: () => $("help").showModal(),
  logout: async () => {
    await fetch("logout", { method: "POST", headers: { "x-unary": "1" } });
    location.reload();
  },
  escape: () => {
    setMarking(false);
    say("");
    if (document.activeElement === $("reader")) $("reader").blur();
  },
};

function begin() {
  document.documentElement.dataset.theme = recall("theme") ?? "dark";
  for (let number = 0; number < 4; number++) {
    const element = $("pane-template").content.firstElementChild.cloneNode(true);
    $("stage").append(element);
    panes.push(new Pane(element, desk));
  }
  for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => act[button.dataset.do]());
  $("opacity").addEventListener("input", (event) => setHeat(event.target.value / 100));
  $("reader").value = state.reader;
  $("reader").addEventListener("change", (event) => setReader(event.target.value));
  $("reader").addEventListener("keydown", (event) => event.key === "Enter" && event.target.blur());
  $("sort").addEventListener("change", () => {
    state.version = "";
    look();
  });
  if (window.innerWidth <= 1100 && window.innerWidth > 720) act.lists();
  fillHelp($("help-keys"));
  listenToKeys(act);
  look();
  setInterval(look, POLL_MS);
}

console.assert(KEYS.every(([, , , action]) => action in act), "a key without an action");
begin();
