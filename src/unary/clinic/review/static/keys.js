// Every key, what it does, and how the help says so.

export const KEYS = [
  ["ArrowDown", "↓", "next study", "nextStudy"],
  ["ArrowUp", "↑", "study before", "lastStudy"],
  ["ArrowRight", "→", "next image", "nextImage"],
  ["ArrowLeft", "←", "image before", "lastImage"],
  ["1", "1", "four views", "hang4"],
  ["2", "2", "both CC", "hangCC"],
  ["3", "3", "both MLO", "hangMLO"],
  ["4", "4 Enter", "one image, or back", "hang1"],
  ["Enter", "", "", "enlarge"],
  ["f", "F", "whole image", "fit"],
  ["z", "Z", "1:1, a screen pixel for every image pixel", "actual"],
  ["+", "+", "zoom in (wheel, pinch)", "zoomIn"],
  ["=", "", "", "zoomIn"],
  ["-", "−", "zoom out", "zoomOut"],
  ["8", "8 5 7 9", "move up, down, left, right (drag)", "moveUp"],
  ["5", "", "", "moveDown"],
  ["7", "", "", "moveLeft"],
  ["9", "", "", "moveRight"],
  ["g", "G", "magnifier at the pointer, or on the middle", "magnify"],
  ["i", "I", "invert", "invert"],
  ["w", "W", "window as at first", "resetWindow"],
  ["Shift+ArrowUp", "Shift ↑ ↓", "brighter, darker (drag with the right button)", "brighter"],
  ["Shift+ArrowDown", "", "", "darker"],
  ["Shift+ArrowLeft", "Shift ← →", "more contrast, less", "harder"],
  ["Shift+ArrowRight", "", "", "softer"],
  ["b", "B", "this window for all images", "spreadWindow"],
  ["y", "Y", "mirror the image", "mirror"],
  ["o", "O", "outlines on or off", "outlines"],
  ["h", "H", "heat map on or off", "heat"],
  [",", ", .", "heat map fainter, stronger", "fainter"],
  [".", "", "", "stronger"],
  ["n", "N", "next finding", "nextFinding"],
  ["p", "P", "finding before", "lastFinding"],
  ["a", "A", "agree with the finding", "agree"],
  ["d", "D", "disagree", "disagree"],
  ["u", "U", "unsure", "unsure"],
  ["Backspace", "Backspace", "take the verdict back", "takeBack"],
  ["m", "M", "mark what was missed: click or draw", "mark"],
  ["x", "X", "mark the middle of the image as missed", "markMiddle"],
  ["e", "E", "image read: nothing else is there", "read"],
  ["r", "R", "reader's name", "reader"],
  ["l", "L", "list of studies on or off", "lists"],
  ["k", "K", "findings on or off", "panel"],
  ["t", "T", "light or dark", "theme"],
  ["?", "?", "this help", "help"],
  ["Escape", "Esc", "leave marking", "escape"],
];

const WORDS = new Map(KEYS.map(([key, , , action]) => [key, action]));

export function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const tag = event.target.tagName;
    if (tag === "INPUT" && event.target.type !== "range" && event.key !== "Escape") return;
    if (document.querySelector("dialog[open]")) return;
    const arrow = event.key.startsWith("Arrow");
    if ((tag === "SELECT" || event.target.type === "range") && arrow) return;
    if (event.key === "Enter" && ["BUTTON", "A", "SELECT", "SUMMARY"].includes(tag)) return;
    const key = event.shiftKey && arrow ? `Shift+${event.key}` : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = WORDS.get(key);
    if (!action) return;
    event.preventDefault();
    actions[action]();
  });
}

export function fillHelp(element) {
  for (const [, shown, text] of KEYS) {
    if (!shown) continue;
    const line = document.createElement("div");
    const key = document.createElement("kbd");
    key.textContent = shown;
    const words = document.createElement("span");
    words.textContent = text;
    line.append(key, words);
    element.append(line);
  }
}
