"""The options of a load test, and the requests that they ask for."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from blip3o import storage
from blip3o.errors import ConfigError
from jobs.loadtest.workload import DEFAULT, Workload, parse_work, scenes

_LOAD, _RESULT = "Load", "Result"


def _option(panel: str, help_text: str, metavar: str | None = None, **rest: Any) -> typer.models.OptionInfo:  # noqa: ANN401
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=panel, **rest)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is asked, how often, and where the result goes."""

    work: Annotated[
        list[str],
        _option(
            _LOAD,
            "A kind of request; see above. Repeatable. By default single images, a quarter of them with 2 previews, "
            "and every fifth request a chat.",
            "KIND,NAME=VALUE",
            default_factory=lambda: list(DEFAULT),
            show_default=False,
        ),
    ] = field(default_factory=lambda: list(DEFAULT))
    rate: Annotated[
        float | None,
        _option(
            _LOAD,
            "Requests per second. They arrive at random (Poisson), however fast the server is. Without it, each "
            "client sends its next request when it has its reply.",
            min=1e-3,
        ),
    ] = None
    clients: Annotated[int, _option(_LOAD, "Clients; with --rate, the most requests at a time.", "N", min=1)] = 16
    seconds: Annotated[float, _option(_LOAD, "How long to send requests, seconds.", min=0)] = 60
    requests: Annotated[int | None, _option(_LOAD, "Stop after this many, if that is sooner.", "N", min=1)] = None
    warm_up: Annotated[int, _option(_LOAD, "Warm-up requests of each kind, not counted.", "N", min=0)] = 2
    alone: Annotated[
        int,
        _option(_LOAD, "Requests of each kind one at a time, before the load: the latency at low load.", "N", min=0),
    ] = 5
    prompts: Annotated[
        str | None, _option(_LOAD, "File of prompts, one per line; generated scenes if omitted.", "FILE")
    ] = None
    distinct_prompts: Annotated[
        int, _option(_LOAD, "How many different prompts there are, without --prompts.", "N", min=1)
    ] = 100
    seed: Annotated[int, _option(_LOAD, "Seed of the load: the same one sends the same requests.", min=0)] = 0
    model: Annotated[str | None, _option(_LOAD, "Model to use; the server's first if omitted.", "NAME")] = None
    timeout_s: Annotated[float, _option(_LOAD, "Seconds after which a request is given up.", min=0.1)] = 300
    latency_slo_s: Annotated[float | None, _option(_RESULT, "Objective: seconds for a whole request.", min=0)] = None
    first_slo_s: Annotated[
        float | None, _option(_RESULT, "Objective: seconds until the first preview or token.", min=0)
    ] = None
    stages: Annotated[
        bool, _option(_RESULT, "Read the server's /metrics before and after, for the time of each stage.")
    ] = True
    json_file: Annotated[str | None, _option(_RESULT, "Write all figures and requests there.", "FILE")] = None
    html_file: Annotated[str | None, _option(_RESULT, "Write a page with plots there.", "FILE")] = None


def workload(options: LoadOptions) -> Workload:
    """The requests that the options ask for. Raises `ConfigError`."""
    prompts = scenes(options.distinct_prompts)
    if options.prompts is not None:
        lines = storage.read_bytes(options.prompts).decode().splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise ConfigError(f"--prompts {options.prompts} has no prompt: write one a line")
    works = [parse_work(text) for text in options.work]
    return Workload(works=works, prompts=prompts, seed=options.seed, model=options.model)
