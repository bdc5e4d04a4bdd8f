"""The command lines that the documentation gives: found in its code blocks, and parsed without being run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command

from jobs.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^\s*(```|~~~)")
_SPAN = re.compile(r"`([^`]+)`")
_ASSIGNMENT = re.compile(r"^\w+=")


@dataclass(frozen=True, kw_only=True)
class DocCommand:
    """One command: where it stands, its words, and whether it is whole (in a code block) or a mention in a sentence."""

    page: str
    line: int
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {' '.join(self.words)}"


def commands_in(page: Path) -> Iterator[DocCommand]:
    """Every command of a page that begins with a program of ours, `make` or `python -m`."""
    for number, text, whole in _texts(page.read_text()):
        for words in _commands(text, whole=whole):
            yield DocCommand(page=str(page.relative_to(ROOT)), line=number, words=words, whole=whole)


def _texts(text: str) -> Iterator[tuple[int, str, bool]]:
    """(line number, text, whether it is a line of a code block): lines that a backslash continues are joined."""
    fenced, begun, first = False, "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            begun, first = f"{begun} {line.strip()}", first or number
            if begun.endswith("\\"):
                begun = begun.removesuffix("\\")
                continue
            yield first, begun.strip(), True
            begun, first = "", 0
        else:
            yield from ((number, span, False) for span in _SPAN.findall(line))


def _commands(text: str, *, whole: bool) -> Iterator[tuple[str, ...]]:
    try:
        words = shlex.split(text, comments=whole)
    except ValueError:  # an apostrophe of a sentence or of another language
        return
    while words and (_ASSIGNMENT.match(words[0]) or words[0] == "$"):
        words = words[1:]
    if "--" in words[:-1] and words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    program = words[0].rpartition("/")[2] if words else ""
    if program in ("blip3o", "make") and len(words) > 1:
        yield (program, *words[1:])
    elif program.startswith("python") and words[1:2] == ["-m"] and len(words) > 2:
        yield ("python", *words[1:])


def parse(words: tuple[str, ...]) -> dict[str, object]:
    """The parameters of a `blip3o …` or `python -m jobs.… …` command, by name; nothing is run.

    Raises typer's errors for what cannot be parsed.
    """
    rest = list(words[1:]) if words[0] == "blip3o" else [words[2].removeprefix("jobs."), *words[3:]]
    command, path = get_command(app), "blip3o"
    while rest and rest[0] in getattr(command, "commands", {}):
        path, command = f"{path} {rest[0]}", command.commands[rest[0]]
        rest = rest[1:]
    context = command.make_context(path, rest)
    if hasattr(command, "commands") and rest:
        command.resolve_command(context, rest)  # raises: there is no such command
    return context.params
