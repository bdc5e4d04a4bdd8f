"""The plots of a budget: cost and days against the number of GPUs, memory against the ZeRO stage."""

from pathlib import Path
from typing import Any

from blip3o.budget.plan import Budget
from blip3o.budget.prices import Prices
from blip3o.errors import ConfigError
from blip3o.train.preflight.memory import GIB

PARTS = ("weights", "gradients", "optimizer", "average", "activations", "buffers")


def draw(budget: Budget, prices: Prices, folder: Path) -> list[Path]:
    """Writes both plots as PNG into a folder, which is made; returns them. Raises `ConfigError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plots needs matplotlib: pip install 'blip3o[demo]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    files = {"cost.png": _cost, "memory.png": _memory}
    for name, fill in files.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        fill(figure.subplots(), budget, prices)
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in files]


def _cost(axes: Any, budget: Budget, prices: Prices) -> None:  # noqa: ANN401 - of matplotlib
    counts = [plan.workers for plan in budget.by_count]
    axes.plot(counts, [plan.days for plan in budget.by_count], "o-", color="tab:blue")
    axes.set(xscale="log", yscale="log", xlabel=f"{budget.request.gpu.upper()} GPUs", ylabel="days")
    axes.set_xticks(counts, counts)
    axes.minorticks_off()
    axes.yaxis.label.set_color("tab:blue")
    cost = axes.twinx()
    cost.plot(counts, [plan.usd for plan in budget.by_count], "s--", color="tab:orange")
    cost.set(ylabel="USD", ylim=(0, None))
    cost.yaxis.label.set_color("tab:orange")
    axes.set_title(f"{budget.name}, prices of {prices.as_of}")


def _memory(axes: Any, budget: Budget, prices: Prices) -> None:  # noqa: ANN401 - of matplotlib
    labels = [f"ZeRO {row.zero_stage}\n{'again' if row.recompute else 'stored'}" for row in budget.by_zero_stage]
    bottom = [0.0] * len(labels)
    for part in PARTS:
        sizes = [getattr(row.memory, part) / GIB for row in budget.by_zero_stage]
        axes.bar(labels, sizes, bottom=bottom, label=part)
        bottom = [below + size for below, size in zip(bottom, sizes, strict=True)]
    axes.axhline(prices.gpu(budget.request.gpu).gpu_gib, color="black", linestyle=":")
    axes.set(ylabel="GiB a GPU", title=f"{budget.name} on {budget.request.count} GPUs; dotted: the GPU's memory")
    axes.legend(fontsize="small")
