"""A judge at work, and the ways in which `--judge SUITE=SPEC` names one.

    openai:BASE_URL:MODEL     a model behind an OpenAI-compatible endpoint
    MODULE:FUNCTION           a plug-in: a Python function that can be imported
    file:URI                  judgements that were made elsewhere
    official:URI              the same, with the user's word that the official judge made them

Each suite's own file says which of these it takes, and what its plug-in returns (docs/evaluation.md has the table).
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blip3o.errors import ConfigError
from blip3o.evaluate.judges.client import JudgeClient
from blip3o.evaluate.judges.options import JudgeOptions
from blip3o.evaluate.records import Item, Judge, Judgement

CONCURRENT_REQUESTS = 8  # to an endpoint


@dataclass(frozen=True, kw_only=True)
class JudgeRunner:
    """A judge at work: `judge_sample(item, sample, data)` judges the bytes of a file; None if it has no judgement.

    Up to `threads` calls run at a time. `imported` judgements were made elsewhere and do not say which bytes they are
    about. `finish()` is called after the last file; it raises `ConfigError` if the judge accepted no request at all.
    """

    judge: Judge
    judge_sample: Callable[[Item, int, bytes], Judgement | None]
    threads: int = 1
    imported: bool = False
    finish: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """What a judge is made from: the suite's --judge (None: not given), its items, and its --source.

    `options` apply to requests to an endpoint.
    """

    spec: str | None
    items: Sequence[Item]
    source: str | None = None
    options: JudgeOptions = JudgeOptions()


JudgeFactory = Callable[[JudgeRequest], JudgeRunner]


def refuse_other_judge(what: str, spec: str | None) -> None:
    """Raises `ConfigError` if a judge is named for something that is judged exactly."""
    if spec is not None:
        raise ConfigError(f"--judge {spec}: {what} are judged exactly and take no other judge: leave the option out")


def split_spec(suite: str, spec: str | None, forms: str) -> tuple[str, str]:
    """The parts of a judge's spec, before and after the first colon. Raises `ConfigError` without a judge."""
    kind, colon, rest = (spec or "").partition(":")
    if not (kind and colon and rest):
        raise ConfigError(f"suite {suite} has no judge of its own: name one with --judge {suite}=…, {forms}")
    return kind, rest


def endpoint_client(rest: str, options: JudgeOptions, prompts: str) -> JudgeClient:
    """A client for `BASE_URL:MODEL`. `prompts` is the version of the wording. Raises `ConfigError`."""
    base_url, model = _split_address(rest)
    return JudgeClient(base_url=base_url, model=model, prompt_version=prompts, options=options)


def _split_address(rest: str) -> tuple[str, str]:
    """The parts of BASE_URL:MODEL. A model's name may contain colons (`qwen3:8b`); a URL's path may not."""
    match = re.fullmatch(r"(https?://(?:\[[^\]/]*\]|[^/:\s]+)(?::\d+)?(?:/[^:\s]*)?):(.*)", rest)
    # Without a model, the part after the last colon is the port.
    if match is None or not match[2].strip() or match[2].partition("/")[0].isdecimal():
        raise ConfigError(f"--judge …=openai:{rest}: give openai:http://HOST:PORT/v1:MODEL")
    return match[1], match[2]


def load_plug_in(module: str, function: str) -> tuple[Callable[..., Any], Judge]:
    """The function, and a judge whose version is the digest of its source. Raises `ConfigError` if it is not there."""
    try:
        loaded = importlib.import_module(module)
        found = getattr(loaded, function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--judge …={module}:{function} is no function that can be imported ({error})") from error
    source = Path(loaded.__file__ or "").read_bytes() if loaded.__file__ else b""
    return found, Judge(id=f"{module}:{function}", version=f"source {hashlib.sha256(source).hexdigest()[:12]}")


def import_runner(judgements: Sequence[Judgement], data: bytes, official: Judge | None) -> JudgeRunner:
    """The judge of judgements that were read from the file content `data`; `official` if that judge made them.

    Two files are two sources, and both may be of the official judge. Raises `ConfigError` for two judgements of one
    image.
    """
    by_sample = {(one.key, one.sample): one for one in judgements}
    if len(by_sample) < len(judgements):
        raise ConfigError(
            f"{len(judgements) - len(by_sample)} judgements of the file are of an image that already has one"
        )
    return JudgeRunner(
        judge=_judge_of_file(data, official),
        judge_sample=lambda item, sample, _: by_sample.get((item.key, sample)),
        imported=True,
    )


def _judge_of_file(data: bytes, official: Judge | None) -> Judge:
    sha256 = hashlib.sha256(data).hexdigest()
    if official is None:
        return Judge(id="findings from a file", version=f"sha256 {sha256[:12]}")
    return replace(official, source=f"sha256 {sha256}")
