"""The fields that this server does not support, and the values at which they have no effect, as data.

SDKs and frameworks send many fields at such values. The rule: a field is rejected only if it would change the answer.
A field below is `Ignored` (no value changes the answer), `Neutral` (the listed values do not; others are rejected) or
`Refused` (any value would). A field that is neither here nor in a form of `serve.http.forms` is rejected unless it is
null. docs/serving-reference.md has these tables too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blip3o.errors import one_line


@dataclass(frozen=True)
class Ignored:
    """A field that is accepted at any value, and why it cannot change the answer."""

    why: str


@dataclass(frozen=True)
class Neutral:
    """A field that is accepted only at these JSON values. Blank strings count as empty, nulls in objects as missing."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        """Its values, for a message or a table."""
        return " or ".join(json.dumps(value) for value in self.values)

    def allows(self, value: object) -> bool:
        """Whether the value changes nothing. `false` is not 0."""
        plain = value.strip() if isinstance(value, str) else value
        if isinstance(plain, dict):
            plain = {name: each for name, each in plain.items() if each is not None}
        return any(isinstance(plain, bool) == isinstance(each, bool) and plain == each for each in self.values)


@dataclass(frozen=True)
class Refused:
    """A field of OpenAI's that is rejected at any value, and why."""

    why: str


Rule = Ignored | Neutral | Refused
Fields = Mapping[str, Rule]


def quoted(value: object) -> str:
    """A client's JSON value, quoted for a message: short, without the contents of lists and objects."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return one_line(json.dumps(value), limit=60)


_WHO = Ignored("describes the request")
_BOTH: Fields = {
    "user": _WHO,
    "extra_body": Neutral(({},)),
    "extra_headers": Neutral(({},)),
    "safety_identifier": _WHO,
    "metadata": _WHO,
    "store": Ignored("nothing is stored"),
    "service_tier": Ignored("there is only one tier"),
}
_CACHE = Ignored("a hint for a cache")
_FILTER = Ignored("the server's operator decides what is filtered")
_GIF = Ignored("only for GIF, which is not offered")
_SVG = Ignored("only for SVG, which is not offered")
_NO_TOOLS = Ignored("the model calls no functions")
_STREAM_OPTIONS = Ignored("a hint for streams; images have no options")
_NO_REASONING = Neutral(("none",))

# Of other servers: they would change a drawn reply, and never a greedy one.
DRAWING: Fields = {
    "top_k": Neutral((-1, 0)),
    "top_a": Neutral((0,)),
    "min_p": Neutral((0,)),
    "typical_p": Neutral((1,)),
}

CHAT: Fields = {
    **_BOTH,
    "prompt_cache_key": _CACHE,
    "prompt_cache_retention": _CACHE,
    "prompt_cache_options": _CACHE,
    "moderation": _FILTER,
    "prediction": Ignored("saves time, does not change the answer"),
    "parallel_tool_calls": _NO_TOOLS,
    "frequency_penalty": Neutral((0,)),
    "presence_penalty": Neutral((0,)),
    "repetition_penalty": Neutral((1,)),
    "length_penalty": Neutral((1,)),
    "logit_bias": Neutral(({},)),
    "logprobs": Neutral((False,)),
    "top_logprobs": Neutral((0,)),
    "tools": Neutral(([],)),
    "tool_choice": Neutral(("none", "auto")),
    "functions": Neutral(([],)),
    "function_call": Neutral(("none", "auto")),
    "response_format": Neutral(({"type": "text"},)),
    "reasoning_effort": _NO_REASONING,
    "verbosity": Neutral(("medium",)),
    "thinking": Neutral(({"type": "disabled"},)),
    "enable_thinking": Neutral((False,)),
    "chat_template_kwargs": Neutral(({}, {"enable_thinking": False})),
    **DRAWING,
    "no_repeat_ngram_size": Neutral((0,)),
    "stop_token_ids": Neutral(([],)),
    "include_stop_str_in_output": Neutral((False,)),
    "add_generation_prompt": Neutral((True,)),
    "continue_final_message": Neutral((False,)),
    "use_beam_search": Neutral((False,)),
    "do_sample": Neutral((False,)),
    "spaces_between_special_tokens": Ignored("special tokens are not part of the reply"),
    "keep_alive": Ignored("the model stays loaded"),
    "min_tokens": Neutral((0,)),
    "best_of": Neutral((1,)),
    "echo": Neutral((False,)),
    "ignore_eos": Neutral((False,)),
    "skip_special_tokens": Neutral((True,)),
    "audio": Refused("replies are text and images"),
    "web_search_options": Refused("the model searches nothing"),
}

IMAGES: Fields = {
    **_BOTH,
    "moderation": _FILTER,
    "style": Ignored("the model has one style"),
    "stream_options": _STREAM_OPTIONS,
    "complexity": Ignored("no planning comes before the image"),
    "frame_count": _GIF,
    "frame_duration_ms": _GIF,
    "svg": _SVG,
    "enhance_prompt": Neutral((False,)),
    "enable_teacache": Neutral((False,)),
    "enable_cache_dit": Neutral((False,)),
}

EDITS: Fields = {
    **IMAGES,
    "input_fidelity": Ignored("the model reads an image in one way"),
    "markup": Refused("the model reads no drawing on top of the image"),
}

VARIATIONS: Fields = IMAGES

RESPONSES: Fields = {
    **_BOTH,
    "prompt_cache_key": _CACHE,
    "prompt_cache_retention": _CACHE,
    "prompt_cache_options": _CACHE,
    "moderation": _FILTER,
    "access_programs": Ignored("describes the request"),
    "background_options": Ignored("only for background replies, which are not offered"),
    "include": Ignored("adds what tools and reasoning leave, which this model has not"),
    "image": Ignored("how images are kept for later; nothing is stored"),
    "max_tool_calls": _NO_TOOLS,
    "parallel_tool_calls": _NO_TOOLS,
    "stream_options": Ignored("chunks are not padded"),
    "background": Neutral((False,)),
    "context_management": Neutral(([],)),
    "reasoning": Neutral(({}, {"effort": "none"})),
    "text": Neutral(({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"})),
    "top_logprobs": Neutral((0,)),
    "truncation": Neutral(("auto", "disabled")),
    "conversation": Refused("nothing is stored: send the whole conversation as input"),
    "previous_response_id": Refused("nothing is stored: send the whole conversation as input"),
    "prompt": Refused("there are no stored prompts: send the text as input"),
}

MESSAGE: Fields = {
    "name": Ignored("chat templates have no speaker names"),
    "id": Ignored("identifies the message"),
    "annotations": Ignored("describes the text"),
    "reasoning": Ignored("reasoning is not part of the reply"),
    "reasoning_content": Ignored("reasoning is not part of the reply"),
    "cache_control": _CACHE,
    "tool_calls": Neutral(([],)),
    "images": Neutral(([],)),
}

PART: Fields = {
    "annotations": MESSAGE["annotations"],
    "cache_control": _CACHE,
    "prompt_cache_breakpoint": _CACHE,
    "logprobs": Ignored("describes the text"),
}

# An item of a response's input: messages, and what earlier responses had as output.
ITEM: Fields = {
    **MESSAGE,
    "status": Ignored("describes an earlier reply"),
    "phase": Ignored("describes an earlier reply"),
}

# The tool `image_generation` of a response.
IMAGE_TOOL: Fields = {
    "moderation": _FILTER,
    "action": Neutral(("auto", "generate")),
    "complexity": Ignored("no planning comes before the image"),
    "frame_count": _GIF,
    "frame_duration_ms": _GIF,
    "svg": _SVG,
    "input_fidelity": EDITS["input_fidelity"],
    "input_image_mask": Refused("this route does not edit"),
    "model": Ignored("there is one model"),
}

IMAGE_URL: Fields = {
    "format": Ignored("the format is read from the bytes"),
}

INPUT_IMAGE: Fields = {**PART, "file_id": Refused("nothing is stored: send the image as a data URL in image_url")}

STREAM_OPTIONS: Fields = {"include_obfuscation": Ignored("chunks are not padded")}

TABLES: Mapping[str, Fields] = {
    "POST /v1/chat/completions": CHAT,
    "POST /v1/responses": RESPONSES,
    "POST /v1/images/generations": IMAGES,
    "POST /v1/images/edits": EDITS,
    "POST /v1/images/variations": VARIATIONS,
    "A message": MESSAGE,
    "A part of a message": PART,
    "`image_url`": IMAGE_URL,
    "`stream_options`": STREAM_OPTIONS,
    "A part `input_image`": INPUT_IMAGE,
    "An item of a response's input": ITEM,
    "The tool `image_generation`": IMAGE_TOOL,
}
