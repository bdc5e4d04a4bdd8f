"""What an evaluation is to do, read from its command line once and checked before anything is generated. Pure data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from blip3o import storage
from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.folder import SuiteFolder
from blip3o.evaluate.benchmark.work import Target
from blip3o.evaluate.judges.options import JudgeOptions, parse_options
from blip3o.evaluate.suites.registry import SuiteSpec, find_suite

STAGES = ("prepare", "generate", "judge", "score", "report")
Echo = Callable[[str], None]  # takes a line for the user; the command line prints it


def silent(line: str) -> None:
    """The `Echo` that drops its lines."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One evaluation below the URI `out`.

    `target` is None where no stage needs it; `untrained` is the same target with fresh weights, where that control is
    asked for. `sources`, `judges` and `judge_options` (for requests to a judge) are by the suite's name. `limit` is the
    number of items taken from each suite, `samples` the number of samples of each item (None: the suite's own).
    `compare` are the URIs of other evaluations, and `retry_refused` asks again about what a judge's content filter
    refused.
    """

    out: str
    suites: tuple[SuiteSpec, ...]
    stages: tuple[str, ...] = STAGES
    target: Target | None = None
    untrained: Target | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    samples: int | None = None
    compare: tuple[str, ...] = ()
    judge_options: Mapping[str, JudgeOptions] = field(default_factory=dict)
    retry_refused: bool = False

    def folder(self, spec: SuiteSpec, control: str = "") -> SuiteFolder:
        """The folder of a suite, or of one of its controls."""
        return SuiteFolder(out=self.out, suite=spec.suite, asks=spec.asks, control=control)

    def controls(self, spec: SuiteSpec) -> tuple[str, ...]:
        """The controls of a suite that generate makes."""
        if spec.truth is None:
            return ()
        decodes = self.target is not None and self.target.can_decode
        return (*(("upper_bound",) if decodes else ()), *(("untrained",) if self.untrained else ()))

    def existing_controls(self, spec: SuiteSpec) -> list[str]:
        """The controls of a suite that have been made."""
        return storage.list_folders(self.folder(spec).file("controls"))

    def need_target(self) -> Target:
        """The target. Raises `ConfigError` if none was named."""
        if self.target is None:
            raise ConfigError("stage generate needs --target: a bundle's URI, or http://HOST:PORT")
        return self.target


def find_suites(names: str) -> tuple[SuiteSpec, ...]:
    """The suites of `NAME,NAME`. Raises `ConfigError` for an unknown or duplicate name."""
    asked = [name.strip() for name in names.split(",")]
    if len(set(asked)) < len(asked):
        raise ConfigError(f"--suite {names} names a suite twice: name each once")
    return tuple(find_suite(name) for name in asked)


def by_suite(option: str, pairs: Sequence[str], suites: Sequence[SuiteSpec]) -> dict[str, str]:
    """The values of a repeated `SUITE=VALUE` option. Raises `ConfigError` for a suite that was not chosen."""
    names = [spec.name for spec in suites]
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and value) or name not in names:
            raise ConfigError(f"{option} {pair} is not SUITE=VALUE with one of the suites {', '.join(names)}")
        values[name] = value
    return values


def judge_options(pairs: Sequence[str], judges: Mapping[str, str]) -> dict[str, JudgeOptions]:
    """The options of `[SUITE:]NAME=VALUE`, by suite; without a suite, they apply to every judge behind an endpoint.

    Raises `ConfigError` for options that no judge behind an endpoint would get.
    """
    asked = [name for name, spec in judges.items() if spec.startswith("openai:")]
    of_suite: dict[str, list[str]] = {name: [] for name in asked}
    for pair in pairs:
        # A colon in the value (as in {"a": 1}) does not name a suite, so only the text before "=" is looked at.
        suite, colon, _ = pair.partition("=")[0].partition(":")
        if not asked or (colon and suite not in asked):
            raise ConfigError(
                f"--judge-option {pair} is of no judge behind an endpoint: name it with --judge SUITE=openai:…"
            )
        for name in [suite] if colon else asked:
            of_suite[name].append(pair.partition(":")[2] if colon else pair)
    return {name: parse_options(given) for name, given in of_suite.items()}


def find_stages(name: str | None) -> tuple[str, ...]:
    """One stage by name, or all of them. Raises `ConfigError` for an unknown stage."""
    if name is None:
        return STAGES
    if name not in STAGES:
        raise ConfigError(f"--stage {name} is unknown (stages: {', '.join(STAGES)})")
    return (name,)
