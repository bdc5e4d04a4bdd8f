"""Checks of the arguments of `Blip3oPipeline`, before anything is computed. Imports no torch.

Every function raises `RequestError` with the value and the fix.
"""

import math
import operator
from collections.abc import Iterable
from typing import SupportsIndex, TypeGuard

from blip3o.errors import RequestError, quoted


def type_of(value: object) -> str:
    """The type of a wrong value, for an error: "of type int" or "missing"."""
    return "missing" if value is None else f"of type {type(value).__name__}"


def parse_prompts(prompt: object) -> list[str]:
    """One prompt or several, as a list."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, Iterable) or isinstance(prompt, bytes | dict):
        raise RequestError(f"the prompt is {type_of(prompt)}: give a string or a list of strings")
    prompts = list(prompt)
    for number, item in enumerate(prompts):
        if not isinstance(item, str):
            raise RequestError(f"prompt {number} is {type_of(item)}: give a string")
    return prompts


def parse_seeds(seed: object, *, prompts: int, n: int = 1) -> list[int]:
    """One seed for each of `prompts` × `n` images, prompt by prompt.

    An integer is the seed of each prompt's first image; the following images of the prompt count up from it. None means
    0. So a prompt gives the same images in a list as on its own. A list of seeds has one for each image.
    """
    if seed is None or not isinstance(seed, Iterable):
        if not prompts:
            raise RequestError("there are 0 prompts: give at least one")
        first = 0 if seed is None else _seed(seed)
        return list(range(first, first + n)) * prompts
    return parse_seed_list(seed, prompts=prompts, n=n)


def parse_seed_list(seeds: object, *, prompts: int, n: int = 1) -> list[int]:
    """As `parse_seeds`, but takes only a list."""
    if not isinstance(seeds, Iterable) or isinstance(seeds, str | bytes | dict):
        raise RequestError(f"seed is {type_of(seeds)}: give a list with one seed for each image")
    seeds = [_seed(item) for item in seeds]
    if not prompts or len(seeds) != prompts * n:
        images = "image" if n == 1 else f"of the {prompts * n} images (n={n})"
        raise RequestError(f"{prompts} prompts and {len(seeds)} seeds: give one seed for each {images}")
    return seeds


def check_positive_int(name: str, value: object) -> None:
    """Rejects anything but an integer of at least 1."""
    if not _is_int(value) or operator.index(value) < 1:
        raise RequestError(f"{name} is {_shown(value)}: give a whole number, 1 or more")


def check_guidance_scale(value: object) -> None:
    """Rejects anything but a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise RequestError(f"guidance_scale is {_shown(value)}: give a number, 0 or more; 1 is no guidance")


def check_negative_prompt(value: object) -> None:
    """Refuses a negative prompt, as the server does: the unconditional branch of the sampler takes no text."""
    if value not in (None, ""):
        raise RequestError(
            f"negative_prompt is {_shown(value)}, but the unconditional branch of this model takes no text: omit it"
        )


def _seed(value: object) -> int:
    # Convert to a plain int: generator keys include the type, so a NumPy integer would give different noise.
    if not _is_int(value) or (seed := operator.index(value)) < 0:
        raise RequestError(f"seed is {_shown(value)}: give a whole number, 0 or more")
    return seed


def _is_int(value: object) -> TypeGuard[SupportsIndex]:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return quoted(value) if isinstance(value, str) else quoted(repr(value)).strip("'")
