"""When two texts count as the same: replies and answers, captions on both sides of a split."""


def normalise(text: str) -> str:
    """A text in the form in which it is compared: lower case, single spaces, no final period."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()
