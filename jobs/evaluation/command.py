"""Benchmarks of a bundle or a server: what `blip3o evaluate --suite NAME[,NAME] --target URI|http://HOST:PORT` does."""

from dataclasses import replace
from urllib.parse import urlsplit

from blip3o import storage
from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.bundle_target import BundleTarget
from blip3o.evaluate.benchmark.http_target import HttpTarget
from blip3o.evaluate.benchmark.plan import Plan, by_suite, find_stages, find_suites, judge_options
from blip3o.evaluate.benchmark.work import SamplerOverrides
from blip3o.inference.pipeline import DEFAULT_BATCH_SIZE
from jobs.evaluation.options import BenchmarkOptions

FOLDER = "runs/evaluation"  # of results, where --out is left out


def plan_of(options: BenchmarkOptions, out: str | None) -> Plan:
    """What the options ask for. Raises `ConfigError` for options that do not fit together."""
    suites = find_suites(options.suite or "")
    for name in ("limit", "samples", "batch_size", "decode_batch_size", "num_inference_steps", "max_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is below 1")
    if options.actors < 0:
        raise ConfigError(f"--actors {options.actors} is negative: give 0 to draw in this process")
    if options.target is None and out is None:
        raise ConfigError("neither --target nor --out is given: name a bundle's URI, http://HOST:PORT, or results")
    target = None if options.target is None else _target(options, options.target)
    untrained = None
    if options.untrained:
        if not isinstance(target, BundleTarget):
            raise ConfigError("--untrained needs the weights' shapes: give a bundle as --target")
        untrained = replace(target, untrained=True)
    judges = by_suite("--judge", options.judge, suites)
    return Plan(
        out=storage.normalize(out or _default_out(options.target or "")),
        suites=suites,
        stages=find_stages(options.stage),
        target=target,
        untrained=untrained,
        sources=by_suite("--source", options.source, suites),
        judges=judges,
        judge_options=judge_options(options.judge_option, judges),
        retry_refused=options.retry_refused,
        limit=options.limit,
        samples=options.samples,
        compare=tuple(options.compare),
    )


def _target(options: BenchmarkOptions, target: str) -> BundleTarget | HttpTarget:
    sampler = SamplerOverrides(num_inference_steps=options.num_inference_steps, guidance_scale=options.guidance_scale)
    limit = options.max_tokens
    if urlsplit(target).scheme in ("http", "https"):
        _refuse_for_server(options)
        return HttpTarget(url=target, requests=options.actors, sampler=sampler, max_new_tokens=limit)
    bundle = BundleTarget(
        bundle=storage.absolute(target),  # an actor has another current folder
        batch_size=options.batch_size or DEFAULT_BATCH_SIZE,
        decode_batch_size=options.decode_batch_size,
        precision=options.precision,
        execution=options.execution,
        gpus=options.gpus_per_actor,
        sampler=sampler,
        max_new_tokens=limit,
    )
    if options.actors == 0:
        return bundle
    from jobs.evaluation.actors import on_actors  # 5 s: Ray Data, which servers and `--actors 0` do without

    return on_actors(bundle, actors=options.actors, cpus=options.cpus_per_actor)


def _refuse_for_server(options: BenchmarkOptions) -> None:
    """Raises `ConfigError` for options that only a bundle's pipeline in our own process has."""
    for name in ("decode_batch_size", "precision", "execution"):
        if getattr(options, name) != getattr(BenchmarkOptions(), name):
            raise ConfigError(f"--{name.replace('_', '-')} is the server's own: start the server with it")


def _default_out(target: str) -> str:
    parts = urlsplit(target)
    last = (
        parts.netloc.replace(":", "-") if parts.scheme in ("http", "https") else target.rstrip("/").rpartition("/")[2]
    )
    return storage.join(FOLDER, last)
