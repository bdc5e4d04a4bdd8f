// A picture that the user brings: from a file, by drag and drop, from the clipboard, drawn, or from the gallery.

import {$, button, make, picture} from "./dom.js";
import {Drawing} from "./drawing.js";

const TAKEN = ["image/png", "image/jpeg", "image/webp"];  // by the server as they are
const MAX_BYTES = 10 * 2 ** 20;
const LARGEST_SIDE = 2048;
const pickers = [];

// A pasted picture goes to the picker next to the field that is in use, or else to the first one.
document.addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(each => each.type.startsWith("image/"));
  const open = pickers.filter(each => each.place.checkVisibility());
  const near = open.find(each => each.place.closest("section").contains(document.activeElement)) ?? open[0];
  if (!file || !near) return;
  event.preventDefault();
  near.take(file);
});

// A file that misses its place must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, event => event.preventDefault());

export class PicturePicker {
  constructor(place, name) {
    const id = `file-${pickers.push(this)}`;
    this.url = "";
    this.onChange = () => {};
    this.place = place;
    this.file = make("input", {type: "file", id, accept: "image/*", className: "unseen", onchange: () => this.take(this.file.files[0])});
    this.shown = make("div", {className: "shown"});
    this.problem = make("p", {className: "error", role: "alert", hidden: true});
    this.hint = make("p", {className: "hint", textContent: "or drop a picture here, or paste one"});
    this.clear = button("Remove picture", () => this.show(""), {hidden: true});
    this.drawing = new Drawing(url => this.show(url));
    this.draw = button("Draw one", () => this.toggleDrawing(), {"aria-expanded": "false"});
    const label = make("label", {className: "button", for: id, textContent: "Choose a picture"});
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", name);
    place.append(this.shown, make("div", {className: "row"}, this.file, label, this.draw, this.clear), this.hint, this.drawing.element, this.problem);
    this.listen();
  }

  listen() {
    const {place} = this;
    place.ondragover = event => { event.preventDefault(); place.classList.add("over"); };
    place.ondragleave = () => place.classList.remove("over");
    place.ondrop = event => { event.preventDefault(); place.classList.remove("over"); this.take(event.dataTransfer.files[0]); };
  }

  focus() {
    this.say("Choose or draw a picture first.");
    this.file.focus();
  }

  say(problem) {
    this.problem.hidden = !problem;
    this.problem.textContent = problem;
  }

  toggleDrawing() {
    const open = this.drawing.element.hidden;
    this.drawing.element.hidden = !open;
    this.draw.setAttribute("aria-expanded", String(open));
    if (open) this.drawing.canvas.focus();
  }

  show(url = "") {
    this.url = url;
    this.say("");
    this.shown.replaceChildren(...(url ? [picture(url, "the chosen picture")] : []));
    this.clear.hidden = !url;
    this.hint.hidden = Boolean(url);
    if (!this.drawing.element.hidden) this.toggleDrawing();
    this.onChange(url);
  }

  async take(file) {
    this.file.value = "";
    if (!file) return;
    try {
      this.show(TAKEN.includes(file.type) && file.size <= MAX_BYTES ? await dataUrl(file) : await reduced(file));
    } catch {
      this.say(`${file.name || "This file"} is not a picture that the browser can read. Try PNG, JPEG or WebP.`);
    }
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = Object.assign(new FileReader(), {onload: () => resolve(reader.result), onerror: reject});
    reader.readAsDataURL(blob);
  });
}

// Other formats, and pictures that are too large to send, are drawn again as JPEG.
async function reduced(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", {width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale)});
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

// The bytes of a data: URL, for a form. `fetch` of it would need a wider policy.
export async function blobOf(url) {
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0));
  return new Blob([bytes], {type: head.slice("data:".length, head.indexOf(";"))});
}
