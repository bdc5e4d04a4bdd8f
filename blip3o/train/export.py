"""Exports finished runs as a bundle: the implementation of `blip3o export`.

If two runs trained the same parameter, the later one wins. A run that kept a moving average contributes the average,
unless another of the runs started from its last weights, or `--last-weights` is given. The bundle is reloaded and
compared before the job succeeds. One that is there already is neither written again nor, unasked, replaced by another.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blip3o import storage
from blip3o.bundle.layout import PARTS, SEAL, BundleConfig
from blip3o.bundle.reading import SealedBundle, open_bundle
from blip3o.bundle.writing import bundle_texts, write_bundle
from blip3o.config.load import flattened
from blip3o.config.objectives import stage_names
from blip3o.config.recipe import Recipe
from blip3o.data.inputs import StageInputs
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.errors import BundleError
from blip3o.runs.paths import final_uri
from blip3o.runs.recipes import diff_values
from blip3o.runs.results import read_description, read_final, require_description
from blip3o.storage.sizes import folder_bytes, readable

logger = logging.getLogger(__name__)

CONFIGURED = {"backbone", "encoder", "dit"}  # parts that need the same section of the recipe as in training
PROMPTED = {"backbone", "queries", "dit"}  # parts that were trained with the text of a prompt template
SHOWN = 3  # differences between two bundles that an error names

Descriptions = Mapping[str, Mapping[str, Any]]  # of results, by run


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle: its size in bytes, and which run gave which parts. `written` is False if it was there before."""

    uri: str
    size: int
    parts: Mapping[str, tuple[str, ...]]
    written: bool

    def __str__(self) -> str:
        """One line for the console."""
        origin = ", ".join(f"{' '.join(parts)} from {run}" for run, parts in self.parts.items())
        did = "wrote bundle" if self.written else "the same bundle is already there:"
        return f"{did} {self.uri} ({readable(self.size)}; {origin})"


def export(
    recipe: Recipe,
    runs: list[str],
    out: str,
    *,
    averages: bool = True,
    parts: tuple[str, ...] = PARTS,
    overwrite: bool = False,
    strict: bool = False,
) -> Exported:
    """Writes the bundle of these runs, unless it is there already. With `averages`, takes the moving averages of runs.

    With `parts=("backbone",)` the bundle only chats. A run that was trained on top of other weights than the bundle's
    is a warning, or an error if `strict`. Raises `CheckpointError` or `BundleError`, also if a run was trained with
    other settings of the parts that it contributes, and if `out` holds another bundle and not `overwrite`.
    """
    described = {run: require_description(final_uri(recipe.run.storage, run)) for run in runs}
    for run, description in described.items():
        require_as_trained(recipe, run, description["tensors"], description)
    owners = _owners(described, parts)
    _report_mismatches(recipe.run.storage, described, owners, strict=strict)
    averaged = averaged_runs(recipe.run.storage, runs) if averages else set()
    config = BundleConfig(
        model=recipe.model, template=recipe.data.template, max_length=recipe.data.max_length, parts=parts
    )
    tokenizer, provenance = StageInputs(recipe).tokenizer, _provenance(described, averaged)
    there = _is_there(out, config, tokenizer, provenance, overwrite=overwrite)
    if not there:
        tensors: dict[str, Tensor] = {}
        for run in runs:
            tensors |= read_final(final_uri(recipe.run.storage, run), averaged=run in averaged)[0]
        write_bundle(out, config=config, tensors=tensors, tokenizer=tokenizer, provenance=provenance)
    given = {run: tuple(dict.fromkeys(_part(name) for name in owners if owners[name] == run)) for run in runs}
    return Exported(
        uri=out,
        size=folder_bytes(out),
        parts={run: names for run, names in given.items() if names},
        written=not there,
    )


def _part(name: str) -> str:
    return name.partition(".")[0]


def _owners(described: Descriptions, parts: Iterable[str]) -> dict[str, str]:
    """The run that gives each tensor of these parts: the last one that has it."""
    return {name: run for run, about in described.items() for name in about["tensors"] if _part(name) in parts}


def _provenance(described: Descriptions, averaged: set[str]) -> dict[str, Any]:
    kept = ("stage", "identity", "sha256", "recipe")
    return {
        "runs": {
            run: {key: description[key] for key in kept} | {"averaged": run in averaged}
            for run, description in described.items()
        }
    }


def _is_there(
    out: str, config: BundleConfig, tokenizer: ChatTokenizer, provenance: Mapping[str, Any], *, overwrite: bool
) -> bool:
    """Whether `out` holds this very bundle, undamaged.

    Raises `BundleError` if it holds another one, or one that cannot be read, unless that may be overwritten.
    """
    if not storage.exists(storage.join(out, SEAL)):
        return False
    replace = "give another --out, or --overwrite to replace it"
    try:
        found = open_bundle(out)
    except BundleError as error:
        if overwrite:
            return False
        raise BundleError(f"{out} holds a bundle that cannot be read ({error}): {replace}") from error
    ours = {
        name: hashlib.sha256(text).hexdigest() for name, text in bundle_texts(config, tokenizer, provenance).items()
    }
    if all(found.checksums[name] == sha256 for name, sha256 in ours.items()):
        return found.has_sealed_weights()
    if not overwrite:
        raise BundleError(f"{out} holds another bundle ({_difference(found, config, provenance)}): {replace}")
    return False


def _difference(found: SealedBundle, config: BundleConfig, provenance: Mapping[str, Any]) -> str:
    """The first differences between a bundle and one that is to be written, from there to here."""
    differing = diff_values(_content(found.config, found.provenance), _content(config, provenance))
    shown = [f"{key}: {there} → {here}" for key, (there, here) in list(differing.items())[:SHOWN]]
    rest = [f"{len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    return ", ".join([*shown, *rest]) or "of another tokenizer or provenance"


def _content(config: BundleConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    runs = provenance.get("runs", {})
    weights = {run: f"{about['sha256'][:12]}{' averaged' * about['averaged']}" for run, about in runs.items()}
    return {"runs": list(runs), "weights": weights, **json.loads(config.model_dump_json())}


def _report_mismatches(storage_uri: str, described: Descriptions, owners: Mapping[str, str], *, strict: bool) -> None:
    """Warns, or if `strict` raises `BundleError`, if a run was trained on top of other weights than the bundle's."""
    found = [
        line for run in dict.fromkeys(owners.values()) for line in _mismatches(storage_uri, run, described, owners)
    ]
    if strict and found:
        raise BundleError("; ".join(found))
    for line in found:
        logger.warning("%s", line)


def _mismatches(storage_uri: str, run: str, described: Descriptions, owners: Mapping[str, str]) -> list[str]:
    """What run `run` was trained on top of, where the bundle has other weights; a sentence for each case."""
    description = described[run]
    lines = []
    under: dict[str, str] = {}  # tensors of parts that the stage used without training them → where they came from
    sha256: dict[str, str] = {other: about["sha256"] for other, about in described.items()}
    for start, then in description.get("starts", {}).items():
        about = read_description(final_uri(storage_uri, start))
        if about is None:
            lines.append(f"run '{run}' was trained on top of '{start}', which is no longer under {storage_uri}")
            continue
        sha256[start] = about["sha256"]
        if then != about["sha256"]:
            lines.append(
                f"run '{run}' was trained on top of '{start}' before that was trained again: train '{run}' again"
            )
        used = [name for name in about["tensors"] if _part(name) in description["parts"]]
        under |= {name: start for name in used if name not in description["tensors"]}
    differing: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, start in under.items():
        owner = owners.get(name, start)
        if sha256[owner] != sha256[start]:
            differing[start, owner].add(_part(name))
    for (start, owner), parts in differing.items():
        lines.append(
            f"run '{run}' was trained on top of the {' and '.join(sorted(parts))} of '{start}', and the bundle has "
            f"that of '{owner}': export --from {start}, or train '{run}' again"
        )
    return lines


def require_as_trained(recipe: Recipe, run: str, trained: Iterable[str], description: Mapping[str, Any]) -> None:
    """Raises `BundleError` if a run was trained with other settings of the parts that it contributes.

    Such weights would load without an error and give wrong outputs. Settings of samplers and decoders that only matter
    at inference may differ.
    """
    prompted = description["stage"] in stage_names()
    if found := differing_settings(recipe, trained, description["recipe"], prompted=prompted):
        raise BundleError(f"run '{run}' was trained with {found}: export with the settings of its training")


def differing_settings(recipe: Recipe, trained: Iterable[str], settings: Mapping[str, Any], *, prompted: bool) -> str:
    """The values in `settings` that weights, given by the names of tensors or parts, depend on and that the recipe has
    otherwise, as `KEY=VALUE (here VALUE), …`; empty if there are none. The template counts if they were `prompted`.
    """
    parts = {_part(name) for name in trained}
    deciding = [f"model.{part}." for part in sorted(parts & CONFIGURED)]
    if prompted and parts & PROMPTED:
        deciding.append("data.template.")
    theirs, ours = flattened(settings), flattened(recipe.model_dump(mode="json"))
    differing = [key for key in ours if key in theirs and key.startswith(tuple(deciding)) and ours[key] != theirs[key]]
    return ", ".join(f"{key}={theirs[key]} (here {ours[key]})" for key in differing)


def averaged_runs(storage_uri: str, runs: list[str]) -> set[str]:
    """The runs of which the moving average is exported: those that kept one and that none of the others started from.

    Parts trained on top of a run's last weights fit those weights, not their average.
    """
    found = {run: read_description(final_uri(storage_uri, run)) for run in runs}
    known = {run: description for run, description in found.items() if description is not None}
    built_on = {start for description in known.values() for start in description["recipe"]["stage"]["start_from"]}
    return {run for run, description in known.items() if "average_sha256" in description} - built_on
