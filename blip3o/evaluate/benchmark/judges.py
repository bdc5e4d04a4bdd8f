"""Judges at work, made from what --judge says of a suite.

    openai:BASE_URL:MODEL     a model behind an OpenAI-compatible endpoint (dpg, wise, wise-verified)
    MODULE:FUNCTION           a plug-in: a detector `f(image) -> {class: [Detected]}` for geneval, an answerer
                              `f(image, question) -> "yes" or "no"` for dpg, a reader `f(image) -> [line]` for ocr, a
                              network `f(image) -> [d]` for mjhq
    file:URI                  findings made elsewhere: results.jsonl of geneval; of wise, the evaluator's files (one, a
                              folder, or several with commas between)
    official:URI              the same, with your word that the official judge made them

Scenes are judged by their exact detector and replies by their words; they take no --judge. Without one, ocr is read by
`rapidocr-onnxruntime`.
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.files import parse_reply
from blip3o.evaluate.judges.client import JudgeClient
from blip3o.evaluate.judges.options import JudgeOptions
from blip3o.evaluate.judges.replies import Reply, answer
from blip3o.evaluate.suites import dpg, scenes
from blip3o.evaluate.suites.geneval import suite as geneval
from blip3o.evaluate.suites.mjhq import Mjhq
from blip3o.evaluate.suites.ocr import RapidOcr
from blip3o.evaluate.suites.suite import Item, Judge, Judgement
from blip3o.evaluate.suites.wise.suite import Wise

ASKING = 8  # requests to an endpoint at a time
# The versions of the words in which this project asks a judge, and of how it takes the replies. Findings of WISE's
# version 1 may be grades of replies that were cut, or of thoughts; a yes or no of DPG's never was.
DPG_PROMPTS, WISE_PROMPTS = "blip3o-1", "blip3o-2"
BY_WORDS = Judge(id="words of the reply", version="2")  # 1 took a thought that was cut for a reply


@dataclass(frozen=True, kw_only=True)
class Finder:
    """A judge at work: `find(item, sample, file)` gives the finding on a file's bytes, or None where it has none.

    Up to `threads` at a time. `imported`: the findings were made elsewhere, without the sums of the files that they are
    about. `finish()` is called when all were asked for; it raises `ConfigError` for a judge that
    took none of them.
    """

    judge: Judge
    find: Callable[[Item, int, bytes], Judgement | None]
    threads: int = 1
    imported: bool = False
    finish: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a judge is made from: what --judge says of the suite (None: nothing), its items, and their --source.

    `options` are those of requests to an endpoint.
    """

    spec: str | None
    items: Sequence[Item]
    source: str | None = None
    options: JudgeOptions = JudgeOptions()


Maker = Callable[[Wanted], Finder]


def exact(wanted: Wanted) -> Finder:
    """The detector of scenes. Raises `ConfigError` if another judge is named."""
    _none_named("scenes", wanted.spec)

    def find(item: Item, sample: int, data: bytes) -> Judgement:
        return scenes.judge_picture(item, sample, open_image(data))

    return Finder(judge=scenes.JUDGE, find=find)


def by_words(wanted: Wanted) -> Finder:
    """Replies as they are: suites of questions compare them themselves. Raises `ConfigError` if a judge is named."""
    _none_named("questions", wanted.spec)

    def find(item: Item, sample: int, data: bytes) -> Judgement:
        reply = parse_reply(data)
        if answer(reply) is None:  # kept by a version that took it for a reply
            return Judgement(key=item.key, sample=sample, value=None, fault="ends within its reasoning", reply=reply)
        return Judgement(key=item.key, sample=sample, value={"reply": reply}, reply=reply)

    return Finder(judge=BY_WORDS, find=find)


def _none_named(what: str, spec: str | None) -> None:
    if spec is not None:
        raise ConfigError(f"--judge {spec}: {what} are judged exactly and take no other judge: leave the option out")


def of_geneval(wanted: Wanted) -> Finder:
    """A detector plug-in, or the official scorer's results.jsonl. Raises `ConfigError` without either."""
    kind, rest = _parted("geneval", wanted.spec, "MODULE:FUNCTION, file:URI or official:URI")
    if kind in ("file", "official"):
        data = storage.read_bytes(rest)
        found = geneval.import_results(data, wanted.items, where=rest)
        return _imported(found, _judge_of_file(data, geneval.OFFICIAL_JUDGE if kind == "official" else None))
    detect, judge = _plug_in(kind, rest)

    def find(item: Item, sample: int, data: bytes) -> Judgement:
        return geneval.judgement(item, sample, detect(open_image(data)))

    return Finder(judge=judge, find=find)


def of_dpg(wanted: Wanted) -> Finder:
    """An endpoint or a plug-in that answers yes or no about a tile. Raises `ConfigError` without either."""
    kind, rest = _parted("dpg", wanted.spec, "openai:BASE_URL:MODEL or MODULE:FUNCTION")
    if kind == "openai":
        client = _client(rest, wanted.options, DPG_PROMPTS)

        def ask(data: bytes, question: dpg.Question) -> Reply:
            return client.ask(dpg.question_text(question), [data])

        return Finder(judge=client.judge, find=_dpg_find(ask), threads=ASKING, finish=client.finish)
    says, judge = _plug_in(kind, rest)

    def answered(data: bytes, question: dpg.Question) -> Reply:
        return Reply(text=str(says(open_image(data), question["text"])))

    return Finder(judge=judge, find=_dpg_find(answered))


def _dpg_find(ask: Callable[[bytes, dpg.Question], Reply]) -> Callable[[Item, int, bytes], Judgement]:
    def find(item: Item, sample: int, data: bytes) -> Judgement:
        read: dict[int, str | None] = {}
        for question in item.record["questions"]:
            reply = ask(data, question)
            if reply.fault:  # no answer will come of this tile: the other questions need not be paid for
                fault = f"{reply.fault} (question {question['number']})"
                return Judgement(key=item.key, sample=sample, value=None, fault=fault, reply=reply.said)
            read[question["number"]] = dpg.read_answer(reply.text)
        # What is neither yes nor no is left out, which makes the tile unreadable and not a no.
        return dpg.judgement(item, sample, {number: word for number, word in read.items() if word is not None})

    return find


def of_wise(suite: Wise) -> Maker:
    """A maker for one of the two suites: an endpoint that grades, or the rows of the official calculators."""

    def make(wanted: Wanted) -> Finder:
        kind, rest = _parted(suite.name, wanted.spec, "openai:BASE_URL:MODEL, file:URI or official:URI")
        if kind in ("file", "official"):
            files = [(uri, storage.read_bytes(uri)) for uri in _judgement_files(rest)]
            official = Judge(id=suite.official_judge, version="official") if kind == "official" else None
            data = b"".join(content for _, content in files)
            return _imported(suite.import_files(files), _judge_of_file(data, official))
        if kind != "openai":
            raise ConfigError(
                f"--judge {suite.name}={wanted.spec}: give openai:BASE_URL:MODEL, file:URI or official:URI"
            )
        client = _client(rest, wanted.options, WISE_PROMPTS)

        def find(item: Item, sample: int, data: bytes) -> Judgement:
            reply = client.ask(suite.question(item), [data])
            if reply.fault:
                return Judgement(key=item.key, sample=sample, value=None, fault=reply.fault, reply=reply.said)
            return replace(suite.judgement(item, sample, reply.text), reply=reply.said)

        return Finder(judge=client.judge, find=find, threads=ASKING, finish=client.finish)

    return make


def _judgement_files(uris: str) -> list[str]:
    """The files of `URI[,URI]`: each a file, or a folder whose JSON Lines (without any, whose JSON) are meant."""
    return _files_at(uris) or [file for uri in uris.split(",") for file in _files_at(uri) or [uri]]


def _files_at(uri: str) -> list[str]:
    if storage.exists(uri):
        return [uri]
    lines, lists = ([file.uri for file in storage.list_files(uri, suffix=end)] for end in (".jsonl", ".json"))
    return lines or lists


def of_ocr(wanted: Wanted) -> Finder:
    """A plug-in that reads, or the recogniser of the extra `ocr`. Raises `ConfigError` if that is not installed."""
    if wanted.spec is None:
        recogniser = RapidOcr()
        read, judge = recogniser.lines, recogniser.judge
    else:
        lines, judge = _plug_in(*_parted("ocr", wanted.spec, "MODULE:FUNCTION"))

        def read(png: bytes) -> list[str]:
            return [str(line) for line in lines(open_image(png))]

    def find(item: Item, sample: int, data: bytes) -> Judgement:
        return Judgement(key=item.key, sample=sample, value={"lines": read(data)})

    return Finder(judge=judge, find=find)


def of_mjhq(suite: Mjhq) -> Maker:
    """A maker: a plug-in that gives features of drawings and of the data set's own pictures beside the source."""

    def make(wanted: Wanted) -> Finder:
        features, judge = _plug_in(*_parted("mjhq", wanted.spec, "MODULE:FUNCTION"))
        if wanted.source is None:
            raise ConfigError(
                "mjhq compares with the data set's pictures: name its meta_data.json with --source mjhq=…"
            )
        folder = wanted.source.rpartition("/")[0] or "."

        def numbers(data: bytes) -> list[float]:
            return [float(value) for value in features(open_image(data))]

        def find(item: Item, sample: int, data: bytes) -> Judgement:
            uri = storage.join(storage.normalize(folder), suite.reference_path(item))
            reference = storage.read_bytes(uri)
            finding = suite.judgement(item, sample, numbers(data), numbers(reference))
            return replace(finding, sources={uri: hashlib.sha256(reference).hexdigest()})

        return Finder(judge=judge, find=find)

    return make


def _parted(suite: str, spec: str | None, forms: str) -> tuple[str, str]:
    kind, colon, rest = (spec or "").partition(":")
    if not (kind and colon and rest):
        raise ConfigError(f"suite {suite} has no judge of its own: name one with --judge {suite}=…, {forms}")
    return kind, rest


def _client(rest: str, options: JudgeOptions, prompts: str) -> JudgeClient:
    base_url, model = _address(rest)
    return JudgeClient(base_url=base_url, model=model, prompt_version=prompts, options=options)


def _address(rest: str) -> tuple[str, str]:
    """The parts of BASE_URL:MODEL. A model's own name may hold colons (`qwen3:8b`); a URL's path holds none."""
    match = re.fullmatch(r"(https?://(?:\[[^\]/]*\]|[^/:\s]+)(?::\d+)?(?:/[^:\s]*)?):(.*)", rest)
    # Without a model, what stands behind the last colon is the port.
    if match is None or not match[2].strip() or match[2].partition("/")[0].isdecimal():
        raise ConfigError(f"--judge …=openai:{rest}: give openai:http://HOST:PORT/v1:MODEL")
    return match[1], match[2]


def _plug_in(module: str, function: str) -> tuple[Callable[..., Any], Judge]:
    """The function, and a judge whose version is the sum of its source. Raises `ConfigError` if there is none."""
    try:
        loaded = importlib.import_module(module)
        found = getattr(loaded, function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--judge …={module}:{function} is no function that can be imported ({error})") from error
    source = Path(loaded.__file__ or "").read_bytes() if loaded.__file__ else b""
    return found, Judge(id=f"{module}:{function}", version=f"source {hashlib.sha256(source).hexdigest()[:12]}")


def _judge_of_file(data: bytes, official: Judge | None) -> Judge:
    """The judge whose findings a file holds. Two files are two sources, and may be of the official judge both."""
    sha256 = hashlib.sha256(data).hexdigest()
    if official is None:
        return Judge(id="findings from a file", version=f"sha256 {sha256[:12]}")
    return replace(official, source=f"sha256 {sha256}")


def _imported(found: Sequence[Judgement], judge: Judge) -> Finder:
    by_place = {(one.key, one.sample): one for one in found}
    if len(by_place) < len(found):
        raise ConfigError(f"{len(found) - len(by_place)} findings of the file are on a picture that has one already")
    return Finder(judge=judge, find=lambda item, sample, data: by_place.get((item.key, sample)), imported=True)
