"""The nodes of each group over time, with what happened, as a PNG."""

from pathlib import Path
from typing import Any

from blip3o.errors import ConfigError

_COLORS = ("tab:blue", "tab:green", "tab:red", "tab:orange", "tab:purple")


def require_matplotlib() -> None:
    """Raises `ConfigError` if the picture cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError("the picture needs matplotlib: pip install 'blip3o[demo]'") from error


def draw(report: dict[str, Any], groups: list[str], file: Path) -> None:
    """Draws samples and events, in the form of `cluster.fake.status.as_json`: a row for each group, numbered events."""
    from matplotlib.figure import Figure

    samples, events = report["samples"], report["events"]
    end = max(samples[-1]["time"], *(event["time"] for event in events)) + 2
    figure = Figure(figsize=(9, 1.1 * len(groups) + 0.17 * len(events) + 0.6), layout="constrained")
    rows = figure.subplots(len(groups), sharex=True)
    for axes, group, color in zip(rows, groups, _COLORS, strict=True):
        counts = [list(sample["nodes"].values()).count(group) for sample in samples]
        times = [*(sample["time"] for sample in samples), end]
        axes.fill_between(times, [*counts, counts[-1]], step="post", color=color, alpha=0.5)
        axes.set(ylim=(0, 3.4), yticks=[0, 1, 2, 3], xlim=(0, end))
        axes.set_ylabel(group)
        for event in events:
            axes.axvline(event["time"], color="black", linewidth=0.6, linestyle=":")
    for number, event in enumerate(events, start=1):
        height = 3.7 + 0.9 * (number % 2)  # in two rows: some are close to each other
        rows[0].text(event["time"], height, str(number), ha="center", fontsize=7)
    rows[-1].set_xlabel("seconds")
    lines = [f"{number}  {event['time']:.0f} s  {event['message']}" for number, event in enumerate(events, start=1)]
    figure.supxlabel("\n".join(lines), fontsize=7, ha="left", x=0.06)
    figure.savefig(file, dpi=100)
