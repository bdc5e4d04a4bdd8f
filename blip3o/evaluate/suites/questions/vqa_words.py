"""How VQA's evaluation normalises an answer: punctuation, articles, number words, contractions. Pure.

Every step reproduces the official one with its oddities (a comma inside a number changes how all other punctuation is
treated, and at most 32 periods are removed), because accuracies are comparable only with equal normalisation. Source:
the VQA evaluation (https://arxiv.org/abs/1505.00468), as its authors' program and EvalAI's processor do it.
"""

import re

_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_ONE_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")  # the authors' program does not know a second comma
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32

# With their apostrophes; each is recognised with any one of them left out.
_CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've y'all'd've 'ow's'at
"""


def _spellings(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {short: word for word in _CONTRACTED.split() for short in _spellings(word)} | {
    "somebody'd": "somebodyd"  # the wrong way round, as in the official program
}


def normalise_reply(text: str) -> str:
    """All steps of EvalAI's processor: lower case, no commas and question marks, 's a word, then `normalise_words`."""
    lower = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_words(lower.replace("\n", " ").replace("\t", " ").strip())


def normalise_words(text: str) -> str:
    """An answer without punctuation and articles, with number words as digits and contractions with apostrophes."""
    return _words(_without_punctuation(text, _COMMA_IN_NUMBER))


def vqa_eval_words(text: str) -> str:
    """The same as `normalise_words`, by the rules of the authors' program."""
    return _words(_without_punctuation(text, _ONE_COMMA_IN_NUMBER))


def _without_punctuation(text: str, comma_in_number: re.Pattern[str]) -> str:
    """Removes a mark that touches a space anywhere, and all marks if a number has a comma; others become a space."""
    number = comma_in_number.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        goes = number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _words(text: str) -> str:
    numbered = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)
