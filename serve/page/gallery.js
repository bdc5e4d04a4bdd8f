// The images of this visit, newest first. A card is made when its image is asked for, and filled as it arrives.

import {$, button, make, picture} from "./dom.js";

export class Gallery {
  constructor() {
    this.onAsk = this.onRerun = this.onEdit = () => {};
    this.edits = false;
  }

  // Whether the model edits or varies pictures; then each card offers to start from its image.
  offerEdits(edits) {
    this.edits = edits;
    for (const each of $("gallery").querySelectorAll(".edit")) each.hidden = !edits;
  }

  // Cards for images that are about to come, one for each of the settings, in their order.
  begin(settings) {
    const cards = settings.map(each => new Card(this, each));
    $("gallery").prepend(...cards.map(card => card.element));
    this.refresh();
    return cards;
  }

  refresh() {
    $("gallery-empty").hidden = $("gallery").children.length > 0;
  }
}

class Card {
  constructor(gallery, settings) {
    Object.assign(this, {gallery, settings, done: false, share: 0});
    const waiting = make("div", {className: "waiting", textContent: "waiting…"});
    this.frame = make("div", {className: "frame"}, waiting);
    this.caption = make("figcaption", {}, make("p", {textContent: settings.prompt || "(a variation)"}), facts(settings));
    this.element = make("figure", {className: "card"}, this.frame, this.caption);
    this.element.setAttribute("aria-busy", "true");
  }

  // `share` is how much of the image is done. A busy server leaves previews out.
  preview(url, share) {
    this.share = share;
    this.frame.replaceChildren(picture(url, `Preview: ${this.settings.prompt}`));
    this.element.classList.add("preview");
  }

  finish(url, format) {
    const {gallery, settings} = this;
    Object.assign(this, {done: true, share: 1});
    this.frame.replaceChildren(picture(url, settings.prompt || "a variation"));
    this.element.classList.remove("preview");
    this.element.removeAttribute("aria-busy");
    const named = {"aria-label": `of seed ${settings.seed}`};
    const label = text => ({"aria-label": `${text} ${named["aria-label"]}`});
    this.caption.append(make("div", {className: "row"},
      button("Re-run", () => gallery.onRerun(settings), label("Re-run")),
      button("Copy seed", event => copySeed(event.target, settings.seed), label("Copy seed")),
      button("Ask", () => gallery.onAsk(url), label("Ask about the image")),
      button("Edit", () => gallery.onEdit(url), {...label("Start from the image"), className: "edit", hidden: !gallery.edits}),
      make("a", {href: url, download: `blip3o-${settings.seed}.${format}`, textContent: "Download", ...label("Download the image")}),
      button("Remove", () => this.remove(), label("Remove the image")),
    ));
  }

  remove() {
    this.element.remove();
    this.gallery.refresh();
  }
}

function facts({seed, num_inference_steps: steps, guidance_scale: guidance, negative_prompt: negative}) {
  const said = [`seed ${seed}`, steps && `${steps} steps`, guidance !== undefined && `guidance ${guidance}`];
  if (negative) said.push(`not: ${negative}`);
  return make("p", {className: "hint", textContent: said.filter(Boolean).join(" · ")});
}

async function copySeed(pressed, seed) {
  try {
    await navigator.clipboard.writeText(String(seed));
    pressed.textContent = "Copied";
  } catch {  // no permission, or a page without https: the seed goes to where it is used
    $("generate").elements.seed.value = seed;
    pressed.textContent = "In the form";
  }
}
