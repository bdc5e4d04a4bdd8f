"""Strips the prefixes that wrappers add to tensor names: `module.` of DataParallel, `base_model.model.` of PEFT, …

Outer wrappers need no list: a prefix that all names share is a wrapper if the names match the wanted ones without it.
Wrappers inside a name are recognized by their own names.
"""

import difflib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from blip3o.errors import one_line

INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of torch.compile and FSDP
SHOWN = 3
_CANDIDATES = 2000  # most names to search for a similar one


@dataclass(frozen=True, kw_only=True)
class Unwrapped:
    """The wanted names by the names in the file.

    `dropped` says what was removed, for a log (empty: nothing). `blocked` is a prefix that was kept because only some
    names have it, although they would match without it.
    """

    names: dict[str, str]
    dropped: str = ""
    blocked: str = ""


def unwrap(found: Collection[str], wanted: Collection[str]) -> Unwrapped:
    """Removes wrappers if every name in the file has them and all wanted names exist without them."""
    plain = {name: _without_inner(name) for name in found}
    if len(set(plain.values())) < len(plain):
        plain = {name: name for name in found}
    dropped = sorted({part for name in plain for part in name.split(".") if part in INNER and plain[name] != name})
    here = set(plain.values())
    prefix = "" if here >= set(wanted) else _prefix(here, wanted)
    if not prefix:
        return Unwrapped(names=plain, dropped=_listed(dropped))
    if not all(name.startswith(prefix) for name in here):
        return Unwrapped(names=plain, dropped=_listed(dropped), blocked=prefix)
    names = {name: clean.removeprefix(prefix) for name, clean in plain.items()}
    return Unwrapped(names=names, dropped=_listed([prefix.rstrip("."), *dropped]))


def _without_inner(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in INNER)


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(f"{part}." for part in parts)


def _prefix(found: set[str], wanted: Collection[str]) -> str:
    """The shortest prefix, ending in a dot, under which all wanted names exist; empty if there is none."""
    first = min(wanted)
    prefixes = (name.removesuffix(first) for name in found if name.endswith(f".{first}"))
    whole = (prefix for prefix in prefixes if all(f"{prefix}{name}" in found for name in wanted))
    return min(whole, key=lambda prefix: (len(prefix), prefix), default="")


def explain_missing(missing: Collection[str], found: Collection[str], blocked: str = "") -> str:
    """The first missing names, and what the file has instead."""
    first = sorted(missing)[:SHOWN]
    text = ", ".join(first) + (", …" if len(missing) > SHOWN else "")
    if blocked:
        return f"{text}; they are there as {blocked}{first[0]}, and other names do not begin with {blocked}"
    if any("lora_" in name for name in found):
        return f"{text}; it holds LoRA adapters: merge them into their base model first"
    leaf = first[0].rpartition(".")[2]
    near = [name for name in sorted(found) if name.rpartition(".")[2] == leaf][:_CANDIDATES]
    like = difflib.get_close_matches(first[0], near, n=1, cutoff=0.5) or sorted(found)[:1]
    return f"{text}; it has {one_line(like[0])}" if like else text
