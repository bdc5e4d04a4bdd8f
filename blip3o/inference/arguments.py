"""Checks of the arguments of `Blip3oPipeline`, before anything is computed. Imports no torch.

Every function raises `RequestError` with the value and the fix.
"""

import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import SupportsIndex, TypeGuard

from blip3o.errors import RequestError, quoted

MAX_STEPS = 1000  # noise levels that training knows
MAX_GUIDANCE = 100
MAX_TEMPERATURE = 2


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
    if not isinstance(seed, Iterable) or getattr(seed, "ndim", 1) == 0:  # NumPy's single numbers can be iterated
        if not prompts:
            raise RequestError("there are 0 prompts: give at least one")
        first = 0 if seed is None else parse_seed(seed)
        return list(range(first, first + n)) * prompts
    if isinstance(seed, str | bytes | dict):
        raise RequestError(f"seed is {_shown(seed)}: give a whole number, or a list with one for each image")
    seeds = [parse_seed(item) for item in seed]
    if not prompts or len(seeds) != prompts * n:
        images = "image" if n == 1 else f"of the {prompts * n} images (n={n})"
        raise RequestError(f"{prompts} prompts and {len(seeds)} seeds: give one seed for each {images}")
    return seeds


def parse_seed(seed: object) -> int:
    """One seed."""
    number = _as_int(seed)
    if number is None or number < 0:
        raise RequestError(f"seed is {_shown(seed)}: give a whole number, 0 or more")
    # A plain int: generator keys include the type, so a NumPy integer would give different noise.
    return number


def check_positive_int(name: str, value: object, *, most: int | None = None) -> None:
    """Rejects anything but an integer of at least 1, and of at most `most`."""
    limit = "" if most is None else f", {most} or less"
    number = _as_int(value)
    if number is None or number < 1 or (most is not None and number > most):
        raise RequestError(f"{name} is {_shown(value)}: give a whole number, 1 or more{limit}")


def check_steps(value: object) -> None:
    """Rejects anything but a number of steps that the sampler can take."""
    check_positive_int("num_inference_steps", value, most=MAX_STEPS)


def check_guidance_scale(value: object) -> None:
    """Rejects anything but a number of 0 to `MAX_GUIDANCE`."""
    # NaN is neither below 0 nor within the limit; an int may be too large for a float.
    if not _is_number(value) or value < 0 or not value <= MAX_GUIDANCE:
        raise RequestError(
            f"guidance_scale is {_shown(value)}: give a number, 0 or more, {MAX_GUIDANCE} or less; 1 is no guidance"
        )


def check_sampling(temperature: object, top_p: object) -> None:
    """Rejects anything but a temperature of 0 to `MAX_TEMPERATURE` and a `top_p` above 0, of at most 1."""
    if not _is_number(temperature) or not 0 <= temperature <= MAX_TEMPERATURE:
        raise RequestError(f"temperature is {_shown(temperature)}: give a number of 0 to {MAX_TEMPERATURE}")
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise RequestError(f"top_p is {_shown(top_p)}: give a number above 0, 1 or less")


def parse_stop(stop: object) -> tuple[str, ...]:
    """The texts before which a reply ends: one, or several."""
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"stop is {_shown(stop)}: give a string or a list of strings")
    return tuple(texts)


def check_text(text: object) -> None:
    """Rejects what is no text, and a lone surrogate: half a pair of a JSON escape, or a byte of a command line."""
    if not isinstance(text, str):
        raise RequestError(f"the prompt is {type_of(text)}: give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"a lone surrogate (U+{ord(text[error.start]):04X} at position {error.start})"
        raise RequestError(f"the prompt has {what}, which is not valid text: send UTF-8") from error


def check_sampler(num_inference_steps: object, guidance_scale: object, negative_prompt: object) -> None:
    """Rejects what no image is sampled with; None is not given, and "" no negative prompt."""
    if num_inference_steps is not None:
        check_steps(num_inference_steps)
    if guidance_scale is not None:
        check_guidance_scale(guidance_scale)
    if negative_prompt is not None and not isinstance(negative_prompt, str):
        raise RequestError(f"negative_prompt is {type_of(negative_prompt)}: give a string")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _as_int(value: object) -> int | None:
    """A whole number of any library as a plain int; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # arrays and tensors have the method whatever they hold
        return None


def _shown(value: object) -> str:
    return quoted(value) if isinstance(value, str) else quoted(repr(value)).strip("'")
