"""Who judges WISE: a model behind an endpoint that grades, or the files of the official evaluators."""

from dataclasses import replace

from blip3o import storage
from blip3o.errors import ConfigError
from blip3o.evaluate.judges.runner import (
    CONCURRENT_REQUESTS,
    JudgeFactory,
    JudgeRequest,
    JudgeRunner,
    endpoint_client,
    import_runner,
    split_spec,
)
from blip3o.evaluate.records import Item, Judge, Judgement
from blip3o.evaluate.suites.wise.suite import Wise

# The version of the words in which this project asks a judge, and of how it reads the replies. Judgements of version 1
# may be grades that were read from truncated replies, or from the judge's reasoning.
PROMPT_VERSION = "blip3o-2"


def judge_factory(suite: Wise) -> JudgeFactory:
    """The judges of one of the two lists."""

    def make_judge(request: JudgeRequest) -> JudgeRunner:
        """An endpoint, or imported files. Raises `ConfigError` without either."""
        kind, rest = split_spec(suite.name, request.spec, "openai:BASE_URL:MODEL, file:URI or official:URI")
        if kind == "openai":
            return _endpoint_judge(suite, rest, request)
        if kind in ("file", "official"):
            return _imported_judge(suite, rest, official=kind == "official")
        raise ConfigError(f"--judge {suite.name}={request.spec}: give openai:BASE_URL:MODEL, file:URI or official:URI")

    return make_judge


def _endpoint_judge(suite: Wise, rest: str, request: JudgeRequest) -> JudgeRunner:
    client = endpoint_client(rest, request.options, PROMPT_VERSION)

    def judge_sample(item: Item, sample: int, data: bytes) -> Judgement:
        reply = client.ask(suite.question(item), [data])
        if reply.fault:
            return Judgement(key=item.key, sample=sample, value=None, fault=reply.fault, reply=reply.verbatim)
        return replace(suite.judgement(item, sample, reply.text), reply=reply.verbatim)

    return JudgeRunner(judge=client.judge, judge_sample=judge_sample, threads=CONCURRENT_REQUESTS, finish=client.finish)


def _imported_judge(suite: Wise, uris: str, *, official: bool) -> JudgeRunner:
    files = [(uri, storage.read_bytes(uri)) for uri in _judgement_files(uris)]
    judge = Judge(id=suite.official_judge, version="official") if official else None
    return import_runner(suite.import_files(files), b"".join(content for _, content in files), judge)


def _judgement_files(uris: str) -> list[str]:
    """The files of `URI[,URI]`. Each is a file, or a folder whose JSON Lines (if it has none, whose JSON) are read."""
    # The whole text is tried first, because a file's own name may contain a comma.
    return _files_at(uris) or [file for uri in uris.split(",") for file in _files_at(uri) or [uri]]


def _files_at(uri: str) -> list[str]:
    if storage.exists(uri):
        return [uri]
    lines, lists = ([file.uri for file in storage.list_files(uri, suffix=end)] for end in (".jsonl", ".json"))
    return lines or lists
