// Text to image, and from a picture where the model can: streams previews and images into the gallery.

import {postForEvents, postJson} from "./api.js";
import {$, make, showProblem} from "./dom.js";
import {PicturePicker, blobOf} from "./picker.js";

const RANDOM_SEEDS = 2 ** 31;
const NUMBERS = ["n", "seed", "num_inference_steps", "guidance_scale", "partial_images"];
const MODES = {  // by the ability that a model names
  generate: {label: "From the prompt alone", path: "v1/images/generations"},
  edit: {label: "Edit a picture by the prompt", path: "v1/images/edits"},
  variation: {label: "Vary a picture", path: "v1/images/variations"},
};

export class Generator {
  constructor(gallery) {
    this.gallery = gallery;
    this.form = $("generate");
    this.fields = this.form.elements;
    this.model = {};
    this.modes = ["generate"];
    this.mode = "generate";
    this.source = new PicturePicker($("source-picker"), "Picture to start from");
    this.form.onsubmit = event => { event.preventDefault(); this.run(); };
    this.form.oninput = event => event.target.removeAttribute("aria-invalid");
    this.form.onkeydown = event => this.key(event);
    $("generate-stop").onclick = () => this.stop();
  }

  key(event) {
    if (event.key === "Escape") this.stop();
    if (event.target.name !== "prompt" || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.running) this.form.requestSubmit();
  }

  useModel(model) {
    this.model = model;
    this.fields.num_inference_steps.placeholder = model.num_inference_steps ?? "default";
    this.fields.guidance_scale.placeholder = model.guidance_scale ?? "default";
    this.modes = Object.keys(MODES).filter(mode => mode === "generate" || model.abilities?.includes(mode));
    $("source").hidden = this.modes.length < 2;
    $("source-modes").replaceChildren(...this.modes.map(mode => make("label", {className: "choice"},
      make("input", {type: "radio", name: "mode", value: mode, checked: mode === "generate", onchange: () => this.setMode(mode)}),
      MODES[mode].label)));
    this.setMode("generate");
  }

  setMode(mode) {
    this.mode = mode;
    $("source-picker").hidden = mode === "generate";
    this.fields.prompt.required = mode !== "variation";
    for (const radio of $("source-modes").querySelectorAll("input")) radio.checked = radio.value === mode;
  }

  startFrom(url) {
    this.source.show(url);
    this.setMode(this.modes.find(mode => mode !== "generate"));
    this.fields.prompt.focus();
  }

  rerun(settings) {
    if (this.running) { $("generate-status").textContent = "Wait for the images that are coming, or stop them."; return; }
    for (const name of ["prompt", "negative_prompt", ...NUMBERS]) this.fields[name].value = settings[name] ?? "";
    this.fields.n.value = 1;
    this.setMode(settings.mode);
    this.source.show(settings.source);
    this.form.scrollIntoView({block: "nearest"});
    this.run();
  }

  // What the form asks for, complete: the same settings give the same image.
  read() {
    const {fields, model} = this;
    const settings = {mode: this.mode, prompt: fields.prompt.value, model: model.id};
    if (fields.negative_prompt.value.trim()) settings.negative_prompt = fields.negative_prompt.value;
    for (const name of NUMBERS) if (fields[name].value !== "") settings[name] = Number(fields[name].value);
    settings.seed ??= crypto.getRandomValues(new Uint32Array(1))[0] % RANDOM_SEEDS;
    settings.num_inference_steps ??= model.num_inference_steps;
    settings.guidance_scale ??= model.guidance_scale;
    if (this.mode !== "generate") settings.source = this.source.url;
    return settings;
  }

  stop() {
    this.running?.abort();
  }

  async run() {
    if (this.running) return;
    showProblem($("generate-error"), null);
    const settings = this.read();
    if (settings.mode !== "generate" && !settings.source) return this.source.focus();
    const each = Array.from({length: settings.n}, (_, i) => ({negative_prompt: "", ...settings, seed: settings.seed + i}));
    const cards = this.gallery.begin(each);
    const began = performance.now();
    this.running = new AbortController();
    this.show(0);
    try {
      await this.receive(settings, cards, this.running.signal);
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      $("generate-status").textContent = `${cards.length === 1 ? "1 image" : `${cards.length} images`} in ${seconds} s`;
    } catch (error) {
      this.fail(error);
    } finally {
      for (const card of cards) if (!card.done) card.remove();
      this.running = null;
      this.show(null);
    }
  }

  fail(error) {
    $("generate-status").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name === "AbortError") return;
    showProblem($("generate-error"), error, () => this.run());
    const field = error.param && this.fields[error.param];
    if (!field?.focus) return;
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }

  // `share` is how much of all images is done, from 0 to 1; null: nothing runs.
  show(share) {
    const running = share !== null;
    $("generate-button").disabled = running;
    $("generate-stop").hidden = $("generate-progress").hidden = !running;
    if (!running) return;
    const bar = $("generate-progress");
    if (share) bar.value = share;
    else { bar.removeAttribute("value"); $("generate-status").textContent = "Generating…"; }
  }

  async receive(settings, cards, signal) {
    const {path} = MODES[settings.mode];
    const body = await bodyOf(settings);
    let finished = 0;
    for await (const event of events(path, body, settings.mode, signal)) {
      const card = cards[event.index ?? finished];
      const url = `data:image/${event.output_format};base64,${event.b64_json}`;
      if (event.type.endsWith(".completed")) {
        card.finish(url, event.output_format);
        finished += 1;
        if (finished < cards.length) $("generate-status").textContent = `Image ${finished} of ${cards.length} is ready.`;
      } else {
        card.preview(url, (event.partial_image_index + 1) / (settings.partial_images + 1));
      }
      this.show(cards.reduce((sum, each) => sum + each.share, 0) / cards.length);
    }
  }
}

// Variations have no stream in OpenAI's API: their images come at the end, as the same events.
async function* events(path, body, mode, signal) {
  if (mode !== "variation") return yield* postForEvents(path, body, signal);
  const reply = await postJson(path, body, signal);
  for (const [index, item] of reply.data.entries())
    yield {type: "image_variation.completed", output_format: reply.output_format ?? "png", index, ...item};
}

async function bodyOf({mode, source, ...settings}) {
  const body = {...settings, response_format: "b64_json"};
  if (mode !== "variation") body.stream = true;
  else for (const name of ["prompt", "negative_prompt", "partial_images"]) delete body[name];
  if (mode === "generate") return body;
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) if (value !== undefined) form.append(name, value);
  form.append("image", await blobOf(source), "picture.png");
  return form;
}
