// A conversation about a picture, or about nothing in particular; replies appear as they are written.

import {postForEvents} from "./api.js";
import {$, make, showProblem} from "./dom.js";
import {PicturePicker} from "./picker.js";

export class Chat {
  constructor() {
    this.turns = [];
    this.model = {};
    this.form = $("ask");
    this.question = this.form.elements.question;
    this.picker = new PicturePicker($("chat-picker"), "Picture to ask about");
    this.picker.onChange = () => this.restart();
    this.form.onsubmit = event => { event.preventDefault(); this.ask(this.question.value); };
    this.form.onkeydown = event => { if (event.key === "Escape") this.stop(); };
    $("ask-stop").onclick = () => this.stop();
    $("fresh").onclick = () => this.picker.show("");
  }

  useModel(model) {
    if (model.id !== this.model.id) this.restart();
    this.model = model;
  }

  talkAbout(url) {
    this.picker.show(url);
    $("chat").scrollIntoView({block: "nearest"});
    this.question.focus();
  }

  // Another picture is another conversation.
  restart() {
    this.stop();
    this.running = null;
    this.show(null);
    this.turns = [];
    $("talk").replaceChildren();
    $("chat-status").textContent = "";
    showProblem($("chat-error"), null);
  }

  stop() {
    this.running?.abort();
  }

  messages() {
    const {url} = this.picker;
    return this.turns.map((turn, i) => i === 0 && url
      ? {role: turn.role, content: [{type: "image_url", image_url: {url}}, {type: "text", text: turn.content}]}
      : turn);
  }

  say(role, text) {
    const line = make("p", {className: role, textContent: text});
    $("talk").append(line);
    this.follow();
    return line;
  }

  follow() {
    $("talk").scrollTop = $("talk").scrollHeight;
  }

  async ask(question) {
    if (this.running || !question.trim()) return;
    const {turns} = this;
    const [asked, answer] = [this.say("user", question), this.say("assistant", "")];
    const running = this.running = new AbortController();
    turns.push({role: "user", content: question});
    this.question.value = "";
    this.show("Thinking…");
    showProblem($("chat-error"), null);
    let said = "";
    try {
      said = await this.receive(answer, running.signal);
      turns.push({role: "assistant", content: said});
    } catch (error) {
      this.fail(error, {turns, asked, answer, question});
    }
    if (this.running !== running) return;  // another conversation has begun
    this.running = null;
    this.show(null);
    if (document.activeElement === document.body) this.question.focus();
  }

  // Reads the reply into its line; a screen reader hears it once it is complete.
  async receive(answer, signal) {
    const body = {model: this.model.id, messages: this.messages(), stream: true};
    let text = "";
    for await (const chunk of postForEvents("v1/chat/completions", body, signal)) {
      text += chunk.choices[0]?.delta?.content ?? "";
      answer.textContent = text;
      this.follow();
    }
    if (!text) answer.textContent = "(no words)";
    return text;
  }

  // What was said so far stays when the user stops it; after an error the question goes back to its field.
  fail(error, {turns, asked, answer, question}) {
    if (error.name === "AbortError") {
      if (turns !== this.turns) return;  // another conversation has begun
      $("chat-status").textContent = "Stopped.";
      turns.push({role: "assistant", content: answer.textContent});
      if (!answer.textContent) answer.textContent = "(stopped)";
      return;
    }
    turns.pop();
    asked.remove();
    answer.remove();
    this.question.value = question;
    showProblem($("chat-error"), error, () => this.ask(question));
  }

  show(status) {
    const running = status !== null;
    $("talk").setAttribute("aria-busy", String(running));
    $("ask-button").disabled = running;
    $("ask-stop").hidden = !running;
    if (running) $("chat-status").textContent = status;
    else if ($("chat-status").textContent === "Thinking…") $("chat-status").textContent = "";
  }
}
