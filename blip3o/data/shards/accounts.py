"""What became of every input of a source, in numbers that add up, and whether so much loss is within a budget."""

import logging
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blip3o.data.shards.ledger import LedgerEntry, by_kind
from blip3o.data.shards.manifest import ShardSummary
from blip3o.data.shards.scan_result import ScanOptions
from blip3o.errors import DataError
from blip3o.storage import FileInfo
from blip3o.storage.system_files import is_system_file

logger = logging.getLogger(__name__)


def shards_among(files: Sequence[FileInfo]) -> list[FileInfo]:
    """The files without those that a system left next to shards (`._train-0.tar`), which the log names.

    Raises `DataError` if nothing is left.
    """
    kept = [file for file in files if not is_system_file(posixpath.basename(file.uri))]
    for file in files:
        if file not in kept:
            logger.info("%s is a system file and no shard: skipped", file.uri)
    if not kept:
        raise DataError(f"only hidden or system files match, as {files[0].uri}: correct the pattern, or rename them")
    return kept


@dataclass(frozen=True, kw_only=True)
class Account:
    """Sums over the shards of a source: `inputs` = `used` + `listed` (in the ledger) + `skipped` (system files).

    `unit` is what inputs are. `good` of `samples` can be used; `further` pictures and `spare_captions` of `captions`
    are extra ones of a key, of which a sample uses one each. Of `shards`, those in `barren` have no good
    sample, and those in `empty` have no input at all.
    """

    unit: str
    inputs: int
    used: int
    listed: int
    skipped: int
    good: int
    samples: int
    further: int
    captions: int
    spare_captions: int
    shards: int
    barren: tuple[str, ...]
    empty: tuple[str, ...]

    @property
    def lost_share(self) -> float:
        """The share that is lost, of samples and pictures, of captions or of shards, whichever is greatest."""
        pictures = self.samples + self.further
        return max(
            (pictures - self.good) / max(pictures, 1),
            self.spare_captions / max(self.captions, 1),
            len(self.barren) / max(self.shards - len(self.empty), 1),
        )

    def line(self, ledger: str) -> str:
        """All of it in one line; `ledger` is where the rest is listed."""
        became = f"{self.used} of {self.inputs} {self.unit} became {self.good} samples"
        return f"{became}; {self.listed} are listed in {ledger}; {self.skipped} system files were skipped"


def account(summaries: Sequence[ShardSummary]) -> Account | None:
    """The sums over all shards of a source; None if one was indexed by a version that did not count."""
    tallies = [summary.tally for summary in summaries if summary.tally is not None]
    if len(tallies) < len(summaries):
        return None
    good = [summary.row.rows - len(summary.row.bad_rows) for summary in summaries]
    counted = list(zip(summaries, tallies, good, strict=True))
    return Account(
        unit=" and ".join(sorted({tally.unit for tally in tallies})),
        inputs=sum(tally.inputs for tally in tallies),
        used=sum(tally.used for tally in tallies),
        listed=sum(entry.count for summary in summaries for entry in summary.damage),
        skipped=sum(tally.skipped for tally in tallies),
        good=sum(good),
        samples=sum(tally.samples for tally in tallies),
        further=sum(tally.further for tally in tallies),
        captions=sum(tally.captions for tally in tallies),
        spare_captions=sum(tally.spare_captions for tally in tallies),
        shards=len(summaries),
        barren=tuple(summary.row.uri for summary, tally, left in counted if tally.inputs and not left),
        empty=tuple(summary.row.uri for summary, tally, _ in counted if not tally.inputs),
    )


def refusal(sums: Account, entries: Iterable[LedgerEntry], options: ScanOptions, budget: float) -> tuple[str, str]:
    """What is lost where it is more than the `budget` (a share), and what to do about it; ("", "") within the budget.

    Also without a single good sample, whatever the budget.
    """
    if sums.good and sums.lost_share <= budget:
        return "", ""
    if len(sums.empty) == sums.shards:
        return f"none of its {sums.shards} shards holds anything", "check the pattern, or write the shards again"
    parts = [f"{sums.samples - sums.good} of {sums.samples} samples are damaged"] if sums.samples else []
    if sums.further:
        parts.append(f"{sums.further} of {sums.samples + sums.further} pictures are further ones of a key")
    if sums.spare_captions:
        parts.append(f"{sums.spare_captions} of {sums.captions} captions are further ones of a key")
    parts.append(f"{len(sums.barren)} of {sums.shards} shards have no good one")
    fixes = ["repair the shards, or raise the budget"]
    if sums.further or sums.spare_captions:
        fixes = ["name the members to take, as members: {image: jpg, caption: txt}, and the rest is left on purpose"]
        if options.key == "first_dot":
            fixes.insert(0, "a key ends at the first dot of a name: set key: last_dot to end it at the last, or")
    most = max(by_kind(entries), key=lambda kind: kind.inputs)
    return ", ".join(parts), f"most often: {most.first}; {' '.join(fixes)}"
