"""Results of the data engine's measurements: printed, kept as JSON, and written as a table into `docs/data.md`."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from benchmarks._measure import RESULTS, keep

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def parser(summary: str) -> argparse.ArgumentParser:
    """Options that every measurement has."""
    made = argparse.ArgumentParser(description=summary)
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    made.add_argument("--page", type=Path, default=PAGE, help="page whose table is rewritten")
    return made


def finish(
    name: str, result: dict[str, Any], rows: list[list[object]], options: argparse.Namespace, *, verdict: str
) -> None:
    """Writes the table into the page, keeps the result, and prints it as the last line.

    The first of `rows` is the head. `result` needs `ratio`, `ours`, `other`, `unit` and `n`; `verdict` is
    one sentence about the figures, above all where ours is behind.
    """
    print(verdict)
    kept = keep(f"data_{name}", {**result, "verdict": verdict, "computer": computer()}, options.results)
    note = f"{verdict} {kept['date'][:10]}, {kept['computer']}, `python -m benchmarks.data.{name}`."
    _write(options.page, name, f"{markdown(rows)}\n\n{note}")


def behind(ratios: dict[str, float], what: str) -> str:
    """The verdict of a comparison: `ratios` by case are above 1 where ours is ahead; `what` is the other."""
    cases = [f"{case} ({ratio:.2f})" for case, ratio in ratios.items() if ratio < 1]
    if not cases:
        return f"Ours is ahead of {what}, or level, in every case."
    return f"Ours is slower than {what} in {len(cases)} of {len(ratios)} cases: {'; '.join(cases)}."


def markdown(rows: list[list[object]]) -> str:
    """Rows as a Markdown table."""
    head, *rest = [[str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest))


def _write(page: Path, name: str, text: str) -> None:
    """Writes `text` between the markers of `name`, which are appended to a page without them."""
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    if begin not in before:
        before = f"{before.rstrip()}\n\n{begin}\n{end}\n"
    head, rest = before.split(begin)
    page.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def computer() -> str:
    """The processor's name and the number of its cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
