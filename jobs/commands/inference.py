"""`blip3o generate` and `blip3o chat`: a trained model on the command line, with local image files in and out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blip3o.device import DeviceKind
from blip3o.errors import DataError, RequestError
from blip3o.inference.arguments import MAX_GUIDANCE, MAX_STEPS
from blip3o.inference.precision import Precision
from jobs.commands.remote import API_KEY, RemoteModel
from jobs.common import UsageError, parameters_of, with_parameters

if TYPE_CHECKING:
    from PIL import Image

    from blip3o.inference.pipeline import Blip3oPipeline


@dataclass(frozen=True, kw_only=True)
class Loading:
    """The options of both commands: which bundle, and how it computes; or which server."""

    bundle: Annotated[
        str | None, typer.Option(metavar="URI", help="The bundle to use, as `blip3o export` wrote it.")
    ] = None
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help=f"A running server to use instead, http://127.0.0.1:8000; ${API_KEY} is sent to it."
        ),
    ] = None
    device: Annotated[DeviceKind, typer.Option(help="What computes.")] = "cpu"
    precision: Annotated[
        Precision, typer.Option(help="Of weights and arithmetic; auto is bf16 on a GPU and fp32 on the CPU.")
    ] = "auto"

    def model(self) -> "Blip3oPipeline | RemoteModel":
        """The bundle's pipeline, or the server.

        Raises `UsageError` for neither or both, `RequestError` for a bad address, `ConfigError` without the GPU asked
        for, and as `load_bundle` does.
        """
        import blip3o
        from blip3o.device import select

        if self.url is not None:
            if self.bundle is not None or (self.device, self.precision) != ("cpu", "auto"):
                raise UsageError("--url asks a server, which has its bundle, device and precision: give none of them")
            return RemoteModel(self.url)
        if self.bundle is None:
            raise UsageError("Missing option '--bundle' (or --url, to ask a running server)")
        return blip3o.load(self.bundle, device=select(self.device), precision=self.precision)


@with_parameters(parameters_of(Loading))
def generate(
    prompt: Annotated[str, typer.Argument(help="What the image shows.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write; several images become one row.")] = Path(
        "out.png"
    ),
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=64, help="Images; their seeds count up from --seed.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image.")] = 0,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps; the bundle's default if omitted.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(min=0, max=MAX_GUIDANCE, help="Classifier-free guidance; the bundle's default if omitted."),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance steers away from.")] = None,
    **loading: Any,  # noqa: ANN401 - the fields of `Loading`
) -> None:
    """Generate images from a prompt."""
    images = (
        Loading(**loading)
        .model()
        .generate(
            prompt,
            seed=seed,
            n=n,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
        )
    )
    save_image(side_by_side(images), out)
    drawn = f"1 image, seed {seed}" if n == 1 else f"{n} images, seed {seed} to {seed + n - 1}"
    print(f"wrote {out} ({drawn})")


@with_parameters(parameters_of(Loading))
def chat(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    *,
    image: Annotated[Path | None, typer.Option(help="Image file to ask about.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of the reply, in tokens.")] = 32,
    **loading: Any,  # noqa: ANN401 - the fields of `Loading`
) -> None:
    """Ask a question, about an image or without one."""
    if not question.strip():
        raise RequestError("the question is empty: say what to ask")
    picture = open_image(image) if image else None
    print(Loading(**loading).model().chat(question, image=picture, max_tokens=max_tokens))


def open_image(path: Path) -> "Image.Image":
    """Reads an image file. Raises `RequestError` if it is missing or not an image."""
    from blip3o.data.images import decode

    _require_local(path)
    try:
        return decode.open_image(path.read_bytes())
    except DataError as error:
        raise RequestError(f"{path} is not an image that can be read: {error}") from error
    except OSError as error:
        raise RequestError(f"{path} is not an image that can be read: {error.strerror or error}") from error


def _require_local(path: Path) -> None:
    """Raises `RequestError` for a URI, which would be written to a local folder named `s3:`."""
    if path.parts and path.parts[0].endswith(":"):
        raise RequestError(f"{path.parts[0]}// begins a URI, and pictures are read and written here by local paths")


def save_image(image: "Image.Image", path: Path) -> None:
    """Writes an image file, and its parent folders. Raises `RequestError` if it cannot be written."""
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
