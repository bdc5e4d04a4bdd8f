"""`blip3o convert …`: released BLIP3o-Model folders to bundles and back.

`blip3o convert from-released FOLDER --out BUNDLE` and `blip3o convert to-released BUNDLE --out FOLDER`. Every tensor is
accounted for: a summary is printed, and `--report FILE` writes the full list.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.common import new_app

if TYPE_CHECKING:
    from blip3o.convert.keys import KeyReport

app = new_app(help="Read and write the folders in which BLIP3o-Model-4B and -8B are published.")

Report = Annotated[str | None, typer.Option(help="URI of a JSON file to write, with every tensor's destination.")]


@app.command("from-released")
def from_released(
    folder: Annotated[str, typer.Argument(help="URI of a released folder; its name does not matter.")],
    out: Annotated[str, typer.Option(help="URI of the bundle to write.")],
    tower: Annotated[
        str | None, typer.Option(help="Safetensors file of the EVA-CLIP tower, if it is a separate file.")
    ] = None,
    vision_size: Annotated[int, typer.Option(help="Side to which input images are scaled, in pixels.")] = 448,
    report: Report = None,
) -> None:
    """Convert a released folder to a bundle, tensor by tensor."""
    from blip3o.convert.from_released import import_released

    _print_report(import_released(folder, out, tower=tower, vision_size=vision_size), out, report)


@app.command("unpickle")
def unpickle(
    file: Annotated[Path, typer.Argument(help="A local pytorch_model.bin, such as the published EVA-CLIP tower.")],
    out: Annotated[str, typer.Option(help="URI of the safetensors file to write.")],
) -> None:
    """Extract the tensors, and nothing else, from a PyTorch pickle, for `from-released --tower`."""
    from blip3o.weights.unpickle import unpickle_tensors

    print(f"wrote {out}: {unpickle_tensors(file, out)} tensors")


@app.command("to-released")
def to_released(
    bundle: Annotated[str, typer.Argument(help="URI of a bundle.")],
    out: Annotated[str, typer.Option(help="URI of the folder to write.")],
    report: Report = None,
) -> None:
    """Convert a bundle to the released layout, which upstream's code loads."""
    from blip3o.convert.to_released import export_released

    _print_report(export_released(bundle, out), out, report)


def _print_report(keys: "KeyReport", out: str, report: str | None) -> None:
    from blip3o import storage

    print(f"wrote {out}: {keys.summary}")
    for reason, count in Counter(keys.ignored.values()).items():
        print(f"  ignored {count}: {reason}")
    for name in keys.unknown:
        print(f"  unknown, left out: {name}")
    if report is not None:
        storage.write_bytes(report, json.dumps(asdict(keys), indent=1).encode())
        print(f"wrote {report}: what became of each tensor")
