"""The fields that this server does not support, and the values at which they have no effect, as data.

SDKs and frameworks send many fields at such values. The rule: a field is rejected only if it would change the answer.
A field below is either `Ignored` (no value changes the answer) or `Neutral` (the listed values do not; others are
rejected). A field that is neither here nor in `serve.schema` is rejected unless it is null. docs/serving.md has these
tables too.
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


Fields = Mapping[str, Ignored | Neutral]


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
_GREEDY = Ignored("decoding is greedy")

CHAT: Fields = {
    **_BOTH,
    "prompt_cache_key": _CACHE,
    "prompt_cache_retention": _CACHE,
    "prompt_cache_options": _CACHE,
    "prediction": Ignored("saves time, does not change the answer"),
    "parallel_tool_calls": Ignored("the model calls no tools"),
    "frequency_penalty": Neutral((0,)),
    "presence_penalty": Neutral((0,)),
    "repetition_penalty": Neutral((1,)),
    "length_penalty": Neutral((1,)),
    "logit_bias": Neutral(({},)),
    "logprobs": Neutral((False,)),
    "top_logprobs": Neutral((0,)),
    "stop": Neutral(([], "", [""])),
    "tools": Neutral(([],)),
    "tool_choice": Neutral(("none", "auto")),
    "functions": Neutral(([],)),
    "function_call": Neutral(("none", "auto")),
    "response_format": Neutral(({"type": "text"},)),
    "reasoning_effort": Neutral(("none",)),
    "verbosity": Neutral(("medium",)),
    "thinking": Neutral(({"type": "disabled"},)),
    "enable_thinking": Neutral((False,)),
    "chat_template_kwargs": Neutral(({}, {"enable_thinking": False})),
    "top_k": _GREEDY,
    "top_a": _GREEDY,
    "min_p": _GREEDY,
    "typical_p": _GREEDY,
    "no_repeat_ngram_size": Neutral((0,)),
    "stop_token_ids": Neutral(([],)),
    "include_stop_str_in_output": Ignored("there are no stop strings"),
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
}

IMAGES: Fields = {
    **_BOTH,
    "moderation": Ignored("nothing is filtered"),
    "style": Neutral(("auto", "vivid")),
    "negative_prompt": Neutral(("",)),
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

PART: Fields = {"annotations": MESSAGE["annotations"], "cache_control": _CACHE}

IMAGE_URL: Fields = {
    "format": Ignored("the format is read from the bytes"),
}

STREAM_OPTIONS: Fields = {"include_obfuscation": Ignored("chunks are not padded")}

TABLES: Mapping[str, Fields] = {
    "POST /v1/chat/completions": CHAT,
    "POST /v1/images/generations": IMAGES,
    "A message": MESSAGE,
    "A part of a message": PART,
    "`image_url`": IMAGE_URL,
    "`stream_options`": STREAM_OPTIONS,
}
