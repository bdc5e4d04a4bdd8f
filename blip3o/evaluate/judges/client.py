"""Asks a vision-language model behind any OpenAI-compatible endpoint, and keeps its replies as they come.

Greedy (temperature 0) unless an option says otherwise. A fault that may pass is waited out, for as long as the endpoint
asks and patience allows; an endpoint that then still fails stops the judging, to be resumed later: a transport error is
no opinion about a picture. A refusal of one item's content is a fault of that item; a refusal of everything stops.
Reading the reply is the suite's business.
"""

import base64
import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blip3o import settings
from blip3o.errors import Blip3oError, ConfigError, ServiceError, one_line
from blip3o.evaluate.judges.faults import SHOWN_CHARS, Kind, Trouble, parse, trouble_of, unsupported
from blip3o.evaluate.judges.options import TOKEN_FIELDS, JudgeOptions
from blip3o.evaluate.judges.replies import REFUSED, Reply, read_completion
from blip3o.evaluate.records import Judge

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # where the endpoint doesn't say how long; doubled each time
MOST_TRIES = 30  # of one request, however short the pauses
TRIES_UNREACHED = 3  # while the endpoint has not answered at all: its address may be wrong
TRIES_EMPTY = 3  # of a request whose completions hold no reply, where others do
DOUBTS = 3  # requests that are refused before any is accepted, until all are taken to be refused
KEY_VARIABLE = "BLIP3O_JUDGE_API_KEY"


@dataclass(frozen=True)
class Clock:
    """Time, for tests to replace."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


@dataclass
class _Met:
    """What a client has learned of its endpoint. Shared by its threads."""

    first: threading.Lock = field(default_factory=threading.Lock)
    reached: bool = False  # it answered, whatever it said
    accepted: bool = False  # it answered a request with a reply
    doubts: list[Trouble] = field(default_factory=list)  # refusals before it accepted any
    stopped: Blip3oError | None = None
    token_field: str = ""  # another one than the options', where it takes that alone
    limit: int = 0  # of tokens, that a reply has needed


@dataclass(frozen=True, kw_only=True)
class JudgeClient:
    """One judge: the endpoint's `base_url` (ending in /v1, say) and the name of its `model`.

    `prompt_version` names the words it is asked in and becomes part of the judge's version, as do the options that
    change replies. The key is that of $BLIP3O_JUDGE_API_KEY, if the endpoint wants one. Threads may share a client.
    """

    base_url: str
    model: str
    prompt_version: str
    options: JudgeOptions = JudgeOptions()
    first_pause_s: float = FIRST_PAUSE_S
    clock: Clock = Clock()
    _met: _Met = field(default_factory=_Met, compare=False, repr=False)

    @property
    def judge(self) -> Judge:
        """Who judges, as scores name it."""
        return Judge(id=self.model, version=self.options.version(self.prompt_version))

    def ask(self, text: str, images: Sequence[bytes]) -> Reply:
        """The reply to a text about PNG images (in this order, before the text).

        A reply that was cut, filtered or refused has a `fault`. Raises `ConfigError` if the endpoint refuses every
        request, `ServiceError` if it fails for longer than the options' patience or answers with something that is no
        chat completion.
        """
        content = [*({"type": "image_url", "image_url": {"url": data_url(image)}} for image in images)]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if not self._met.accepted:
            # One at a time until one is accepted: a wrong key costs one request, and none has to guess what others met.
            with self._met.first:
                if not self._met.accepted:
                    return self._asked(messages)
        return self._asked(messages)

    def finish(self) -> None:
        """Raises `ConfigError` if the endpoint refused what it was asked and accepted nothing."""
        if self._met.doubts and not self._met.accepted:
            raise self._refusal(self._met.doubts[0])

    def _asked(self, messages: list[dict[str, Any]]) -> Reply:
        if self._met.stopped is not None:
            raise type(self._met.stopped)(*self._met.stopped.args)
        try:
            return self._whole(messages)
        except Blip3oError as error:
            self._met.stopped = error
            raise

    def _whole(self, messages: list[dict[str, Any]]) -> Reply:
        """The reply, asked for with more tokens while it is cut."""
        limit = max(self.options.max_tokens, self._met.limit)
        cut: Reply | None = None
        while True:
            found = self._patient(messages, limit)
            if isinstance(found, Trouble):
                if cut is not None and found.kind is Kind.ITEM:  # it does not take as many tokens
                    return cut
                return self._fault(found)
            self._met.accepted = True
            if not found.cut:
                self._met.limit = max(self._met.limit, limit)
                return found
            if limit >= self.options.most_tokens:
                return found
            cut, limit = found, min(2 * limit, self.options.most_tokens)

    def _fault(self, trouble: Trouble) -> Reply:
        """The fault of an item that is refused. Raises `ConfigError` where that is a refusal of everything."""
        if trouble.kind is Kind.CONTENT:
            return Reply(fault=f"{REFUSED}{trouble.said}", refused=True)
        if trouble.kind is Kind.EVERYTHING or self._names_a_setting(trouble):
            raise self._refusal(trouble)
        if not self._met.accepted:
            self._met.doubts.append(trouble)
            if len(self._met.doubts) >= DOUBTS:
                raise self._refusal(trouble)
        return Reply(fault=f"the judge did not take the request: {trouble.said}")

    def _names_a_setting(self, trouble: Trouble) -> bool:
        return unsupported(trouble.words, (*TOKEN_FIELDS, "temperature", *self.options.extra)) is not None

    def _patient(self, messages: list[dict[str, Any]], limit: int) -> Reply | Trouble:
        """A reply, or a refusal; what may pass is waited out."""
        waited, pause, tries = 0.0, self.first_pause_s, 0
        while True:
            found = self._once(messages, limit)
            if isinstance(found, Reply) or found.kind is not Kind.PASSES:
                if isinstance(found, Trouble) and self._switched(found):
                    continue
                return found
            tries += 1
            if found.empty and self._met.accepted and tries >= TRIES_EMPTY:
                return replace(found, kind=Kind.ITEM)
            told = found.wait_s
            wait = pause if told is None else max(told, min(pause, FIRST_PAUSE_S / 10))
            unreached = not self._met.reached and tries >= TRIES_UNREACHED
            if unreached or tries >= MOST_TRIES or waited + wait > self.options.patience_s:
                raise self._gone(found, tries, waited, wait)
            self.clock.sleep(wait)
            waited, pause = waited + wait, min(2 * pause, LONGEST_PAUSE_S)

    def _switched(self, trouble: Trouble) -> bool:
        """Whether the endpoint wants the other name of the token field, and gets it from now on."""
        if self._met.token_field or unsupported(trouble.words, (self.options.token_field,)) is None:
            return False
        self._met.token_field = next(name for name in TOKEN_FIELDS if name != self.options.token_field)
        logger.warning("the judge does not take %s: asking with %s", self.options.token_field, self._met.token_field)
        return True

    def _once(self, messages: list[dict[str, Any]], limit: int) -> Reply | Trouble:
        body: dict[str, Any] = {"model": self.model, "messages": messages, **self.options.extra}
        body[self._met.token_field or self.options.token_field] = limit
        if self.options.temperature is not None:
            body["temperature"] = self.options.temperature
        try:
            access = {"Authorization": f"Bearer {_key()}"}
            status, headers, data = fetched(self._url, body, headers=access, timeout_s=self.options.timeout_s)
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # refused, reset, cut off, no such host
            return Trouble(kind=Kind.PASSES, said=one_line(error) or type(error).__name__)
        self._met.reached = True
        trouble = trouble_of(status, headers, data, now=self.clock.now())
        return self._read(data, limit) if trouble is None else trouble

    def _read(self, data: bytes, limit: int) -> Reply | Trouble:
        body = parse(data)
        reply = read_completion(body, limit=limit)
        if reply is not None and not reply.broken:
            return reply
        said = one_line(data.decode(errors="replace"), limit=SHOWN_CHARS)
        if reply is not None or (isinstance(body, dict) and "choices" in body and not body["choices"]):
            return Trouble(kind=Kind.PASSES, said=f"no chat completion: {said}", empty=True)
        if self._met.accepted:
            return Trouble(kind=Kind.ITEM, said=f"no chat completion: {said}")
        raise ServiceError(f"the judge at {self._url} answered with no chat completion: {said}")

    @property
    def _url(self) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"

    def _gone(self, trouble: Trouble, tries: int, waited: float, wait: float) -> ServiceError:
        asks = f", and asks to wait {trouble.wait_s:g} s" if trouble.wait_s else ""
        fix = "check its address, or start it" if not self._met.reached else "mend or start it"
        if waited + wait > self.options.patience_s and self._met.reached:
            fix = f"raise --judge-option patience={self.options.patience_s:g}"
        return ServiceError(
            f"the judge at {self._url} failed {tries} times in {waited:.0f} s of waiting ({trouble.said}{asks}): "
            f"{fix}, and judge again to go on"
        )

    def _refusal(self, trouble: Trouble) -> ConfigError:
        return ConfigError(f"the judge at {self._url} refused the request ({trouble.said}): {self._fix(trouble)}")

    def _fix(self, trouble: Trouble) -> str:
        named = unsupported(trouble.words, ("temperature", *TOKEN_FIELDS, *self.options.extra))
        if named == "temperature":
            return "leave it out with --judge-option temperature=none, which becomes part of the judge's version"
        if named is not None:
            return f"give other --judge-option values, it does not take {named}"
        if trouble.kind is Kind.ITEM:
            return "nothing it was asked was accepted: check the model, whether it takes images, and --judge-option"
        status = trouble.said.removeprefix("HTTP ")[:3]
        return _MOVED if status.startswith("3") else _STATUS_FIX.get(status, _ACCESS)


_MOVED = "it has moved: give the address that it redirects to"
_ACCESS = f"check the address, the model's name, ${KEY_VARIABLE} and the account's balance"
_STATUS_FIX = {
    "401": f"set ${KEY_VARIABLE} to a key of this endpoint",
    "402": "settle the account, waiting does not help",
    "403": f"check what the key in ${KEY_VARIABLE} may use",
    "404": "check the address (it ends in /v1, say) and the model's name",
    "429": "the account's quota is used up, waiting does not help: settle it, and judge again to go on",
}


def fetched(
    url: str, body: Mapping[str, Any] | None, *, headers: Mapping[str, str], timeout_s: float
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of an answer to a GET, or to a POST of `body` as JSON.

    Raises `OSError`, `http.client.HTTPException` where there is no answer, `UnicodeError` for a host that is no name.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return response.status, _lower(response.headers.items()), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _lower(error.headers.items()), _rest(error)


def _key() -> str:
    key = (settings.get(KEY_VARIABLE) or "none").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"${KEY_VARIABLE} holds characters that no key has: set it to the key alone")
    return key


def _lower(items: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in items}


def _rest(error: urllib.error.HTTPError) -> bytes:
    """The body of an error; the status in words where it is cut off."""
    try:
        return error.read()
    except (OSError, http.client.HTTPException):
        return str(error.reason).encode()


def data_url(png: bytes) -> str:
    """A PNG image as the URL that chat endpoints take."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
