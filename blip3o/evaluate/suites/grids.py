"""Joins and splits images of 2 x 2 tiles, as DPG-Bench wants them. Pure."""

from collections.abc import Sequence

from PIL import Image

from blip3o.errors import DataError


def join_tiles(tiles: Sequence[Image.Image]) -> Image.Image:
    """The RGB grid of four square tiles: top left, top right, bottom left, bottom right.

    Raises `DataError` for another number of tiles, or for tiles that are not square and of one size.
    """
    sizes = {tile.size for tile in tiles}
    if len(tiles) != 4 or len(sizes) != 1 or len(set(tiles[0].size)) != 1:
        raise DataError(f"{len(tiles)} tiles of {sorted(sizes)} make no grid: it takes four of one square size")
    side = tiles[0].width
    grid = Image.new("RGB", (2 * side, 2 * side))
    for tile, corner in zip(tiles, _corners(side), strict=True):
        grid.paste(tile.convert("RGB"), corner)
    return grid


def split_grid(grid: Image.Image, *, resolution: int) -> list[Image.Image]:
    """The four tiles of a grid, `resolution` pixels square.

    Raises `DataError` if the grid is not twice that size: with a wrong size, all four pieces can lie in one tile, and
    the score would be of something else.
    """
    if grid.size != (2 * resolution, 2 * resolution):
        wide, high = grid.size
        raise DataError(f"a grid of {wide}x{high} has no tiles of {resolution}: give the tiles' own size as resolution")
    return [grid.crop((x, y, x + resolution, y + resolution)) for x, y in _corners(resolution)]


def _corners(side: int) -> list[tuple[int, int]]:
    return [(0, 0), (side, 0), (0, side), (side, side)]
