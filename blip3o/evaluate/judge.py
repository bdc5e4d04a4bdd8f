"""Asks a vision-language model behind any OpenAI-compatible endpoint, and keeps its replies as they come.

Greedy (temperature 0). What fails on the way is tried three times in all; an endpoint that then still fails stops the
judging, to be gone on with later: a transport error is no opinion about a picture. Reading the reply is the suite's
business.
"""

import base64
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blip3o import settings
from blip3o.errors import ConfigError, ServiceError, one_line
from blip3o.evaluate.suite import Judge

TRIES = 3
FIRST_PAUSE_S = 1.0  # before the second try; doubled before the third
MAX_TOKENS = 512  # of a reply
KEY_VARIABLE = "BLIP3O_JUDGE_API_KEY"
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # HTTP statuses that trying again may mend


@dataclass(frozen=True, kw_only=True)
class JudgeClient:
    """One judge: the endpoint's `base_url` (ending in /v1, say) and the name of its `model`.

    `prompt_version` names the words it is asked in and becomes part of the judge's version. The key is that of
    $BLIP3O_JUDGE_API_KEY, if the endpoint wants one.
    """

    base_url: str
    model: str
    prompt_version: str
    timeout_s: float = 120.0
    first_pause_s: float = FIRST_PAUSE_S

    @property
    def judge(self) -> Judge:
        """Who judges, as scores name it."""
        return Judge(id=self.model, version=self.prompt_version)

    def ask(self, text: str, images: Sequence[bytes]) -> str:
        """The reply, verbatim, to a text about PNG images (in this order, before the text).

        Raises `ConfigError` if the endpoint refuses the request, `ServiceError` if it fails three times or answers with
        something that is no chat completion.
        """
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(image)}} for image in images
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        return self._reply(self._posted(json.dumps(body).encode()))

    def _posted(self, body: bytes) -> bytes:
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {settings.get(KEY_VARIABLE, 'none')}",
        }
        request = urllib.request.Request(url, data=body, headers=headers)
        pause = self.first_pause_s
        for number in range(1, TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    return response.read()
            except urllib.error.HTTPError as error:
                cause = f"HTTP {error.code}: {error_text(error)}"
                if error.code not in _PASSING:
                    raise ConfigError(f"the judge at {url} refused the request ({cause})") from error
            except (OSError, http.client.HTTPException) as error:
                cause = str(error) or type(error).__name__
            if number < TRIES:
                time.sleep(pause)
                pause *= 2
        raise ServiceError(f"the judge at {url} failed {TRIES} times ({cause}): start it and judge again to go on")

    def _reply(self, data: bytes) -> str:
        try:
            content = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ServiceError(
                f"the judge at {self.base_url} answered with no chat completion: {_line(data)}"
            ) from error
        if content is None:  # a model that refuses or only reasons: said nothing, which no parser takes for a grade
            return ""
        if not isinstance(content, str):
            raise ServiceError(f"the judge at {self.base_url} answered with no text: {_line(data)}")
        return content


def data_url(png: bytes) -> str:
    """A PNG image as the URL that chat endpoints take."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def error_text(error: urllib.error.HTTPError) -> str:
    """What the server says of an error, in a line; its status in words where that is cut off."""
    try:
        return _line(error.read())
    except (OSError, http.client.HTTPException):
        return str(error.reason)


def _line(data: bytes) -> str:
    return one_line(data.decode(errors="replace"), limit=300)
