// The server's HTTP API: JSON and server-sent events by `fetch`, and errors in words for people.

import {$} from "./dom.js";

const KEY = "blip3o-api-key";

export class Problem extends Error {
  constructor(message, {status = 0, requestId = "", param = "", retryable = false} = {}) {
    super(message);
    Object.assign(this, {status, requestId, param, retryable});
  }
}

// The key lives as long as the tab: session storage is neither shared with other tabs nor kept.
export function watchKey() {
  const field = $("key");
  field.value = sessionStorage.getItem(KEY) ?? "";
  field.addEventListener("input", () => {
    if (field.value) sessionStorage.setItem(KEY, field.value);
    else sessionStorage.removeItem(KEY);
  });
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? {authorization: `Bearer ${key}`} : {};
}

// A request: GET without a body, else POST of a form or of JSON. Relative paths work behind a prefix, too.
async function send(path, body, signal) {
  const options = {headers: headers(), signal};
  if (body instanceof FormData) Object.assign(options, {method: "POST", body});
  else if (body) {
    Object.assign(options, {method: "POST", body: JSON.stringify(body)});
    options.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is it running?", {retryable: true});
  }
  if (response.ok) return response;
  throw problemOf(response, (await response.json().catch(() => null))?.error);
}

function problemOf(response, error) {
  const {status} = response;
  const details = {status, requestId: response.headers.get("x-request-id") ?? "", param: error?.param ?? ""};
  const wait = response.headers.get("retry-after");
  const said = error?.message ?? `The server answered with status ${status}.`;
  if (status === 401 || status === 403) {
    $("key-panel").open = true;
    $("key").focus();
    return new Problem(`This server asks for an API key: enter it at the top of the page. (${said})`, details);
  }
  if (status === 429) {
    const busy = `The server is busy. Try again ${wait ? `in ${wait} s` : "in a moment"}.`;
    return new Problem(error?.code === "queue_full" ? busy : said, {...details, retryable: true});
  }
  if (status === 413) return new Problem(`That is too much to send. Choose a smaller picture. (${said})`, details);
  if (status === 503) return new Problem(`The model is not ready: ${said}`, {...details, retryable: true});
  if (status >= 500) return new Problem(`Something went wrong in the server: ${said}`, {...details, retryable: true});
  return new Problem(said, details);
}

export async function getJson(path) {
  return (await send(path)).json();
}

export async function postJson(path, body, signal) {
  return (await send(path, body, signal)).json();
}

// The JSON of each server-sent event, until [DONE]. Throws `Problem` for an error event, or a connection that is lost.
export async function* postForEvents(path, body, signal) {
  const response = await send(path, body, signal);
  const requestId = response.headers.get("x-request-id") ?? "";
  const lost = new Problem("The connection was lost before the end.", {requestId, retryable: true});
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {done, value} = await reader.read().catch(error => { throw error.name === "AbortError" ? error : lost; });
    if (done) throw lost;
    text += value;
    const events = text.split(/\r?\n\r?\n/);
    text = events.pop();
    for (const data of events.map(dataOf).filter(Boolean)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw problemWithin(event.error, requestId);
      yield event;
    }
  }
}

// An error after the reply has begun.
function problemWithin({message, type, param}, requestId) {
  return new Problem(message, {requestId, param: param ?? "", retryable: type !== "invalid_request_error"});
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter(line => line.startsWith("data:"));
  return lines.map(line => line.slice(5).trimStart()).join("\n");
}
