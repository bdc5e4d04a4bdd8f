"""A first look at a running server: one image and one answer, through the real `openai` client."""

import base64
import io
from pathlib import Path
from typing import Any

from blip3o.data.images.decode import open_image
from blip3o.data.sets.scenes_draw import render
from blip3o.data.sets.scenes_world import Scene, SceneObject

PROMPT = "a red circle"
QUESTION = "What color is the circle?"


def query_server(client: Any, image_file: Path) -> dict[str, Any]:  # noqa: ANN401 - an openai.OpenAI
    """Generates an image, which is written to `image_file`, and asks about a picture whose answer is known.

    Returns both requests and their replies; `ok` is true if there is an image and an answer.
    """
    model = client.models.list().data[0].id
    generated = client.images.generate(model=model, prompt=PROMPT, response_format="b64_json", extra_body={"seed": 1})
    data = base64.b64decode(generated.data[0].b64_json)
    image = open_image(data)
    image.save(image_file)
    parts = [{"type": "image_url", "image_url": {"url": _red_circle()}}, {"type": "text", "text": QUESTION}]
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])
    text = reply.choices[0].message.content or ""
    return {
        "prompt": PROMPT,
        "image_bytes": len(data),
        "image_size": list(image.size),
        "question": QUESTION,
        "chat_reply": text,
        "ok": bool(text) and image.size[0] > 0,
    }


def _red_circle() -> str:
    """The picture of `QUESTION` as a data URL."""
    circle = SceneObject(shape="circle", color="red", box=(14, 14, 50, 50))
    scene = Scene(size=64, ground="light grey", family="single_object", relation=None, objects=(circle,))
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
