"""The options of `blip3o evaluate --suite …`, as data: what the command line offers and what a plan is made of.

Imports nothing heavy, so that `--help` answers at once.
"""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from blip3o.device import Execution
from blip3o.evaluate.benchmark.plan import STAGES
from blip3o.evaluate.benchmark.work import MAX_NEW_TOKENS
from blip3o.inference.precision import Precision

PANEL = "Benchmarks"


def _option(help_text: str, *names: str, metavar: str | None = None, repeated: bool = False) -> typer.models.OptionInfo:
    return typer.Option(
        *names,
        metavar=metavar,
        help=help_text,
        rich_help_panel=PANEL,
        default_factory=list if repeated else None,
        show_default=not repeated,
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """The options of a benchmark run. Lists hold options that may be repeated."""

    suite: Annotated[str | None, _option("Benchmarks, e.g. scenes or geneval,dpg.", metavar="NAME[,NAME]")] = None
    target: Annotated[str | None, _option("A bundle, or a server as http://HOST:PORT.", metavar="URI")] = None
    stage: Annotated[str | None, _option(f"Only this stage of {', '.join(STAGES)}.", metavar="STAGE")] = None
    actors: Annotated[
        int, _option("Actors that generate, or requests at a time; 0 works in this process.", metavar="N")
    ] = 1
    cpus_per_actor: Annotated[float, _option("Logical CPUs of an actor.", metavar="N")] = 1
    gpus_per_actor: Annotated[float, _option("GPUs of an actor; 0 computes on the CPU.", metavar="N")] = 0
    batch_size: Annotated[
        int | None,
        _option("Images generated together; as the server's, for equal images. The pipeline's default.", metavar="N"),
    ] = None
    decode_batch_size: Annotated[
        int | None,
        _option("Images decoded together; as the server's. 1, or the batch size for the pixel decoder.", metavar="N"),
    ] = None
    precision: Annotated[Precision, _option("Precision of a bundle; auto is bf16 on a GPU and fp32 on the CPU.")] = (
        "auto"
    )
    execution: Annotated[Execution, _option("How a bundle's denoiser runs: graph needs a GPU.")] = "eager"
    num_inference_steps: Annotated[int | None, _option("Sampling steps; the target's default.", metavar="N")] = None
    guidance_scale: Annotated[float | None, _option("Classifier-free guidance; the target's default.", metavar="G")] = (
        None
    )
    max_tokens: Annotated[
        int, _option("Tokens of a reply to a question; more for a model that thinks.", metavar="N")
    ] = MAX_NEW_TOKENS
    source: Annotated[
        list[str], _option("Prompts or questions of a suite. Repeatable.", metavar="SUITE=URI", repeated=True)
    ] = field(default_factory=list)
    judge: Annotated[
        list[str], _option("Who judges (docs/evaluation.md). Repeatable.", metavar="SUITE=JUDGE", repeated=True)
    ] = field(default_factory=list)
    judge_option: Annotated[
        list[str],
        _option(
            "Of requests to --judge …=openai:…, e.g. max_tokens=4096, temperature=none. Repeatable.",
            metavar="[SUITE:]NAME=VALUE",
            repeated=True,
        ),
    ] = field(default_factory=list)
    retry_refused: Annotated[bool, _option("Retry items that a judge's content filter refused.", "--retry-refused")] = (
        False
    )
    limit: Annotated[int | None, _option("Only the first N items of each suite.", metavar="N")] = None
    samples: Annotated[int | None, _option("Images of each item; the suite's number.", metavar="N")] = None
    untrained: Annotated[
        bool, _option("Also generate with untrained weights, as a control (bundles).", "--untrained")
    ] = False
    compare: Annotated[
        list[str], _option("An earlier --out, for curves. Repeatable.", metavar="URI", repeated=True)
    ] = field(default_factory=list)
