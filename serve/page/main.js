// Starts the page: reads which models the server has, and connects the three parts.

import {getJson, watchKey} from "./api.js";
import {Chat} from "./chat.js";
import {$, make} from "./dom.js";
import {Gallery} from "./gallery.js";
import {Generator} from "./generate.js";

const gallery = new Gallery();
const chat = new Chat();
const generator = new Generator(gallery);

gallery.onAsk = url => chat.talkAbout(url);
gallery.onRerun = settings => { select(settings.model); generator.rerun(settings); };
gallery.onEdit = url => generator.startFrom(url);

let models = [];

function select(id) {
  const model = models.find(each => each.id === id);
  if (!model) return;
  $("model").value = id;
  generator.useModel(model);
  gallery.offerEdits(generator.modes.length > 1);
  chat.useModel(model);
  const facts = [model.id, model.size && `${model.size.replace("x", " × ")} pixels`, model.precision];
  $("model-facts").textContent = facts.filter(Boolean).join(" · ");
}

async function connect() {
  try {
    models = (await getJson("v1/models")).data;
    $("model").replaceChildren(...models.map(model => make("option", {value: model.id, textContent: model.id})));
    $("model-choice").hidden = models.length < 2;
    select(models[0].id);
  } catch (error) {
    $("model-facts").textContent = error.message;
  }
}

$("model").onchange = () => select($("model").value);
watchKey();
$("key").onchange = connect;
$("key-form").onsubmit = event => { event.preventDefault(); connect(); };
connect();
