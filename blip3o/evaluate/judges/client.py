"""Asks a vision-language model behind any OpenAI-compatible endpoint, and returns its replies verbatim.

Replies are greedy (temperature 0) unless an option says otherwise. The client retries transient faults for as long as
the endpoint asks and the patience allows. An endpoint that still fails then stops the judging, which can be resumed: a
transport error is no opinion about an image. A refusal of one item's content is a fault of that item; a refusal of
every request stops the judging. Each suite parses the replies itself.
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
from blip3o.evaluate.judges.faults import SHOWN_CHARS, EndpointFault, FaultKind, fault_of, parse_body, unsupported_field
from blip3o.evaluate.judges.options import TOKEN_FIELDS, JudgeOptions
from blip3o.evaluate.judges.replies import REFUSED, Reply, read_completion
from blip3o.evaluate.records import Judge

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # where the endpoint does not say how long to wait; doubled each time
MAX_TRIES = 30  # of one request, however short the pauses
TRIES_UNREACHED = 3  # while the endpoint has never answered: its address may be wrong
TRIES_EMPTY = 3  # of a request whose completions contain no reply, once another request got one
DOUBTS = 3  # refused requests before any is accepted, until the endpoint is assumed to refuse everything
KEY_VARIABLE = "BLIP3O_JUDGE_API_KEY"


@dataclass(frozen=True)
class Clock:
    """The time; tests replace it."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)


@dataclass
class _EndpointState:
    """What a client has learned about its endpoint. Shared by its threads."""

    first: threading.Lock = field(default_factory=threading.Lock)
    reached: bool = False  # it has answered, whatever it said
    accepted: bool = False  # it has answered a request with a reply
    doubts: list[EndpointFault] = field(default_factory=list)  # refusals before it accepted any request
    stopped: Blip3oError | None = None
    token_field: str = ""  # where it takes only the other one than the options'
    limit: int = 0  # the most tokens that a reply has needed


@dataclass(frozen=True, kw_only=True)
class JudgeClient:
    """One judge: the endpoint's `base_url` (for example one that ends in /v1) and the name of its `model`.

    `prompt_version` identifies the wording of the requests and becomes part of the judge's version, as do the options
    that change replies. $BLIP3O_JUDGE_API_KEY holds the key, if the endpoint wants one. Threads may share a client.
    """

    base_url: str
    model: str
    prompt_version: str
    options: JudgeOptions = JudgeOptions()
    first_pause_s: float = FIRST_PAUSE_S
    clock: Clock = Clock()
    _state: _EndpointState = field(default_factory=_EndpointState, compare=False, repr=False)

    @property
    def judge(self) -> Judge:
        """The judge's identity in scores."""
        return Judge(id=self.model, version=self.options.version(self.prompt_version))

    def ask(self, text: str, images: Sequence[bytes]) -> Reply:
        """The reply to a text about PNG images (in this order, before the text).

        A reply that was truncated, filtered or refused has a `fault`. Raises `ConfigError` if the endpoint refuses
        every request, `ServiceError` if it fails for longer than the options' patience or answers with anything but a
        chat completion.
        """
        content = [*({"type": "image_url", "image_url": {"url": data_url(image)}} for image in images)]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if not self._state.accepted:
            # One at a time until one is accepted, so that a wrong key costs only one request.
            with self._state.first:
                if not self._state.accepted:
                    return self._asked(messages)
        return self._asked(messages)

    def finish(self) -> None:
        """Raises `ConfigError` if the endpoint refused requests and accepted none."""
        if self._state.doubts and not self._state.accepted:
            raise self._refusal(self._state.doubts[0])

    def _asked(self, messages: list[dict[str, Any]]) -> Reply:
        # Other threads stop at once: the error of one request is the error of the endpoint.
        if self._state.stopped is not None:
            raise type(self._state.stopped)(*self._state.stopped.args)
        try:
            return self._whole(messages)
        except Blip3oError as error:
            self._state.stopped = error
            raise

    def _whole(self, messages: list[dict[str, Any]]) -> Reply:
        """The reply; while it is truncated, it is requested again with more tokens."""
        limit = max(self.options.max_tokens, self._state.limit)
        truncated: Reply | None = None
        while True:
            found = self._patient(messages, limit)
            if isinstance(found, EndpointFault):
                # With the higher limit the request is refused: the truncated reply is the best that there is.
                if truncated is not None and found.kind is FaultKind.REQUEST:  # the endpoint refuses this many tokens
                    return truncated
                return self._fault(found)
            self._state.accepted = True
            if not found.truncated:
                # Later requests start with the limit that this reply needed, instead of paying twice each time.
                self._state.limit = max(self._state.limit, limit)
                return found
            if limit >= self.options.most_tokens:
                return found
            truncated, limit = found, min(2 * limit, self.options.most_tokens)

    def _fault(self, fault: EndpointFault) -> Reply:
        """The fault of a refused item. Raises `ConfigError` if the endpoint refuses everything."""
        if fault.kind is FaultKind.CONTENT:
            return Reply(fault=f"{REFUSED}{fault.message}", refused=True)
        if fault.kind is FaultKind.FATAL or self._names_a_setting(fault):
            raise self._refusal(fault)
        if not self._state.accepted:
            self._state.doubts.append(fault)
            if len(self._state.doubts) >= DOUBTS:
                raise self._refusal(fault)
        return Reply(fault=f"the judge did not take the request: {fault.message}")

    def _names_a_setting(self, fault: EndpointFault) -> bool:
        return unsupported_field(fault.words, (*TOKEN_FIELDS, "temperature", *self.options.extra)) is not None

    def _patient(self, messages: list[dict[str, Any]], limit: int) -> Reply | EndpointFault:
        """A reply or a refusal; transient faults are retried until the patience is used up."""
        waited, pause, tries = 0.0, self.first_pause_s, 0
        while True:
            found = self._once(messages, limit)
            if isinstance(found, Reply) or found.kind is not FaultKind.TRANSIENT:
                if isinstance(found, EndpointFault) and self._switched(found):
                    continue
                return found
            tries += 1
            if found.empty and self._state.accepted and tries >= TRIES_EMPTY:
                return replace(found, kind=FaultKind.REQUEST)
            asked = found.wait_s
            # An endpoint that asks to wait 0 s would otherwise be called in a tight loop.
            wait = pause if asked is None else max(asked, min(pause, FIRST_PAUSE_S / 10))
            unreached = not self._state.reached and tries >= TRIES_UNREACHED
            if unreached or tries >= MAX_TRIES or waited + wait > self.options.patience_s:
                raise self._gone(found, tries, waited, wait)
            self.clock.sleep(wait)
            waited, pause = waited + wait, min(2 * pause, LONGEST_PAUSE_S)

    def _switched(self, fault: EndpointFault) -> bool:
        """Whether the endpoint wants the token field under its other name, which it gets from now on."""
        if self._state.token_field or unsupported_field(fault.words, (self.options.token_field,)) is None:
            return False
        self._state.token_field = next(name for name in TOKEN_FIELDS if name != self.options.token_field)
        logger.warning("the judge does not take %s: asking with %s", self.options.token_field, self._state.token_field)
        return True

    def _once(self, messages: list[dict[str, Any]], limit: int) -> Reply | EndpointFault:
        body: dict[str, Any] = {"model": self.model, "messages": messages, **self.options.extra}
        body[self._state.token_field or self.options.token_field] = limit
        if self.options.temperature is not None:
            body["temperature"] = self.options.temperature
        try:
            access = {"Authorization": f"Bearer {_key()}"}
            status, headers, data = fetch(self._url, body, headers=access, timeout_s=self.options.timeout_s)
        except (
            OSError,
            http.client.HTTPException,
            UnicodeError,
        ) as error:  # connection refused or reset, truncated answer, no such host
            return EndpointFault(kind=FaultKind.TRANSIENT, message=one_line(error) or type(error).__name__)
        self._state.reached = True
        fault = fault_of(status, headers, data, now=self.clock.now())
        return self._read(data, limit) if fault is None else fault

    def _read(self, data: bytes, limit: int) -> Reply | EndpointFault:
        body = parse_body(data)
        reply = read_completion(body, limit=limit)
        if reply is not None and not reply.broken:
            return reply
        content = one_line(data.decode(errors="replace"), limit=SHOWN_CHARS)
        # An empty or interrupted completion may succeed next time. JSON of another kind means that this is no chat API,
        # unless the endpoint has given replies before.
        if reply is not None or (isinstance(body, dict) and "choices" in body and not body["choices"]):
            return EndpointFault(kind=FaultKind.TRANSIENT, message=f"no chat completion: {content}", empty=True)
        if self._state.accepted:
            return EndpointFault(kind=FaultKind.REQUEST, message=f"no chat completion: {content}")
        raise ServiceError(f"the judge at {self._url} answered with no chat completion: {content}")

    @property
    def _url(self) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"

    def _gone(self, fault: EndpointFault, tries: int, waited: float, wait: float) -> ServiceError:
        asks = f", and asks to wait {fault.wait_s:g} s" if fault.wait_s else ""
        fix = "check its address, or start it" if not self._state.reached else "fix or start it"
        if waited + wait > self.options.patience_s and self._state.reached:
            fix = f"raise --judge-option patience={self.options.patience_s:g}"
        return ServiceError(
            f"the judge at {self._url} failed {tries} times in {waited:.0f} s of waiting ({fault.message}{asks}): "
            f"{fix}, and judge again to resume"
        )

    def _refusal(self, fault: EndpointFault) -> ConfigError:
        return ConfigError(f"the judge at {self._url} refused the request ({fault.message}): {self._fix(fault)}")

    def _fix(self, fault: EndpointFault) -> str:
        named = unsupported_field(fault.words, ("temperature", *TOKEN_FIELDS, *self.options.extra))
        if named == "temperature":
            return "leave it out with --judge-option temperature=none, which becomes part of the judge's version"
        if named is not None:
            return f"give other --judge-option values, it does not take {named}"
        if fault.kind is FaultKind.REQUEST:
            return "nothing it was asked was accepted: check the model, whether it takes images, and --judge-option"
        status = fault.message.removeprefix("HTTP ")[:3]
        return _MOVED if status.startswith("3") else _STATUS_FIX.get(status, _ACCESS)


_MOVED = "it has moved: give the address that it redirects to"
_ACCESS = f"check the address, the model's name, ${KEY_VARIABLE} and the account's balance"
_STATUS_FIX = {
    "401": f"set ${KEY_VARIABLE} to a key of this endpoint",
    "402": "settle the account, waiting does not help",
    "403": f"check what the key in ${KEY_VARIABLE} may use",
    "404": "check the address (it ends in /v1, say) and the model's name",
    "429": "the account's quota is used up, waiting does not help: settle it, and judge again to resume",
}


def fetch(
    url: str, body: Mapping[str, Any] | None, *, headers: Mapping[str, str], timeout_s: float
) -> tuple[int, dict[str, str], bytes]:
    """The status, headers (names in lower case) and body of the answer to a GET, or to a POST of `body` as JSON.

    Raises `OSError` or `http.client.HTTPException` without an answer, `UnicodeError` for an invalid host name.
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
        raise ConfigError(f"${KEY_VARIABLE} holds characters that no key has: set it to the key only")
    return key


def _lower(items: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in items}


def _rest(error: urllib.error.HTTPError) -> bytes:
    """The body of an error; the status in words where the body is truncated."""
    try:
        return error.read()
    except (OSError, http.client.HTTPException):
        return str(error.reason).encode()


def data_url(png: bytes) -> str:
    """A PNG image as the URL that chat endpoints take."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
