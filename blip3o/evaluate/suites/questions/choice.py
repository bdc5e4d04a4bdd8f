"""Multiple choice (MMBench, SEED-Bench, RealWorldQA): an option's letter or exact words, without guessing. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from blip3o.data.text.normalise import normalise
from blip3o.errors import DataError
from blip3o.evaluate.judges.replies import answer
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites.parsing import text_list
from blip3o.evaluate.suites.questions.common import accuracy_score, read_questions, replies
from blip3o.evaluate.suites.suite import Suite, mean

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


BEYOND = 100  # characters that are read after a word like "answer", in addition to the length of an option
_MARKS = r"\s*_`\"'"  # spaces and Markdown around a letter
_LETTER = re.compile(rf"[{_MARKS}(\[<]*([A-Za-z])([{_MARKS})\]>.:,!-]*)")
_CUE = re.compile(
    rf"\b(?:answer|option|choice|choose|pick|select)\b(?:[{_MARKS}]*(?:is|would be|must be|should be|to be)\b)?"
    rf"(?:[{_MARKS}]*\b(?:option|choice|letter)\b)?[{_MARKS}]*[:=]?[{_MARKS}]*",
    re.IGNORECASE,
)
_TRANSLATED = re.compile(  # "answer" in other languages, and what comes between it and the letter
    rf"(?:答案|选项|選項|答え|正解|정답|应选|應選|选择|選擇|[选選](?=[\s(*]*[A-Za-z])|"
    rf"\b(?:réponse|antwort|respuesta|risposta|resposta|ответ)\b)"
    rf"(?:[{_MARKS}]*(?:是|为|為|应为|選|选|は|은|는|(?:est|ist|es|è|é|lautet)\b(?:\s+(?:la|die|l'option|option)\b)?))?"
    rf"[{_MARKS}]*[:=—–-]?[{_MARKS}]*",
    re.IGNORECASE,
)
_WIDE = str.maketrans("（）［］：，。．、！", "()[]:,..,!") | {0xFF21 + n: letter for n, letter in enumerate(LETTERS)}
# "B, no wait, C": the first letter is not the answer.
_RETRACTED = re.compile(r"[\s,.;:—–-]*\b(?:(?i:no|wait|actually|sorry|correction|i mean|hmm))\b.*?\b[A-Z]\b", re.DOTALL)
# A letter that is emphasised somewhere in a longer reply: "(B)" or "**B**".
_MARKED = re.compile(r"\(([A-Z])\)|\*\*\(?([A-Z])\)?[.:]?\*\*")
_ANOTHER = re.compile(r"(?:or|and|nor|&|/|,|\+|then|not)?[\s*_`\"'(\[]*([A-Z])(?![\w'])")  # directly after a letter
_REASON = re.compile(r"(?:because|since|as it|is (?:the )?(?:correct|right|answer|best))\b", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:a|an|the)\s+", re.IGNORECASE)


def chosen(reply: str, options: Sequence[str]) -> int | None:
    """The number of the option that a reply names, or None.

    A reply names an option by its letter only, or followed by punctuation or the option's words ("B", "(b)", "**B**",
    "B. a dog", "B a dog"), by its words only, or by either after "answer", "option", "choice" and the like ("The answer
    is B."). A letter that starts a word, an option that does not exist, and a reply that names or fits two options name
    none. Where this parser finds nothing, the official ones take the first letter or choose at random.
    """
    text = answer(reply)
    if text is None:
        return None
    text = re.sub(r"\\[(\[]\s*([A-Z])\s*\\[)\]]|\$([A-Z])\$", r"\1\2", text.translate(_WIDE))
    # 1. The reply starts with the answer. 2. It follows a word such as "answer". 3. One letter is emphasised.
    direct = _named(text, options)
    if direct is not None or _several(text):
        return direct
    longest = max(map(len, options), default=0) + BEYOND
    cues = [match.end() for cue in (_CUE, _TRANSLATED) for match in cue.finditer(text)]
    tails = [text[end : end + longest] for end in cues]
    if any(map(_several, tails)):
        return None
    # Both the whole tail and its first sentence are tried: "B. It barks." names B only up to the period.
    cued = {_named(part, options) for tail in tails for part in (tail, _sentence(tail))} - {None}
    if not cued:
        marked = {LETTERS.index(first or second) for first, second in _MARKED.findall(text)}
        cued = {number for number in marked if number < len(options)} if len(marked) == 1 else set()
    return cued.pop() if len(cued) == 1 else None


def _sentence(text: str) -> str:
    return re.split(r"[.;\n]", text.strip(), maxsplit=1)[0]


def _named(text: str, options: Sequence[str]) -> int | None:
    """The option whose letter starts a text, or whose words are the text."""
    # Words come before letters: with an option "a cat", the reply "A cat" is that option and not option A.
    same = _same(text, options)
    if same:
        return same[0] if len(same) == 1 else None
    match = _LETTER.match(text)
    number = LETTERS.index(match.group(1).upper()) if match else len(options)
    if match is None or number >= len(options):
        return None
    rest = text[match.end() :]
    if number in _same(rest, options):
        return number
    other = _ANOTHER.match(rest) or _RETRACTED.match(rest)
    return number if _stands(match.group(2), rest) and not other else None


def _same(text: str, options: Sequence[str]) -> list[int]:
    """The options with the words of a text: compared by `normalise`, or else also without punctuation and articles."""
    words = normalise(text)
    exact = [number for number, option in enumerate(options) if normalise(option) == words]
    bare = _bare(text)
    return exact or [number for number, option in enumerate(options) if bare and _bare(option) == bare]


def _bare(text: str) -> str:
    return normalise(_ARTICLE.sub("", text.strip(" \t\n*_`\"'.!"), count=1))


def _stands(marks: str, rest: str) -> bool:
    """Whether a letter is an answer: by itself, separated from the rest by punctuation, or followed by its reason."""
    closing = marks.strip()
    parted = closing and (marks != marks.rstrip() or closing[-1] in ')]>*`"')  # not as in "B.5", "B-side", "I'm"
    return not rest or bool(parted) or "\n" in marks or (marks != "" and _REASON.match(rest) is not None)


def _several(text: str) -> bool:
    """Whether a text starts with a letter and then names another, as in "A or B"."""
    match = _LETTER.match(text)
    return match is not None and match.group(2) != "" and _ANOTHER.match(text[match.end() :]) is not None


class Choice(Suite):
    """Questions with options: {id, image, question, options, answer (a letter), category, group (both optional)}.

    Questions of one `group` are rotations of each other; the group counts as one question, right if all of them are.
    """

    name = "choice"
    protocol = "direct: option letter or exact option, all rotations right"
    samples = 1
    kind: Literal["draw", "ask"] = "ask"

    def items(self, source: str | None) -> tuple[Item, ...]:
        """The questions of a local file; options are listed below the question unless the record has a `prompt`.

        Raises `ConfigError`, and `DataError` for options that are no texts, or an answer that is no letter of one.
        """
        rows = read_questions(self.name, source, ("options", "answer"))
        for number, row in enumerate(rows, start=1):
            where = f"{source}, record {number}"
            options = text_list(row["options"], f"{where}: options")
            if row["answer"] not in tuple(LETTERS[: len(options)]):
                raise DataError(f"{where}: the answer is '{row['answer']}', expected an option's letter")
        return tuple(Item(key=row["id"], prompt=_prompt(row), record=row, samples=1) for row in rows)

    def score(self, items: Sequence[Item], judgements: Iterable[Judgement], judge: Judge) -> Score:
        """The share of right groups (a question without a group is its own), from judgements {"reply": str}.

        `details`: `plain` is the share of right questions, `chance` its chance level, and `n_unparsed` the number of
        replies that name no option and count as wrong.
        """
        answered, coverage = replies(items, judgements)
        picks = [(item, chosen(reply, item.record["options"])) for item, reply in answered]
        scored = [(item, float(pick == LETTERS.index(item.record["answer"]))) for item, pick in picks]
        groups: dict[tuple[str, str], list[float]] = defaultdict(list)
        for item, value in scored:
            groups[("group", str(item.record["group"])) if "group" in item.record else ("", item.key)].append(value)
        details = {
            "plain": mean(value for _, value in scored),
            "chance": mean(1 / len(item.record["options"]) for item, _ in scored),
            "n_unparsed": sum(pick is None for _, pick in picks),
        }
        units = [min(values) for values in groups.values()]
        return accuracy_score(self, scored, coverage, units=units, details=details)


def _prompt(row: dict[str, Any]) -> str:
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, row["options"], strict=False)]
    return row.get("prompt") or "\n".join([row["question"], *listed])
