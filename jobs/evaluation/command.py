"""The command line of benchmarks: `blip3o evaluate --suite NAME[,NAME] --target URI|http://HOST:PORT [--out URI] …`.

--stage prepare|generate|judge|score|report    one stage alone; all of them if left out
"""

import argparse
import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from blip3o import log, settings, storage
from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.bundle_target import BundleTarget
from blip3o.evaluate.benchmark.http_target import HttpTarget
from blip3o.evaluate.benchmark.plan import STAGES, Plan, by_suite, find_stages, find_suites, judge_options
from blip3o.evaluate.benchmark.stages import run
from blip3o.evaluate.benchmark.work import MAX_NEW_TOKENS, SamplerOverrides, Target
from blip3o.inference import DEFAULT_WIDTH
from jobs.common import guarded

logger = logging.getLogger(__name__)

FOLDER = "runs/evaluation"  # of results, where --out is left out


def parser() -> argparse.ArgumentParser:
    """The options of `blip3o evaluate --suite …`."""
    parser = argparse.ArgumentParser(prog="blip3o evaluate", description="Score a bundle or a server on benchmarks.")
    add = parser.add_argument
    add("--suite", required=True, metavar="NAME[,NAME]", help="benchmarks, e.g. scenes or geneval,dpg")
    add("--target", metavar="URI", help="a bundle, or a server as http://HOST:PORT")
    add("--out", metavar="URI", help=f"where everything goes (default: {FOLDER}/TARGET)")
    add("--stage", help=f"one of {', '.join(STAGES)} alone; all of them if left out")
    add("--actors", type=int, default=1, metavar="N", help="actors that draw, or requests at a time (1; 0: no Ray)")
    add("--cpus-per-actor", type=float, default=1, metavar="N", help="logical CPUs (1)")
    add("--gpus-per-actor", type=float, default=0, metavar="N", help="GPUs; 0 computes on the CPU (0)")
    width = f"images drawn together; as the server's, for equal images ({DEFAULT_WIDTH})"
    add("--width", type=int, default=DEFAULT_WIDTH, metavar="N", help=width)
    add("--steps", type=int, metavar="N", help="sampling steps; the target's default if left out")
    add("--guidance", type=float, metavar="G", help="guidance; the target's default if left out")
    limit = f"tokens of a reply to a question; more for a model that thinks ({MAX_NEW_TOKENS})"
    add("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help=limit)
    add("--source", action="append", default=[], metavar="SUITE=URI", help="prompts or questions of a suite; repeat")
    add("--judge", action="append", default=[], metavar="SUITE=JUDGE", help="who judges (docs/evaluation.md); repeat")
    option = "of requests to --judge …=openai:…, e.g. max_tokens=4096, temperature=none (docs/evaluation.md); repeat"
    add("--judge-option", action="append", default=[], metavar="[SUITE:]NAME=VALUE", help=option)
    add("--retry-refused", action="store_true", help="ask again about items that a judge's content filter refused")
    add("--limit", type=int, metavar="N", help="the first N items of each suite alone")
    add("--samples", type=int, metavar="N", help="drawings of each item; the suite's number if left out")
    add("--untrained", action="store_true", help="also draw with fresh weights, as a control (bundles)")
    add("--compare", action="append", default=[], metavar="URI", help="an earlier --out, for curves; repeat")
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for. Raises `ConfigError` for options that do not fit together."""
    suites = find_suites(options.suite)
    for name in ("limit", "samples", "width", "steps", "max_new_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is below 1")
    if options.actors < 0:
        raise ConfigError(f"--actors {options.actors} is negative: give 0 to draw in this process")
    if options.target is None and options.out is None:
        raise ConfigError("neither --target nor --out is given: name a bundle's URI, http://HOST:PORT, or results")
    target = None if options.target is None else _target(options)
    if options.untrained and not isinstance(target, BundleTarget):
        raise ConfigError("--untrained needs the weights' shapes: give a bundle as --target")
    judges = by_suite("--judge", options.judge, suites)
    return Plan(
        out=storage.normalize(options.out or _default_out(options.target)),
        suites=suites,
        stages=find_stages(options.stage),
        target=target,
        untrained=_target(options, untrained=True) if options.untrained else None,
        sources=by_suite("--source", options.source, suites),
        judges=judges,
        judge_options=judge_options(options.judge_option, judges),
        retry_refused=options.retry_refused,
        limit=options.limit,
        samples=options.samples,
        compare=tuple(options.compare),
    )


def _target(options: argparse.Namespace, *, untrained: bool = False) -> Target:
    sampler = SamplerOverrides(steps=options.steps, guidance=options.guidance)
    limit = options.max_new_tokens
    if urlsplit(options.target).scheme in ("http", "https"):
        return HttpTarget(url=options.target, requests=options.actors, sampler=sampler, max_new_tokens=limit)
    bundle = BundleTarget(
        bundle=options.target,
        width=options.width,
        gpus=options.gpus_per_actor,
        untrained=untrained,
        sampler=sampler,
        max_new_tokens=limit,
    )
    if options.actors == 0:
        return bundle
    from jobs.evaluation.actors import on_actors  # 5 s: Ray Data, which servers and `--actors 0` do without

    return on_actors(bundle, actors=options.actors, cpus=options.cpus_per_actor)


def _default_out(target: str) -> str:
    parts = urlsplit(target)
    last = (
        parts.netloc.replace(":", "-") if parts.scheme in ("http", "https") else target.rstrip("/").rpartition("/")[2]
    )
    return storage.join(FOLDER, last)


def main(argv: Sequence[str]) -> int:
    """Runs one evaluation from its command line; returns the exit code. User errors become one line on stderr."""
    log.configure()
    settings.configure_ray()
    return guarded(lambda: run(plan_of(parser().parse_args(list(argv))), print))
