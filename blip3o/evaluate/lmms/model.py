"""A bundle as a model of lmms-eval, in its process: `python -m lmms_eval --model blip3o --model_args bundle=URI …`.

lmms-eval (0.7) finds it through the entry point `lmms_eval.models`. It is not a dependency of this project: `make lmms`
builds an environment with both. A server needs no adapter, because lmms-eval speaks its API (`--model openai`;
`python -m jobs.lmms`).
"""

from collections.abc import Callable, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

import blip3o
from blip3o.errors import RequestError
from blip3o.inference.pipeline import Blip3oPipeline

MAX_NEW_TOKENS = 32  # for a task without a limit of its own


def manifest() -> ModelManifest:
    """The entry point: the model `blip3o`."""
    return ModelManifest(model_id="blip3o", simple_class_path=f"{__name__}.Blip3o")


class Blip3o(lmms):
    """Greedy replies of a bundle to a task's questions, each with one image or none."""

    def __init__(self, bundle: str, *, batch_size: int | str = 1, device: str | None = None) -> None:
        """`batch_size` and `device` are lmms-eval's arguments and ignored: the bundle's batch size and the CPU hold."""
        super().__init__()
        self._pipeline = blip3o.load(bundle)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """A reply to each request. Raises `RequestError` for one with several images."""
        return [self._reply(*request.args) for request in tqdm(requests, desc="replies")]

    def _reply(
        self, question: str, options: dict[str, Any], pictures: Callable[..., Any], row: int, task: str, split: str
    ) -> str:
        return reply(self._pipeline, question, pictures(self.task_dict[task][split][row]), options)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: raises `RequestError`."""
        raise RequestError("blip3o replies with text: choose a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: raises `RequestError`."""
        raise RequestError("blip3o replies once: choose a task whose output_type is generate_until")


def reply(pipeline: Blip3oPipeline, question: str, pictures: Sequence[Image.Image], options: dict[str, Any]) -> str:
    """The greedy reply to a question, truncated before the first of the task's `until` strings."""
    if len(pictures) > 1:
        raise RequestError(f"{len(pictures)} pictures with a question: this model looks at one")
    messages = [{"role": "user", "content": question}]
    limit = options.get("max_new_tokens", MAX_NEW_TOKENS)
    said = pipeline.chat(messages, image=pictures[0] if pictures else None, max_tokens=limit)
    for stop in options.get("until") or ():
        said = said.split(stop, 1)[0]
    return said
