"""The `blip3o` command: the demo, data sets, and a trained model on the command line.

Training, indexing, export and evaluation are jobs (`python -m jobs.<verb> RECIPE`), so that they can be submitted to a
cluster. Heavy libraries are imported inside the command that needs them, so that `--help` answers at once.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o import log, settings
from blip3o.errors import DataError, RequestError
from jobs.commands import convert, data, model, recipes, runs
from jobs.common import guarded

if TYPE_CHECKING:
    from PIL import Image

    from blip3o.data.sets.writer import SetSummary

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
dataset = typer.Typer(
    no_args_is_help=True, help="Build the image-text sets that ship with the project, or one of your own."
)
app.add_typer(dataset, name="dataset")
app.add_typer(convert.app, name="convert")
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(recipes.app, name="recipes")
app.command("runs")(runs.runs)
app.command("report")(runs.report)

SHOWN = 10  # inputs of each kind that an import names

Out = Annotated[str, typer.Option(help="folder to write to: s3://bucket/prefix or a local path")]


@contextmanager
def bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, driven by (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _report(summary: "SetSummary") -> None:
    counts = ", ".join(f"{count} {split}" for split, count in summary.counts.items())
    state = "wrote" if summary.built else "already there:"
    print(f"{state} {counts} samples at {summary.uri}")


@dataset.command("emoji")
def dataset_emoji(
    out: Out,
    size: Annotated[int | None, typer.Option(help="side in pixels; as published if left out")] = None,
    seed: Annotated[int, typer.Option(help="seed of captions and questions")] = 0,
) -> None:
    """Emoji in two styles with true names, groups and keywords (fetched with npm, checked by sha256)."""
    from blip3o.data.sets.emoji import build_emoji

    with bar("emoji") as progress:
        summary = build_emoji(out, size=size, seed=seed, on_progress=progress)
    _report(summary)


@dataset.command("scenes")
def dataset_scenes(
    out: Out,
    train: Annotated[int, typer.Option(help="training scenes")] = 4000,
    heldout: Annotated[int, typer.Option(help="scenes of held-out compositions")] = 400,
    size: Annotated[int, typer.Option(help="side in pixels")] = 64,
    seed: Annotated[int, typer.Option(help="seed of everything drawn")] = 0,
) -> None:
    """A closed world of coloured shapes, drawn by code, where every fact about a picture is known."""
    from blip3o.data.sets.scenes import build_scenes

    with bar("scenes") as progress:
        summary = build_scenes(out, train=train, heldout=heldout, size=size, seed=seed, on_progress=progress)
    _report(summary)


@dataset.command("curated")
def dataset_curated(
    out: Out,
    sets: Annotated[list[str], typer.Option("--set", help="URI of a built set to choose from; repeat")],
    samples: Annotated[int, typer.Option(help="samples to choose")] = 600,
    seed: Annotated[int, typer.Option(help="seed of the choice")] = 0,
) -> None:
    """A small balanced choice with one caption each, for the instruct stage."""
    from blip3o.data.sets.curated import build_curated

    _report(build_curated(out, sets=sets, samples=samples, seed=seed))


@dataset.command("import")
def dataset_import(
    source: Annotated[
        str,
        typer.Argument(help="folder of pictures with .txt or .json next to them, or a .csv, .json, .jsonl, .parquet"),
    ],
    out: Out,
    heldout: Annotated[float, typer.Option(min=0, max=0.9, help="share of samples that is never trained on")] = 0.0,
    image_column: Annotated[str | None, typer.Option(help="column of a table that names the picture")] = None,
    caption_column: Annotated[str | None, typer.Option(help="column of a table that holds the caption")] = None,
    delimiter: Annotated[str | None, typer.Option(help="what delimits a CSV: one character, or tab")] = None,
) -> None:
    """Your own images and texts as shards. What cannot be used is left out and listed."""
    from blip3o.data.sets.imported import import_set
    from blip3o.data.sets.importing.columns import TableOptions

    options = TableOptions(
        image_column=image_column, caption_column=caption_column, delimiter="\t" if delimiter == "tab" else delimiter
    )
    with bar("import") as progress:
        imported = import_set(source, out, heldout=heldout, options=options, on_progress=progress)
    _report(imported.summary)
    for what, entries in (("samples", imported.damage), ("other files", imported.unused)):
        if entries:
            print(f"left out {len(entries)} {what}: blip3o data ledger {imported.ledger}")
        for entry in entries[:SHOWN]:
            print(f"  {entry.uri}: {entry.reason}")
    for line in imported.account():
        print(line)


Bundle = Annotated[str, typer.Option(help="URI of a bundle (python -m jobs.export)")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    bundle: Bundle,
    out: Annotated[Path, typer.Option("-o", "--out", help="picture to write; several images become a row")] = Path(
        "out.png"
    ),
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=64, help="images; seeds run up from --seed")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="sampling steps; the bundle's default if left out")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, max=100, help="classifier-free guidance; the bundle's default if left out")
    ] = None,
) -> None:
    """Draw images from a prompt."""
    import blip3o

    images = blip3o.load(bundle).generate(
        [prompt] * count, seeds=range(seed, seed + count), steps=steps, guidance=guidance
    )
    save_image(side_by_side(images), out)
    drawn = f"1 image, seed {seed}" if count == 1 else f"{count} images, seed {seed} to {seed + count - 1}"
    print(f"wrote {out} ({drawn})")


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="what to ask")],
    bundle: Bundle,
    image: Annotated[Path | None, typer.Option(help="picture to ask about")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest reply, tokens")] = 32,
) -> None:
    """Ask a question, about an image or without one."""
    import blip3o
    from blip3o.data.text.templates import Turn

    if not question.strip():
        raise RequestError("the question is empty: say what to ask")
    picture = open_image(image) if image else None
    print(blip3o.load(bundle).chat([Turn(role="user", text=question)], image=picture, max_new_tokens=max_new_tokens))


def open_image(path: Path) -> "Image.Image":
    """Reads an image file. Raises `RequestError` if it is missing or no image."""
    from blip3o.data.images import decode

    _require_local(path)
    try:
        return decode.open_image(path.read_bytes())
    except DataError as error:
        raise RequestError(f"{path} is not an image that can be read: {error}") from error
    except OSError as error:
        raise RequestError(f"{path} is not an image that can be read: {error.strerror or error}") from error


def _require_local(path: Path) -> None:
    """Raises `RequestError` for a URI, which as a path would be a folder `s3:` here."""
    if path.parts and path.parts[0].endswith(":"):
        raise RequestError(f"{path.parts[0]}// begins a URI, and pictures are read and written here by local paths")


def save_image(image: "Image.Image", path: Path) -> None:
    """Writes an image file, and the folders above it. Raises `RequestError` if that cannot be."""
    _require_local(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be written: {error}; name a file that ends in .png") from error


def side_by_side(images: "list[Image.Image]") -> "Image.Image":
    """One row of images of equal height."""
    from PIL import Image

    row = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row


# Its options are those of the job, which parses them itself.
@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def evaluate(context: typer.Context) -> None:
    """Score a model: --suite NAME --target URI|http://HOST:PORT for benchmarks, or RECIPE --bundle URI."""
    from jobs.evaluate import main as run

    sys.exit(run(context.args))


@app.command()
def demo(
    *,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run: store, summary, report (runs/demo; runs/demo-full)")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a few steps of everything, to see that it works")] = False,
    full: Annotated[bool, typer.Option("--full", help="the hour-long recipe, tiny-full")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="forget an earlier demo in --out and start over")] = False,
) -> None:
    """Train and serve a small unified model on this machine, from shards in an S3 store to an answer over HTTP.

    A demo that was stopped goes on where it was; one that has finished is only reported again.
    """
    from jobs.demo import FULL, QUICK, USUAL, run_demo

    if quick and full:
        raise typer.BadParameter("--quick and --full are two sizes: give one of them")
    scale = QUICK if quick else FULL if full else USUAL
    run_demo(out or Path("runs/demo-full" if full else "runs/demo"), scale=scale, fresh=fresh)


@app.command()
def preflight(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped one")],
    *,
    override: Annotated[list[str], typer.Option("--set", help="override, e.g. optim.steps=100; repeat")] = [],  # noqa: B006 - typer copies it
    cluster: Annotated[
        str | None, typer.Option(help="check against a pretended cluster: 4x8xH100, or a YAML file")
    ] = None,
    ranks: Annotated[bool, typer.Option("--ranks", help="start the workers, and see that they agree")] = False,
) -> None:
    """Look at everything that can be known of a run before its first step, and say what is wrong."""
    from jobs.preflight import run

    run(recipe, override, cluster, ranks=ranks)


def main() -> None:
    """Entry point: user errors become one line on stderr and exit code 1."""
    log.configure()
    settings.configure_ray()
    sys.exit(guarded(_run_app))


def _run_app() -> None:
    try:
        app()
    except SystemExit as ended:  # how typer ends, also when all is well
        if ended.code:
            raise


if __name__ == "__main__":
    main()
