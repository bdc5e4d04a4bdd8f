"""What an evaluation is to do, read from its command line once and checked before anything is drawn. Pure data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.files import Place
from blip3o.evaluate.benchmark.registry import Entry, entry
from blip3o.evaluate.benchmark.work import Target
from blip3o.evaluate.judges.options import JudgeOptions, parse_options

STAGES = ("prepare", "generate", "judge", "score", "report")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One evaluation below the URI `out`.

    `entries` are its suites; `target` is None where no stage needs it, `untrained` the same with fresh weights where
    that control is asked for; `sources` and `judges` are by suite, `limit` the number of items that are taken of each
    (None: all), `compare` the URIs of other evaluations' scores. `judge_options` are those of requests to a suite's
    judge; `retry_refused` asks again about what a judge's content filter refused.
    """

    out: str
    entries: tuple[Entry, ...]
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

    def place(self, entry: Entry, control: str = "") -> Place:
        """Where a suite's files are."""
        return Place(out=self.out, suite=entry.suite, asks=entry.asks, control=control)

    def controls(self, entry: Entry) -> tuple[str, ...]:
        """The controls of a suite that are to be drawn."""
        if entry.truth is None:
            return ()
        decodes = self.target is not None and self.target.can_decode
        return (*(("upper_bound",) if decodes else ()), *(("untrained",) if self.untrained else ()))

    def need_target(self) -> Target:
        """The target. Raises `ConfigError` if none was named."""
        if self.target is None:
            raise ConfigError("stage generate needs --target: a bundle's URI, or http://HOST:PORT")
        return self.target


def find_suites(names: str) -> tuple[Entry, ...]:
    """The suites of `NAME,NAME`. Raises `ConfigError` for an unknown or doubled one."""
    asked = [name.strip() for name in names.split(",")]
    if len(set(asked)) < len(asked):
        raise ConfigError(f"--suite {names} names a suite twice: name each once")
    return tuple(entry(name) for name in asked)


def by_suite(option: str, pairs: Sequence[str], entries: Sequence[Entry]) -> dict[str, str]:
    """The values of a repeated `SUITE=VALUE` option. Raises `ConfigError` for one that is of no chosen suite."""
    names = [entry.suite.name for entry in entries]
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and value) or name not in names:
            raise ConfigError(f"{option} {pair} is not SUITE=VALUE with one of the suites {', '.join(names)}")
        found[name] = value
    return found


def judge_options(pairs: Sequence[str], judges: Mapping[str, str]) -> dict[str, JudgeOptions]:
    """The options of `[SUITE:]NAME=VALUE`, by suite; without a suite they are of every judge behind an endpoint.

    Raises `ConfigError` for options that no judge behind an endpoint would get.
    """
    asked = [name for name, spec in judges.items() if spec.startswith("openai:")]
    of_suite: dict[str, list[str]] = {name: [] for name in asked}
    for pair in pairs:
        suite, colon, rest = pair.partition("=")[0].partition(":")
        if not asked or (colon and suite not in asked):
            raise ConfigError(
                f"--judge-option {pair} is of no judge behind an endpoint: name it with --judge SUITE=openai:…"
            )
        for name in [suite] if colon else asked:
            of_suite[name].append(pair.partition(":")[2] if colon else pair)
    return {name: parse_options(given) for name, given in of_suite.items()}


def find_stages(name: str | None) -> tuple[str, ...]:
    """One stage by name, or all of them. Raises `ConfigError` for an unknown one."""
    if name is None:
        return STAGES
    if name not in STAGES:
        raise ConfigError(f"--stage {name} is unknown (stages: {', '.join(STAGES)})")
    return (name,)
