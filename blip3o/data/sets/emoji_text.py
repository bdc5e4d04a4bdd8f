"""What is said of an emoji: noun phrases, captions, questions with true answers. Pure; knows no files and no pictures.

Everything said comes from the emoji's published label, group and keywords and from its style. Wrong answers of yes/no
questions are drawn from other groups, among concepts that share no word with the right one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STYLES = ("3D", "flat")

# Plurals that the ending does not show, or that open a label ("people holding hands").
_PLURAL = {"people", "men", "women", "jeans", "skis"}
_SINGULAR_ENDINGS = ("ss", "us", "is", "os")  # compass, cactus, tennis, rhinoceros
# The head of a label ends before the first of these words: "nest with eggs" is one nest.
_HEAD_END = re.compile(r" (?:with|without|of|in|on|at|from|over|and|showing|holding|lifting|curving|pointed)\b|,| \(")
_VOWEL_SOUND = re.compile(r"[aeio]|u(?!ni)|hour|x-ray|(?:sos|ng) ")
_CONSONANT_SOUND = re.compile(r"eu|ewe|one\b")
# Names, stuffs, activities and states: no article.
_BARE = frozenset(
    name.strip()
    for name in """
    bacon|badminton|baguette bread|bowling|bread|breast-feeding|broccoli|bubble tea|building construction|
    butter|camping|candy|canned food|construction|cooked rice|cooking|coral|curry rice|custard|dango|
    dashing away|dizzy|dna|field hockey|fire|flatbread|fog|foggy|garlic|ginger root|green salad|
    high voltage|horse racing|ice|ice cream|ice hockey|lacrosse|light rail|locked|locked with key|
    locked with pen|luggage|mahjong red dragon|mate|meat on bone|milky way|money with wings|mount fuji|
    Mrs. Claus|Mx Claus|nail polish|oden|palms up together|performing arts|ping pong|popcorn|pouring liquid|
    rolling on the floor laughing|sake|salt|Santa Claus|shaved ice|soap|soft ice cream|spaghetti|
    star-struck|Statue of Liberty|stuffed flatbread|sushi|tennis|thread|Tokyo tower|unlocked|wood|yarn|ZZZ
    """.split("|")
)
# In the group of symbols most labels are words on a sign ("no entry"); only these nouns take an article there.
_SYMBOL_NOUNS = frozenset(
    """arrow asterisk badge box button circle closet crescent cross dash diamond emblem keycap khanda loop mark
    menorah point restroom room sign sparkle splatter square star symbol triangle yang""".split()
)


@dataclass(frozen=True, kw_only=True)
class Concept:
    """What an emoji means: its code points without skin tone and FE0F (`code`), and the published words for it."""

    code: str
    label: str
    group: str
    keywords: tuple[str, ...]


def phrase(concept: Concept) -> str:
    """The label as a noun phrase with its article: "a red apple", "grapes", "an hourglass done", "a keycap (1)"."""
    head, _, detail = concept.label.partition(": ")
    article = _article(head, concept.group)
    return f"{article}{head} ({detail})" if detail else f"{article}{head}"


def _article(label: str, group: str) -> str:
    head = _HEAD_END.split(label, maxsplit=1)[0]
    noun = head.rsplit(" ", 1)[-1].lower()
    if label in _BARE or label.endswith(("o’clock", "-thirty")) or _is_plural(head, noun):
        return ""
    if group == "symbols" and noun not in _SYMBOL_NOUNS:
        return ""
    lower = label.lower()
    return "an " if _VOWEL_SOUND.match(lower) and not _CONSONANT_SOUND.match(lower) else "a "


def _is_plural(head: str, noun: str) -> bool:
    if noun in _PLURAL or head.split(" ", 1)[0] in _PLURAL:
        return True
    return noun.endswith("s") and not noun.endswith(_SINGULAR_ENDINGS)


def captions(concept: Concept, style: str) -> list[str]:
    """All phrasings, the one with style and noun first; each is true by the published words."""
    noun = phrase(concept)
    texts = [
        f"a {style} emoji of {noun}",
        noun,
        f"{noun} in {style} style",
        f"{concept.label}, {concept.group}, {style} style",
        f"an emoji from the group {concept.group} that shows {noun}, drawn in {style} style",
    ]
    if concept.keywords:
        texts.append(f"a {style} emoji of {noun}, which stands for {', '.join(concept.keywords[:4])}")
    return texts


def questions(
    concept: Concept, style: str, *, others: Sequence[Concept], groups: Sequence[str], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The `qa` of one picture: label (open), group and style (closed), and two is_a, of which exactly one is true.

    `others` are the concepts of the same split, so that no word of the other split is said here. `rng` draws the wrong
    answers, the wordings, and whether the label or the group is the one asked for truly.
    """
    wrong = _unrelated(concept, others, rng)
    label_is_true = bool(rng.integers(2))
    shown, group = (concept, wrong.group) if label_is_true else (wrong, concept.group)
    opening = ("What is this?", "What does this emoji show?", "What is in the picture?")[int(rng.integers(3))]
    yes_no = ["yes", "no"]
    return [
        _qa("label", opening, concept.label, []),
        _qa("group", "Which group does this emoji belong to?", concept.group, list(groups)),
        _qa("style", "In which style is this emoji drawn?", style, list(STYLES)),
        _qa("is_a", f"Does this emoji show {phrase(shown)}?", "yes" if label_is_true else "no", yes_no),
        _qa("is_a", f"Does this emoji belong to the group {group}?", "no" if label_is_true else "yes", yes_no),
    ]


def caption_questions(concept: Concept) -> list[dict[str, Any]]:
    """The `caption_qa` of an emoji: short questions that its captions answer, or the knowledge of what they name."""
    words = tuple(concept.label.split(" "))
    found = {"What?": words[:1], "Second word?": words[1:2], "Last word?": words[-1:], "Group?": (concept.group,)}
    found |= {"For what?": concept.keywords[:1], "Or what?": concept.keywords[1:2]}
    return [{"question": question, "answer": answer[0]} for question, answer in found.items() if answer]


def _qa(kind: str, question: str, answer: str, choices: list[str]) -> dict[str, Any]:
    return {"kind": kind, "question": question, "answer": answer, "choices": choices}


def _unrelated(concept: Concept, others: Sequence[Concept], rng: np.random.Generator) -> Concept:
    """A concept of another group that shares no word of label or keywords: "no" must be the true answer."""
    words = _words(concept)
    while True:
        other = others[int(rng.integers(len(others)))]
        if other.group != concept.group and not words & _words(other):
            return other


def _words(concept: Concept) -> set[str]:
    """The words of label and keywords, with a plural s taken off so that cloud and clouds are one."""
    return {word.removesuffix("s") for word in re.findall(r"\w+", " ".join([concept.label, *concept.keywords]).lower())}
