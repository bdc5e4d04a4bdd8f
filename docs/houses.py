"""Writes 63 small pictures with captions, as an example of pictures of your own: `python docs/houses.py photos`."""

import itertools
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {
    "red": (215, 30, 40), "orange": (245, 125, 15), "yellow": (250, 225, 50), "green": (20, 160, 70),
    "blue": (30, 80, 220), "purple": (130, 30, 170), "pink": (255, 90, 180),
}  # fmt: skip


def draw_house(color: str, side: int, middle: tuple[int, int]) -> Image.Image:
    """A house of one color with a black roof and a white door, in a picture of 64 × 64."""
    image = Image.new("RGB", (256, 256), (250, 250, 250))
    draw, half, (x, y) = ImageDraw.Draw(image), 2 * side, (4 * middle[0], 4 * middle[1])
    draw.rectangle((x - half, y - half // 4, x + half, y + half), fill=COLORS[color])
    draw.polygon(
        ((x - half * 1.25, y - half // 4), (x, y - half * 1.1), (x + half * 1.25, y - half // 4)), fill=(20, 20, 20)
    )
    draw.rectangle((x - half // 4, y + half * 0.3, x + half // 4, y + half), fill=(250, 250, 250))
    return image.resize((64, 64), Image.Resampling.LANCZOS)


def write_houses(folder: Path) -> None:
    """Three houses for each of 21 captions, each NAME.png with NAME.txt next to it."""
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
