"""Parses chat completions: the answer without the model's reasoning, or the reason why there is none. Pure.

A grade that a model merely considers is no grade, so the text of its reasoning never reaches a parser. A reply that was
truncated, filtered or interrupted is no answer either, whatever it contains.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

REFUSED = "refused by the judge: "  # starts the fault of a content refusal; such an item is not judged again

# Markers of reasoning, as models and gateways write them: tags (also HTML-escaped), and special tokens of some models.
_LT, _GT = "(?:<|&lt;)", "(?:>|&gt;)"
_TAG = r"(?:[\w.-]*[:_])?(?:think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratchpad)(?:_\w+)?"
_OPENS = re.compile(
    rf"{_LT}\s*{_TAG}(?:\s[^<>]*)?{_GT}|◁think▷|\[think\]|<\|channel>thought|<unused94>|<\|inner_prefix\|>"
    r"|<\|(?:begin|start)_(?:of_)?(?:thought|think|thinking)\|>|<\|think(?:ing)?\|>",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    rf"{_LT}\s*/\s*{_TAG}\s*{_GT}|◁/think▷|\[/think\]|<channel\|>|<unused95>|<\|inner_suffix\|>"
    r"|<\|end_(?:of_)?(?:thought|think|thinking)\|>|<\|/think(?:ing)?\|>",
    re.IGNORECASE,
)
# A model that was told not to think may still emit an empty tag, which opens nothing.
_EMPTY = re.compile(rf"<\s*{_TAG}\s*/>", re.IGNORECASE)
# Sections that a requested format may place before or after the answer; only `think` and its like always precede it.
_SECTION = re.compile(r"<(/?)(reason|reasoning|reflection|analysis|scratchpad)>", re.IGNORECASE)
# How some chat front ends fold the reasoning away.
_DETAILS = re.compile(r"<details\s[^<>]{0,99}reasoning[^<>]{0,99}>.*?(?:</details>|$)", re.IGNORECASE | re.DOTALL)
# The channels of gpt-oss, with their marker tokens or with only the markers' letters.
_CHANNEL = re.compile(r"<\|(?:channel|start)\|>")
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"<\|(?:end|return|start|call|channel)\|>")
_BARE_CHANNEL = re.compile(r"\s*(?:assistant)?analysis(?=[A-Z\"'(\d])")
_BARE_FINAL = "assistantfinal"
# The headings of Granite, which has no tags.
_THOUGHT_LINE, _RESPONSE_LINE = "Here is my thought process:", "Here is my response:"
_TOKEN = re.compile(r"<\|[A-Za-z_]+\|>|</s>|<s>|<(?:end|start)_of_turn>|<eos>|<pad>")
# Wrappers of the answer itself.
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_BOXED = re.compile(r"\$*\\boxed\{\s*(?:\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}|([^{}]*))\s*\}\$*")

# The end of a reply by its finish_reason: exact words for a normal end, and fragments for the others, because every
# provider has its own words. The first pattern that matches counts.
End = Literal["done", "truncated", "refused", "broken", "unknown"]
_DONE = frozenset(
    "stop eos eos_token end_turn stop_sequence stop_token finish finished finish_reason_stop complete completed end "
    "endoftext done null none finish_reason_unspecified".split()
)
_ENDS: tuple[tuple[End, re.Pattern[str]], ...] = (
    (
        "refused",
        re.compile("filter|safety|refus|sensitive|recitation|blocklist|prohibited|spii|guardrail|moderat|policy"),
    ),
    ("truncated", re.compile("length|max|token|limit|context|budget|truncat|incomplete")),
    ("broken", re.compile("error|insufficient|abort|cancel|timeout|network|overload|interrupt|unavailable")),
)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A judge's reply: `text` is its answer without reasoning, `verbatim` its words as they came.

    With a `fault` there is no answer: the reply was `truncated` at the token limit, `refused` for its content, or
    `broken` off on the way, which asking again may fix.
    """

    text: str = ""
    verbatim: str = ""
    fault: str = ""
    truncated: bool = False
    refused: bool = False
    broken: bool = False


def is_refusal(fault: str) -> bool:
    """Whether a fault is a refusal of the content."""
    return fault.startswith(REFUSED)


def answer(text: str) -> str | None:
    """A reply without its reasoning; None where it ends within the reasoning.

    Reasoning ends at the last closing marker, whether or not it was opened. Text without markers is returned unchanged.
    """
    # Channels enclose everything else, and headings may enclose tags, so the outermost form is stripped first.
    for step in (_after_channels, _after_headings, _after_thoughts):
        found = step(text)
        if found is None:
            return None
        text = found
    return _unwrapped(text)


def _after_channels(text: str) -> str | None:
    if _CHANNEL.search(text):
        finals = list(_FINAL.finditer(text))
        return _CHANNEL_END.split(text[finals[-1].end() :])[0] if finals else None
    if _BARE_CHANNEL.match(text):
        _, found, after = text.rpartition(_BARE_FINAL)
        return after if found else None
    return text


def _after_headings(text: str) -> str | None:
    if _THOUGHT_LINE not in text:
        return text
    _, found, after = text.rpartition(_RESPONSE_LINE)
    return after if found else None


def _after_thoughts(text: str) -> str | None:
    text = _DETAILS.sub("", _without_sections(_EMPTY.sub("", text)))
    # Templates often open the reasoning in the prompt, so a closing marker alone is enough. An opening one after it
    # means that the reply ends while the model is thinking again.
    closed = max((match.end() for match in _CLOSES.finditer(text)), default=0)
    return None if _OPENS.search(text, closed) else text[closed:]


def _without_sections(text: str) -> str:
    kept, start, opened = [], 0, None
    for tag in _SECTION.finditer(text):
        if opened is None and not tag[1]:
            opened = tag
        elif opened is not None and tag[1] and tag[2].lower() == opened[2].lower():
            kept.append(text[start : opened.start()])
            start, opened = tag.end(), None
    return "".join([*kept, text[start:]])


def _unwrapped(text: str) -> str:
    """The text without special tokens and answer markers: `<answer>B</answer>` and `\\boxed{B}` become B."""
    text = _BOXED.sub(lambda match: match.group(1) or match.group(2) or "", _TOKEN.sub("", text))
    answers = _ANSWER.findall(text)
    # Several answers are left in place, so that the suite's parser sees that the reply is ambiguous.
    return answers[0] if len(answers) == 1 else text


def content_text(content: object) -> str | None:
    """The text of a message's content: a string, a list of parts (of which only text parts count) or null, which is "".

    None for content of another kind. Halves of surrogate pairs, which no file can contain, become question marks.
    """
    if content is None:
        return ""
    if not isinstance(content, str | Mapping | list):
        return None
    parts = content if isinstance(content, list) else [content]
    return writable("".join(map(_part_text, parts)))


def writable(text: str) -> str:
    """A text that UTF-8 can encode: a reply truncated within a character may end with half a surrogate pair."""
    return text.encode(errors="replace").decode()


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type", "text") not in ("text", "output_text"):
        return ""
    text = part.get("text")
    text = text.get("value") if isinstance(text, Mapping) else text
    return text if isinstance(text, str) else ""


def ending(reason: str) -> End:
    """How a reply ended, by the `finish_reason` of any server."""
    name = reason.strip().lower()
    if name in _DONE or re.fullmatch(r"</?s>|<\|\w+\|>|", name):
        return "done"
    return next((end for end, pattern in _ENDS if pattern.search(name)), "unknown")


def read_completion(body: object, *, limit: int) -> Reply | None:
    """The reply in a chat completion that was requested with `limit` tokens; None if the body is no chat completion."""
    choice = _first_choice(body)
    message = choice.get("message", choice) if choice is not None else None
    if choice is None or not isinstance(message, Mapping):
        return None
    verbatim = content_text(message.get("content", choice.get("text")))
    if verbatim is None:
        return None
    refusal = next(_refusals(message), None)
    if refusal is not None:
        return Reply(verbatim=verbatim, fault=f"{REFUSED}{_short(refusal)}", refused=True)
    reasons = [writable(value) for value in map(choice.get, _REASONS) if isinstance(value, str)]
    # Some servers report no reason at all: a reply that used every token it was allowed was truncated.
    if not reasons and _tokens(body) >= limit:
        reasons = ["length"]
    return _read(verbatim, reasons, limit)


_REASONS = ("finish_reason", "native_finish_reason", "stop_reason")


def _read(verbatim: str, reasons: list[str], limit: int) -> Reply:
    # Only the first reason has to be known. Others may be the stop text itself, or a provider's own word.
    known = [reason for place, reason in enumerate(reasons) if place == 0 or ending(reason) != "unknown"]
    ends = {ending(reason): reason for reason in reversed(known)}
    if "refused" in ends:
        return Reply(verbatim=verbatim, fault=f"{REFUSED}finish_reason {ends['refused']}", refused=True)
    if "broken" in ends:
        return Reply(verbatim=verbatim, fault=f"broken off: finish_reason {ends['broken']}", broken=True)
    if "truncated" in ends:
        return Reply(
            verbatim=verbatim, fault=f"truncated at {limit} tokens: finish_reason {ends['truncated']}", truncated=True
        )
    if "unknown" in ends:
        return Reply(verbatim=verbatim, fault=f"finish_reason {ends['unknown']!r} is not known as a reply's end")
    text = answer(verbatim)
    return (
        Reply(verbatim=verbatim, fault="ends within its reasoning")
        if text is None
        else Reply(verbatim=verbatim, text=text)
    )


def _first_choice(body: object) -> Mapping[str, Any] | None:
    choices = body.get("choices") if isinstance(body, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, Mapping) else None


def _refusals(message: Mapping[str, Any]) -> Iterator[str]:
    parts = message.get("content")
    holders = [message, *(part for part in (parts if isinstance(parts, list) else []) if isinstance(part, Mapping))]
    for holder in holders:
        if isinstance(holder.get("refusal"), str) and holder["refusal"].strip():
            yield holder["refusal"]


def _tokens(body: object) -> int:
    usage = body.get("usage") if isinstance(body, Mapping) else None
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return tokens if type(tokens) is int else 0


def _short(text: str) -> str:
    line = writable(" ".join(text.split()))
    return line if len(line) <= 200 else f"{line[:199]}…"
