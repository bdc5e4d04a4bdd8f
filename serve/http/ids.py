"""Ids of requests: one for the reply, and for the logs of the proxy and of the ingress."""

import re
import secrets

ID = "x-request-id"
_FORM = re.compile(r"req_[0-9a-f]{24}")


def new_id() -> str:
    """An id."""
    return f"req_{secrets.token_hex(12)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of `new_id`, so that it says nothing that its sender wanted to say."""
    return _FORM.fullmatch(text) is not None
