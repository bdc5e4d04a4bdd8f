"""How well an order shuffles, as figures that can be printed and bounded. They need only planned rows, no data."""

from dataclasses import dataclass

import numpy as np

from blip3o.data.order.sample_order import SampleOrder

PROBES = 64  # batches that are looked at, spread evenly over a pass


@dataclass(frozen=True, kw_only=True)
class ShuffleQuality:
    """The shuffle of one source in its first pass, from evenly spread batches of `batch` of its `samples`.

    `displacement` is the mean distance between a sample's place in the pass and its place in the shards, over that of
    a uniform shuffle (a third of the pass): 0 is the stored order, near 1 is as good as uniform. `neighbours` is the
    share of samples whose follower in the shards comes in the same batch; in a uniform shuffle it is
    `uniform_neighbours`, (batch − 1) / samples. `shards` is the mean number of shards in a batch, of `all_shards`.
    """

    source: str
    samples: int
    batch: int
    displacement: float
    neighbours: float
    uniform_neighbours: float
    shards: float
    all_shards: int

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.samples:,} samples in {self.all_shards:,} shards; samples move "
            f"{self.displacement:.2f} of a uniform shuffle's distance, {self.neighbours:.1%} keep their neighbour in a "
            f"batch of {self.batch} ({self.uniform_neighbours:.1%} if uniform), which touches {self.shards:.1f} shards"
        )


def measure_shuffle(order: SampleOrder, *, batch: int) -> list[ShuffleQuality]:
    """The quality of every source's shuffle, for batches of `batch` samples of all sources together.

    A source is judged by its own share of a batch, at least 2 samples. It takes milliseconds: windows that hold no
    probed batch are not planned.
    """
    return [_measure(order, source, max(round(batch * share), 2)) for source, share in enumerate(order.shares)]


def _measure(order: SampleOrder, source: int, batch: int) -> ShuffleQuality:
    rows, first_pass = order.sources[source], order.first_pass(source)
    size, batch = len(rows), min(batch, len(rows))
    starts = np.unique(np.linspace(0, size - batch, min(PROBES, -(-size // batch))).astype(np.int64))
    probed = [first_pass.good_rows(int(start), batch) for start in starts]
    moved = [np.abs(places - (start + np.arange(batch))).mean() for start, places in zip(starts, probed, strict=True)]
    kept = [np.isin(places + 1, places).mean() for places in probed]
    return ShuffleQuality(
        source=rows.name,
        samples=size,
        batch=batch,
        displacement=float(np.mean(moved)) / (size / 3),
        neighbours=float(np.mean(kept)),
        uniform_neighbours=(batch - 1) / size,
        shards=float(np.mean([len(np.unique(rows.locate(places)[0])) for places in probed])),
        all_shards=len(rows.rows),
    )
