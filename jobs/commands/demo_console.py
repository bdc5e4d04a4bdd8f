"""What the demo says on the console: its steps, its scores in words, and what to do next."""

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip3o import log
from jobs.commands.demo_store import FOLDER

LOG = "demo.log"  # what libraries say, next to all messages; in the demo's folder
SHOWN = ("jobs.common", "jobs.training.progress", "jobs.commands.interruption")  # whose messages are not for it alone
STEPS = ("data sets", "index", "tokenizer", "train", "export", "evaluate", "proof", "serve")


@contextmanager
def step(name: str, summary: dict[str, Any]) -> Iterator[None]:
    """Announces a step and keeps its wall-clock seconds under `steps`."""
    say(f"{STEPS.index(name) + 1}/{len(STEPS)} {name}", style="bold")
    began = time.monotonic()
    yield
    seconds = round(time.monotonic() - began, 1)
    summary.setdefault("steps", {})[name] = seconds
    say(f"    {name}: {clock(seconds)}")


def say(line: str, *, style: str | None = None) -> None:
    """Says a line. It is not wrapped, so that paths and commands can be copied from a log."""
    log.console().print(line, style=style, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as 0:07 or 9:25."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def closing_lines(summary: dict[str, Any], out: Path, *, program: str) -> list[str]:
    """The demo in a few lines: its scores in words next to those of chance, where to look, and what to run next."""
    folder = shlex.quote(str(out))
    return [
        f"done in {clock(summary['seconds_total'])}",
        *verdict(summary),
        f"  report   {out / 'report.html'}",
        f"  picture  {out / 'grid.png'}",
        f"  figures  {out / 'summary.json'}",
        f"  log      {out / LOG}",
        "what next:",
        f'  {program} generate --bundle {folder}/bundle "two red circles"',
        f"  {program} serve --demo" + ("" if out == FOLDER else f" --folder {folder}"),
        f"  {program} store {folder}",
    ]


def verdict(summary: dict[str, Any]) -> list[str]:
    """The demo's scores in words, each next to those of chance."""
    understanding, generation, scenes = (summary[name] for name in ("understanding", "generation", "scenes"))
    before = understanding["before_generate"]["accuracy"]
    exact = scenes["overall" if "by_parts" in scenes else "all_correct"]
    return [
        f"  answers   {_share(understanding['accuracy'])} right (by chance {_share(understanding['chance'])}; "
        f"before it learned to draw {_share(before)})",
        f"  drawings  {_share(exact)} show what was asked (for other prompts {_share(scenes['shuffled'])}; "
        f"possible {_share(scenes['upper_bound'])})",
        f"  found     {_share(generation['r5'])} among the nearest five (by chance {_share(generation['chance_r5'])}; "
        f"for other prompts {_share(generation['shuffled_r5'])})",
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
