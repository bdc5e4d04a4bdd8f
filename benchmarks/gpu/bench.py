"""What all verbs share: parts that fail alone, rows of results next to predictions, and the report."""

import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from benchmarks._measure import keep, kept
from blip3o import device as devices

PACKAGES = ("torch", "transformers", "diffusers", "deepspeed", "ray", "numpy")
WIDTHS = (46, 12, 12, 12, 16)
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    verb: str
    device: devices.DeviceKind = "gpu"
    size: str = "full"
    out: Path
    seconds: float = 540.0
    same_process: bool = False


@dataclass
class Bench:
    """One run of a verb: its device, its size, and its report, which is written again after every part.

    The report keeps the parts that earlier runs of the day have left in its file, if they ran at the same size and
    commit with the same card and versions. A part that runs again replaces its results.
    """

    options: Options
    device: torch.device = field(init=False)
    setting: dict[str, Any] = field(init=False)
    began: float = field(default_factory=time.monotonic, init=False)
    part: str = field(default="", init=False)
    parts: dict[str, float] = field(default_factory=dict, init=False)  # those that ended, with their seconds
    rows: list[dict[str, Any]] = field(default_factory=list, init=False)
    errors: dict[str, str] = field(default_factory=dict, init=False)
    skipped: list[str] = field(default_factory=list, init=False)
    details: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Raises `ConfigError` if a GPU is asked for and there is none."""
        self.device = devices.select(self.options.device)
        self.setting = {
            "size": self.options.size,
            "device": {"kind": self.options.device, **devices.facts(self.device)},
            "versions": {"python": sys.version.partition(" ")[0], **_versions()},
        }

    @property
    def full(self) -> bool:
        """Whether sizes are the released ones."""
        return self.options.size == "full"

    @property
    def judged(self) -> bool:
        """Whether speeds are compared with predictions, which are for released sizes on a GPU."""
        return self.full and self.options.device == "gpu"

    def pick(self, full: Value, nano: Value) -> Value:
        """The value for this size."""
        return full if self.full else nano

    def run(self, parts: "Mapping[str, Callable[[Bench], None]]") -> int:
        """Runs the parts, one after the other, whatever becomes of those before; returns the exit code.

        That is 1 if a part failed, was not run for want of time, or found unequal what must be equal.
        """
        name, earlier = self._file()
        self._print("", "result", "", "predicted", "must be, or goal")
        for part, call in parts.items():
            if self.late(part):
                continue
            began = time.monotonic()
            with self.attempt(part):
                devices.release_memory(self.device)  # of the part before; an error may have left a GPU unusable
                call(self)
            self.parts[part] = round(time.monotonic() - began, 1)
            self._keep(name, earlier, complete=False)
        self._keep(name, earlier, complete=True)
        holds = all(row.get("holds", True) for row in self.rows)
        return 0 if holds and not self.errors and not self.skipped else 1

    def left(self) -> float:
        """Seconds until the time is up; negative afterwards."""
        return self.began + self.options.seconds - time.monotonic()

    def late(self, what: str) -> bool:
        """Whether the time is up; `what`, a part or a case of the one that runs, is then recorded as not run."""
        if self.left() > 0:
            return False
        self.skipped.append(f"{self.part}/{what}" if self.part else what)
        print(f"{self.skipped[-1]}: not run, the time is up", flush=True)
        return True

    def attempt(self, name: str) -> AbstractContextManager[None]:
        """A part: an error inside is printed, recorded under `name`, and ends only this."""
        return _Attempt(self, name)

    def row(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        predicted: float | None = None,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """A measured value with its prediction and its goal, which are left out unless the run is `judged`."""
        if not self.judged:
            predicted = at_least = at_most = None
        goal, met = _bound(value, at_least, at_most)
        self._add(what, value, unit, predicted, goal, {} if met is None else {"met": met})

    def check(self, what: str, value: float, *, at_most: float) -> None:
        """A relative error that must not be larger than `at_most`, at any size and on any device."""
        bound, holds = _bound(value, None, at_most)
        self._add(what, value, "", None, bound, {"holds": holds})

    def equal(self, what: str, holds: bool) -> None:  # noqa: FBT001 - the fact itself
        """Something that must be equal to the last bit."""
        self._add(what, 1.0 if holds else 0.0, "equal", None, "equal", {"holds": holds})

    def note(self, name: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Keeps a detail in the result without printing it."""
        self.details[f"{self.part}/{name}"] = value

    def seconds(self, call: Callable[[], object], *, rounds: int = 3, warm: int = 1) -> float:
        """Median seconds of a call, with all that it launches on the device."""
        taken = []
        for turn in range(warm + rounds):
            devices.synchronize(self.device)
            began = time.perf_counter()
            call()
            devices.synchronize(self.device)
            if turn >= warm:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def _add(
        self, what: str, value: float, unit: str, predicted: float | None, bound: str, verdict: dict[str, Any]
    ) -> None:
        row = {"part": self.part, "what": what, "value": value, "unit": unit}
        row |= {} if predicted is None else {"predicted": predicted}
        self.rows.append(row | ({"bound": bound} if bound else {}) | verdict)
        missed = " MISSED" if False in verdict.values() else ""
        self._print(what, f"{value:.4g}", unit, "" if predicted is None else f"{predicted:.4g}", bound + missed)

    def _print(self, *cells: str) -> None:
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))
        print(line.rstrip(), flush=True)

    def _file(self) -> tuple[str, dict[str, Any]]:
        """The name of the report, and what its file holds already: the first of today that may hold these results."""
        usual = self.full and self.options.device == "gpu"
        base = f"gpu-{self.options.verb}{'' if usual else f'-{self.options.size}-{self.options.device}'}"
        name, number = base, 1
        while True:
            found, same_commit = kept(name, self.options.out)
            if not found or (same_commit and all(found.get(key) == value for key, value in self.setting.items())):
                return name, found
            number += 1
            name = f"{base}-{number}"

    def _keep(self, name: str, earlier: dict[str, Any], *, complete: bool) -> None:
        """Writes the report: what `earlier` has of parts that did not run again, and the results of this run."""
        again = self.parts.keys()
        rows = [row for row in earlier.get("rows", []) if row["part"] not in again]
        skipped = [what for what in earlier.get("skipped", []) if what.partition("/")[0] not in again]
        result = {
            "complete": complete,
            **self.setting,
            "parts": {**_others(earlier.get("parts", {}), again), **self.parts},
            "rows": rows + self.rows,
            "errors": {**_others(earlier.get("errors", {}), again), **self.errors},
            "skipped": list(dict.fromkeys(skipped + self.skipped)),
            "details": {**_others(earlier.get("details", {}), again), **self.details},
        }
        keep(name, _finite(result), self.options.out, quiet=not complete)


class _Attempt(AbstractContextManager[None]):
    """Records an error as text: its frames would keep the tensors of a part that ran out of memory."""

    def __init__(self, bench: Bench, name: str) -> None:
        self._bench, self._name, self._before = bench, name, bench.part

    def __enter__(self) -> None:
        self._bench.part = self._name
        print(f"-- {self._name}", flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> bool:
        self._bench.part = self._before
        if not isinstance(error, Exception):
            return False
        text = "".join(traceback.format_exception(error))
        self._bench.errors[self._name] = text[-4000:]
        print(f"{self._name}: FAILED\n{text}", flush=True)
        return True


def _bound(value: float, at_least: float | None, at_most: float | None) -> tuple[str, bool | None]:
    if at_least is not None:
        return f">= {at_least:.4g}", value >= at_least
    return ("", None) if at_most is None else (f"<= {at_most:.4g}", value <= at_most)


def _others(results: dict[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """Results by part, or by part and name, without those of some parts."""
    return {key: value for key, value in results.items() if key.partition("/")[0] not in parts}


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The same, with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
