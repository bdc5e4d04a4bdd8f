// A small canvas: draw with mouse, finger or pen, or with the keyboard (arrows move, Space lowers and lifts the pen).

import {button, make} from "./dom.js";

const SIDE = 256;
const STEP = 8;  // pixels that an arrow key moves
const COLORS = {black: "#1c1c1e", red: "#d92f2f", orange: "#ef8a17", yellow: "#f4d21f", green: "#2f9e44", blue: "#2b62d9", purple: "#8a3ffc", white: "#ffffff"};
const ARROWS = {ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP]};
let numbers = 0;

export class Drawing {
  constructor(onUse) {
    this.canvas = make("canvas", {width: SIDE, height: SIDE, tabIndex: 0, role: "application",
      "aria-label": "Drawing. Arrow keys move the pen, Space lowers and lifts it."});
    this.context = this.canvas.getContext("2d", {willReadFrequently: true});
    this.color = COLORS.red;
    this.at = [SIDE / 2, SIDE / 2];
    this.down = false;
    this.earlier = [];
    this.size = make("input", {type: "range", min: 2, max: 64, value: 20});
    this.said = make("span", {className: "status", role: "status"});
    this.element = make("div", {className: "drawing", hidden: true}, this.canvas, this.colors(),
      make("label", {}, "Pen size", this.size),
      make("div", {className: "row"},
        button("Use drawing", () => onUse(this.canvas.toDataURL("image/png")), {className: "main"}),
        button("Undo", () => this.undo()), button("Clear", () => this.clear()), this.said));
    this.listen();
    this.fill();
  }

  colors() {
    const name = `color-${numbers += 1}`;
    const choices = Object.entries(COLORS).map(([label, value]) => {
      const radio = make("input", {type: "radio", className: "unseen", name, value, checked: value === this.color, onchange: () => { this.color = value; }});
      const swatch = make("span", {className: "swatch", title: label});
      swatch.style.background = value;
      return make("label", {className: "choice color"}, radio, swatch, make("span", {className: "unseen", textContent: label}));
    });
    return make("fieldset", {}, make("legend", {textContent: "Color"}), ...choices);
  }

  listen() {
    const {canvas} = this;
    canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); this.keep(); this.at = this.place(event); this.line(this.at); this.down = true; };
    canvas.onpointermove = event => { if (this.down && event.buttons) this.line(this.place(event)); };
    canvas.onpointerup = canvas.onpointercancel = () => { this.down = false; };
    canvas.onkeydown = event => this.key(event);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
  }

  key(event) {
    if (event.key === " ") {
      this.down = !this.down;
      if (this.down) { this.keep(); this.line(this.at); }
      this.said.textContent = this.down ? "Pen down." : "Pen up.";
    } else if (ARROWS[event.key]) {
      const to = this.at.map((value, axis) => Math.min(SIDE, Math.max(0, value + ARROWS[event.key][axis])));
      if (this.down) this.line(to);
      this.at = to;
    } else return;
    event.preventDefault();
  }

  // From where the pen is; the same place makes a dot.
  line(to) {
    const {context} = this;
    Object.assign(context, {lineWidth: Number(this.size.value), lineCap: "round", strokeStyle: this.color});
    context.beginPath();
    context.moveTo(...this.at);
    context.lineTo(...to);
    context.stroke();
    this.at = to;
  }

  keep() {
    this.earlier.push(this.context.getImageData(0, 0, SIDE, SIDE));
    if (this.earlier.length > 30) this.earlier.shift();
  }

  undo() {
    const last = this.earlier.pop();
    if (last) this.context.putImageData(last, 0, 0);
  }

  clear() {
    this.keep();
    this.fill();
  }

  fill() {
    this.context.fillStyle = COLORS.white;
    this.context.fillRect(0, 0, SIDE, SIDE);
  }
}
