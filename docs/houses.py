"""Writes 72 small pictures with captions, as an example of pictures of your own: `python docs/houses.py photos`."""

import itertools
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 48, 49), "green": (46, 160, 67), "blue": (40, 90, 220), "yellow": (250, 210, 50),
    "orange": (245, 130, 32), "purple": (140, 70, 190), "pink": (245, 130, 180), "black": (30, 30, 34),
}  # fmt: skip


def draw_house(color: str, side: int, middle: tuple[int, int]) -> Image.Image:
    """A house of one color with a brown roof and a white door, in a picture of 64 × 64."""
    image = Image.new("RGB", (256, 256), (245, 245, 240))
    draw, half, (x, y) = ImageDraw.Draw(image), 2 * side, (4 * middle[0], 4 * middle[1])
    draw.rectangle((x - half, y - half // 4, x + half, y + half), fill=COLORS[color])
    draw.polygon(
        ((x - half * 1.25, y - half // 4), (x, y - half * 1.1), (x + half * 1.25, y - half // 4)), fill=(110, 60, 40)
    )
    draw.rectangle((x - half // 4, y + half * 0.3, x + half // 4, y + half), fill=(255, 255, 255))
    return image.resize((64, 64), Image.Resampling.LANCZOS)


def write_houses(folder: Path) -> None:
    """Three houses for each of 24 captions, each NAME.png with NAME.txt next to it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for color, (size, side), number in itertools.product(
        COLORS, {"small ": 28, "": 36, "large ": 44}.items(), range(3)
    ):
        name = folder / f"{size.strip() or 'plain'}-{color}-{number}"
        middle = (32 + rng.randint(-2, 2), 33 + rng.randint(-2, 2))
        draw_house(color, side, middle).save(name.with_suffix(".png"))
        name.with_suffix(".txt").write_text(f"a {size}{color} house\n")


if __name__ == "__main__":
    write_houses(Path(sys.argv[1]))
