// Small helpers for the document. Text is always set as text: the page's policy refuses markup from strings.

export const $ = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function button(text, onclick, properties = {}) {
  return make("button", {type: "button", textContent: text, onclick, ...properties});
}

// An error in kind words, with a button to try again where that may help. `null` clears it.
export function showProblem(place, problem, retry) {
  place.hidden = !problem;
  place.replaceChildren();
  if (!problem) return;
  place.append(make("p", {textContent: problem.message}));
  if (problem.requestId) place.append(make("p", {className: "hint", textContent: `Request ${problem.requestId}`}));
  if (problem.retryable && retry) place.append(button("Try again", () => { showProblem(place, null); retry(); }));
}

// A picture of a few pixels is shown with its pixels, not blurred.
export function picture(url, alt) {
  const image = make("img", {src: url, alt});
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 160));
  return image;
}
