// The `openai` package of npm against a server: what it generates, streams, answers and raises, as one JSON object.

import OpenAI from "openai";

const client = new OpenAI({baseURL: process.argv[2], apiKey: "none", maxRetries: 0});
const sampling = {prompt: "a red circle", seed: 5, num_inference_steps: 3};
const messages = [{role: "user", content: "What colour is it?"}];
const found = {};

found.models = (await client.models.list()).data.map(model => model.id);
found.images = (await client.images.generate({...sampling, n: 2})).data.map(item => item.b64_json);

found.events = [];
for await (const event of await client.images.generate({...sampling, stream: true, partial_images: 2}))
  found.events.push([event.type, event.partial_image_index ?? null, event.b64_json]);

const asked = {model: found.models[0], messages, max_tokens: 6};
found.reply = (await client.chat.completions.create(asked)).choices[0].message.content;
found.pieces = [];
for await (const chunk of await client.chat.completions.create({...asked, stream: true}))
  if (chunk.choices[0]?.delta?.content) found.pieces.push(chunk.choices[0].delta.content);

found.errors = [];
for (const wrong of [{...sampling, model: "gpt-image-1"}, {...sampling, n: 11}]) {
  await client.images.generate(wrong).catch(error => found.errors.push([error.constructor.name, error.status, error.param]));
}
const stopped = await client.images.generate({...sampling, n: 10, num_inference_steps: 250, stream: true, partial_images: 3});
for await (const event of stopped) break;  // which ends the connection

console.log(JSON.stringify(found));
