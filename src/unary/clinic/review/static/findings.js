// The panel: what is known of an image, its findings, and what readers say of them.

const MARKS = { agree: "✓", disagree: "✗", unsure: "?" };
const COLOURS = { agree: "#7ddc9a", disagree: "#9aa4ad", unsure: "#e3c8ff", none: "#ffc05c", missed: "#7fd6ff" };

export function make(tag, text = "", known = {}) {
  const element = document.createElement(tag);
  if (text !== "") element.textContent = text;
  for (const [name, value] of Object.entries(known)) {
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  return element;
}

export function showP(value) {
  if (value === null || value === undefined) return "p unknown";
  return value < 0.001 ? "p < 0.001" : `p ${value.toPrecision(2).replace(/\.?0+$/, "") || "0"}`;
}

export function showScore(value) {
  return value === null || value === undefined ? "no score" : value.toPrecision(3);
}

export function showSize(finding) {
  if (finding.diameter_mm === null) return "size unknown: no pixel spacing";
  return `${finding.diameter_mm.toFixed(1)} mm across, ${finding.area_mm2.toFixed(1)} mm²`;
}

/** The reader's own verdict on a finding, or null. */
export function findVerdict(meta, rank, reader) {
  return meta.judgements.find((one) => one.target === "finding" && one.rank === rank && one.reader === reader) ?? null;
}

/** What is drawn over an image: outlines of findings, and places that were missed. */
export function listMarks(meta, reader, activeRank) {
  const marks = meta.findings.map((finding) => {
    const verdict = findVerdict(meta, finding.rank, reader)?.verdict;
    return {
      kind: "contour",
      points: finding.outline,
      colour: COLOURS[verdict ?? "none"],
      dashed: finding.kind === "vascular pattern",
      active: finding.rank === activeRank,
      text: `${finding.rank}${verdict ? ` ${MARKS[verdict]}` : ""}`,
      rank: finding.rank,
    };
  });
  for (const one of meta.judgements.filter((each) => each.target === "missed")) {
    marks.push({ kind: one.kind, points: one.points, colour: COLOURS.missed, dashed: false, active: false, text: `+ ${one.name}` });
  }
  return marks;
}

export function fillAbout(element, meta) {
  const unfolded = element.dataset.key === meta.key && element.querySelector("details")?.open;
  element.dataset.key = meta.key;
  element.replaceChildren();
  element.append(make("div", meta.name), make("div", `${showP(meta.image_p_value)}, score ${showScore(meta.image_score)}`));
  for (const line of meta.out_of_domain) element.append(make("div", `Outside what the model knows: ${line}`, { className: "warn" }));
  if (!meta.operating_point) element.append(make("div", "Not calibrated: scores alone, nothing is guaranteed.", { className: "warn" }));
  const more = make("details", "", { open: unfolded });
  more.append(make("summary", "Model and guarantee"));
  more.append(make("p", meta.guarantee));
  more.append(make("p", `Model ${meta.model.detector} ${meta.model.sha256}, unary ${meta.model.version}; made ${meta.moment}; file ${meta.file}`));
  for (const note of meta.notes) more.append(make("p", note));
  if (meta.scale) more.append(make("p", `Heat map: faint from score ${showScore(meta.scale.low)} on, strongest at ${showScore(meta.scale.high)}.`));
  if (!meta.heat) more.append(make("p", "There is no heat map: unary detect --maps writes it."));
  element.append(more);
}

export function fillFindings(list, meta, state, act) {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  list.replaceChildren();
  if (!meta.findings.length) list.append(make("li", meta.image_score === null ? "Nothing could be scored." : "None above the operating point."));
  for (const finding of meta.findings) {
    const own = findVerdict(meta, finding.rank, state.reader);
    const item = make("li", "", { className: finding.rank === state.rank ? "active" : "" });
    const go = make("button", "", { type: "button", className: "go" });
    go.dataset.name = `go${finding.rank}`;
    if (finding.rank === state.rank) go.setAttribute("aria-current", "true");
    go.append(make("b", String(finding.rank)), make("span", showP(finding.p_value)), make("span", `score ${showScore(finding.score)}`));
    const kind = finding.kind === "vascular pattern" ? "vascular pattern, " : "";
    go.append(make("span", `${kind}${showSize(finding)}`, { className: "size" }));
    go.addEventListener("click", () => act.visit(finding.rank));
    const row = make("div", "", { className: "verdicts", role: "group" });
    row.setAttribute("aria-label", `Verdict on finding ${finding.rank}`);
    for (const verdict of ["agree", "disagree", "unsure"]) {
      const button = make("button", `${MARKS[verdict]} ${verdict[0].toUpperCase()}${verdict.slice(1)}`, { type: "button" });
      button.dataset.verdict = verdict;
      button.dataset.name = `${verdict}${finding.rank}`;
      button.setAttribute("aria-pressed", String(own?.verdict === verdict));
      button.addEventListener("click", () => act.judge(finding.rank, verdict));
      row.append(button);
    }
    item.append(go, row);
    const others = meta.judgements.filter((one) => one.target === "finding" && one.rank === finding.rank && one.reader !== state.reader);
    if (others.length) item.append(make("div", others.map((one) => `${one.reader}: ${one.verdict}`).join("; "), { className: "others" }));
    list.append(item);
  }
  if (focused) [...list.querySelectorAll("button")].find((one) => one.dataset.name === focused)?.focus();
}

export function fillMissed(list, meta, state, act) {
  list.replaceChildren();
  for (const one of meta.judgements.filter((each) => each.target === "missed")) {
    const [row, col] = one.points[0];
    const item = make("li");
    item.append(make("span", `${one.name}, ${one.kind === "point" ? "point" : "outline"} at row ${Math.round(row)}, col ${Math.round(col)} (${one.reader})`));
    if (one.reader === state.reader) {
      const button = make("button", "Take back", { type: "button" });
      button.addEventListener("click", () => act.takeBack(one.id));
      item.append(button);
    }
    list.append(item);
  }
}

export function fillStudies(list, studies, current, choose) {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren();
  for (const study of studies) {
    const button = make("button", "", { type: "button" });
    button.dataset.key = study.key;
    if (study.key === current) button.setAttribute("aria-current", "true");
    const findings = study.images.reduce((sum, one) => sum + one.findings, 0);
    const judged = study.images.reduce((sum, one) => sum + one.judged, 0);
    const read = study.images.filter((one) => one.read).length;
    const all = study.images.length;
    const head = make("span", "", { className: "line" });
    head.append(make("span", study.label, { className: "label" }), make("span", showP(study.images[0].image_p_value), { className: "score" }));
    const state = read === all ? "read" : judged ? `${judged} of ${findings} judged` : `${findings} ${findings === 1 ? "finding" : "findings"}`;
    const foot = make("span", "", { className: "line under" });
    foot.append(make("span", `${all} ${all === 1 ? "image" : "images"}`), make("span", state));
    button.append(head, foot);
    button.addEventListener("click", () => choose(study.key));
    const item = make("li");
    item.append(button);
    list.append(item);
  }
  if (focused) [...list.querySelectorAll("button")].find((one) => one.dataset.key === focused)?.focus();
}
