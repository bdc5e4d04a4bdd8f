"""The table of the design study: one row for each compared run, as JSON, as Markdown and with its loss curves."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blip3o import storage
from blip3o.evaluate.reports.curves import loss_curves

# The table's columns of shares, by the fields of `AblationRow`.
SHARES = {
    "exact": "exact",
    "shape": "shape",
    "color": "color",
    "bound": "decoder's bound",
    "luck": "luck",
    "cosine": "cosine",
    "diversity": "diversity",
    "understanding": "answers",
}


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One compared run: its training, and its scores on held-out scenes.

    `exact` (everything that the caption states), `shape` and `color` are shares of images that are right; `bound` is
    the same share for true targets through the decoder, `luck` for images judged by other captions. `understanding` is
    the accuracy of the answers. `cosine` compares generated with true features in the run's own target space;
    `diversity` is the distance between images of one prompt over that between images of different prompts
    (blip3o.evaluate.metrics.feature_space). `loss` is the mean over the last tenth of the steps.
    """

    run: str
    stage: str
    steps: int
    loss: float
    exact: float
    shape: float
    color: float
    bound: float
    luck: float
    cosine: float
    diversity: float
    understanding: float

    @classmethod
    def from_scores(
        cls, scores: Mapping[str, Any], *, run: str, stage: str, steps: int, losses: Sequence[float]
    ) -> "AblationRow":
        """The row of a run from the scores of its held-out evaluation and the loss of every step."""
        scenes, own = scores["scenes"], scores["own"]
        tail = losses[-max(steps // 10, 1) :]
        return cls(
            run=run,
            stage=stage,
            steps=steps,
            loss=sum(tail) / len(tail),
            exact=scenes["all_correct"],
            shape=scenes["shape"],
            color=scenes["color"],
            bound=scenes["upper_bound"],
            luck=scenes["shuffled"],
            cosine=own["own_cosine"]["value"],
            diversity=own["diversity"]["own_diversity"],
            understanding=scores["understanding"]["accuracy"],
        )


def table(rows: Sequence[AblationRow]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| run | steps | loss, last tenth | {' | '.join(SHARES.values())} |"
    yield "|---" * (3 + len(SHARES)) + "|"
    for row in rows:
        shares = " | ".join(f"{getattr(row, name):.3f}" for name in SHARES)
        yield f"| {row.run} | {row.steps} | {row.loss:.4f} | {shares} |"


def write_ablation(
    uri: str,
    rows: Sequence[AblationRow],
    *,
    size: Mapping[str, Any],
    metrics: Mapping[str, list[dict[str, Any]]],
) -> None:
    """Writes `ablation.json`, `ablation.md` and `curves.svg` into a folder. `metrics` are the rows of each run."""
    files = {
        "ablation.json": json.dumps({"size": size, "runs": [asdict(row) for row in rows]}, indent=1),
        "ablation.md": "\n".join(table(rows)) + "\n",
        "curves.svg": loss_curves(dict(metrics)),
    }
    for name, text in files.items():
        storage.write_bytes(storage.join(uri, name), text.encode())
