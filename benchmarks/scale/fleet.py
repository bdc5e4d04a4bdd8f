"""A thousand workers, simulated: `python -m benchmarks.scale.fleet [--plot FILE]`, in less than a minute.

Synchronous steps of 125 nodes of 8 GPUs, with stragglers, throttled reads, interrupted nodes with and without notice,
checkpoints that stall and are uploaded behind training, and restarts. Goodput is useful steps over those of an
undisturbed fleet in the same time. Every number is in `Fleet`; docs/scale.md says where each is from. Needs simpy.
"""

import argparse
import functools
import itertools
import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._measure import RESULTS, keep
from blip3o.budget.training import daly, young

if TYPE_CHECKING:
    import simpy

HOUR = 3600.0
INTERVALS = (60.0, 180.0, 420.0, 900.0, 1800.0, 3600.0, 7200.0)  # seconds between checkpoints
MTBF_HOURS = (200.0, 1000.0)  # of a node
SIZES_GB = (3.2, 32.0)  # a worker's largest part of a checkpoint
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The assumptions. Seconds, unless a name says otherwise; rates are means of exponential distributions."""

    nodes: int = 125
    gpus: int = 8
    micro_batches: int = 1000  # of a step: the workers of an elastic run divide it
    step: float = 0.5  # of the undisturbed fleet
    spread: float = 0.02  # standard deviation of the logarithm of one worker's step
    slow_every_hours: float = 100.0  # of a node, between spells in which it is slow
    slow_for: float = 600.0
    slow_by: float = 1.3
    throttled_every_hours: float = 6.0  # of the store
    throttled_for: float = 300.0
    throttled_by: float = 1.5  # a step's time while the feed is throttled
    node_mtbf_hours: float = 500.0
    notice_share: float = 0.7  # interruptions that are announced in time for a checkpoint
    replaced_after: float = 600.0
    restart: float = 120.0
    checkpoint_every: float = 900.0
    checkpoint_gb: float = 3.2  # the largest part that one worker writes
    disk_gb_s: float = 1.0
    upload_gb_s: float = 0.1  # of one worker
    elastic: bool = False
    hours: float = 72.0

    @property
    def stall(self) -> float:
        """Seconds for which a checkpoint stops the steps."""
        return self.checkpoint_gb / self.disk_gb_s

    @property
    def between_failures(self) -> float:
        """Seconds between interruptions anywhere in the fleet."""
        return self.node_mtbf_hours * HOUR / self.nodes

    @property
    def between_losses(self) -> float:
        """Seconds between interruptions that come without a notice, and so lose work."""
        return self.between_failures / max(1 - self.notice_share, 1e-9)


@dataclass
class State:
    """What the processes share. `done` are steps, `saved` those in an uploaded checkpoint."""

    nodes: int
    active: int  # nodes that train: those that come back do so from a restart on
    done: float = 0.0
    saved: float = 0.0
    lost: float = 0.0
    failures: int = 0
    slow: int = 0
    throttled: bool = False
    growing: bool = False  # a node has come back, and the next checkpoint may take it in
    uploaded_at: float = 0.0
    pending: list[tuple[float, float]] = field(default_factory=list)  # (time of its end, its steps) of uploads


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Goodput, the share of steps that were lost and done again, and the interruptions of a run."""

    goodput: float
    lost: float
    failures: int


def simulate(fleet: Fleet, seed: int) -> Outcome:
    """One run of `hours`. The same fleet and seed give the same outcome."""
    import simpy

    environment = simpy.Environment()
    streams = [np.random.default_rng([seed, number]) for number in range(3)]
    state = State(nodes=fleet.nodes, active=fleet.nodes)
    trainer = environment.process(_train(environment, fleet, state))
    environment.process(_interrupt(environment, fleet, state, streams[0], trainer))
    environment.process(_slow_down(environment, fleet, state, streams[1]))
    environment.process(_throttle(environment, fleet, state, streams[2]))
    environment.run(until=fleet.hours * HOUR)
    ideal = fleet.hours * HOUR / fleet.step
    return Outcome(goodput=state.done / ideal, lost=state.lost / ideal, failures=state.failures)


def _train(environment: "simpy.Environment", fleet: Fleet, state: State) -> Generator[Any, Any, None]:
    """Steps up to the next checkpoint, the checkpoint, and so on; an interruption ends what is under way."""
    import simpy

    while True:
        try:
            yield from _work(environment, fleet, state)
        except simpy.Interrupt as interrupt:
            yield from _recover(environment, fleet, state, announced=bool(interrupt.cause))


def _work(environment: "simpy.Environment", fleet: Fleet, state: State) -> Generator[Any, Any, None]:
    left = fleet.checkpoint_every
    while left > 0:
        span = min(left, 60.0)
        began, seconds = environment.now, _step_seconds(fleet, state)
        try:
            yield environment.timeout(span)
        finally:  # an interruption keeps the steps until then, to be lost or saved by it
            state.done += (environment.now - began) / seconds
        left -= span
    yield from _checkpoint(environment, fleet, state)
    if state.growing:
        yield environment.timeout(fleet.restart)
        _begin(state)


def _begin(state: State) -> None:
    """Training begins again, on all nodes that there are."""
    state.active, state.growing = state.nodes, False


def _step_seconds(fleet: Fleet, state: State) -> float:
    """A step, which is as slow as its slowest worker, on the workers that there are."""
    workers = usable_workers(fleet, state.active)
    factor = slowest(workers, fleet.spread) * (fleet.slow_by if state.slow else 1.0)
    if state.throttled:
        factor = max(factor, fleet.throttled_by)
    return fleet.step * factor * fleet.nodes * fleet.gpus / workers


@functools.cache
def slowest(workers: int, spread: float) -> float:
    """The mean of the largest of `workers` log-normal times with median 1: over equal parts of its distribution F^n."""
    normal, parts = statistics.NormalDist(), 2000
    shares = (((part + 0.5) / parts) ** (1 / workers) for part in range(parts))
    return statistics.fmean(math.exp(spread * normal.inv_cdf(share)) for share in shares)


def usable_workers(fleet: Fleet, nodes: int) -> int:
    """The most workers on `nodes` nodes that divide a step's micro-batches."""
    most = min(nodes * fleet.gpus, fleet.micro_batches)
    return next(count for count in range(most, 0, -1) if fleet.micro_batches % count == 0)


def _checkpoint(environment: "simpy.Environment", fleet: Fleet, state: State) -> Generator[Any, Any, None]:
    """Waits for the upload before, stalls while the workers write, and uploads behind the next steps."""
    if state.uploaded_at > environment.now:
        yield environment.timeout(state.uploaded_at - environment.now)
    yield environment.timeout(fleet.stall)
    state.uploaded_at = environment.now + fleet.checkpoint_gb / fleet.upload_gb_s
    state.pending.append((state.uploaded_at, state.done))


def _recover(
    environment: "simpy.Environment", fleet: Fleet, state: State, *, announced: bool
) -> Generator[Any, Any, None]:
    """Back to what is saved; then a restart on the nodes that are left, or on all once there is a new one.

    Interruptions during the recovery of another begin it again, without losing more.
    """
    import simpy

    for ended, steps in state.pending:
        if ended <= environment.now:
            state.saved = max(state.saved, steps)
    state.pending = [it for it in state.pending if it[0] > environment.now]
    if announced:
        state.saved = state.done
    state.pending.clear()
    state.uploaded_at = environment.now
    state.lost += state.done - state.saved
    state.done = state.saved
    while True:
        try:
            if announced:
                yield environment.timeout(fleet.stall)
                announced = False
            while not fleet.elastic and state.nodes < fleet.nodes:
                yield environment.timeout(5.0)
            yield environment.timeout(fleet.restart)
            _begin(state)
        except simpy.Interrupt:
            continue
        return


def _interrupt(
    environment: "simpy.Environment",
    fleet: Fleet,
    state: State,
    random: np.random.Generator,
    trainer: "simpy.Process",
) -> Generator[Any, Any, None]:
    while True:
        yield environment.timeout(random.exponential(fleet.between_failures))
        state.failures += 1
        state.nodes -= 1
        environment.process(_replace(environment, fleet, state, random))
        trainer.interrupt(random.random() < fleet.notice_share)


def _replace(
    environment: "simpy.Environment", fleet: Fleet, state: State, random: np.random.Generator
) -> Generator[Any, Any, None]:
    yield environment.timeout(random.exponential(fleet.replaced_after))
    state.nodes += 1
    state.growing |= fleet.elastic and usable_workers(fleet, state.nodes) > usable_workers(fleet, state.active)


def _slow_down(
    environment: "simpy.Environment", fleet: Fleet, state: State, random: np.random.Generator
) -> Generator[Any, Any, None]:
    while True:
        yield environment.timeout(random.exponential(fleet.slow_every_hours * HOUR / fleet.nodes))
        environment.process(_slow_spell(environment, fleet, state))


def _slow_spell(environment: "simpy.Environment", fleet: Fleet, state: State) -> Generator[Any, Any, None]:
    state.slow += 1
    yield environment.timeout(fleet.slow_for)
    state.slow -= 1


def _throttle(
    environment: "simpy.Environment", fleet: Fleet, state: State, random: np.random.Generator
) -> Generator[Any, Any, None]:
    while True:
        yield environment.timeout(random.exponential(fleet.throttled_every_hours * HOUR))
        state.throttled = True
        yield environment.timeout(fleet.throttled_for)
        state.throttled = False


def curve(fleet: Fleet, intervals: Sequence[float] = INTERVALS, seeds: Sequence[int] = SEEDS) -> list[float]:
    """The mean goodput at each interval between checkpoints."""
    return [
        statistics.fmean(simulate(replace(fleet, checkpoint_every=each), seed).goodput for seed in seeds)
        for each in intervals
    ]


def recommended(fleet: Fleet, goodput: Sequence[float], intervals: Sequence[float] = INTERVALS) -> dict[str, float]:
    """The best interval of a curve, next to Young's and Daly's for failures that lose work."""
    best = max(range(len(intervals)), key=goodput.__getitem__)
    return {
        "simulated": intervals[best],
        "young": round(young(fleet.stall, fleet.between_losses)),
        "daly": round(daly(fleet.stall, fleet.between_losses)),
    }


def ablation(fleet: Fleet, seeds: Sequence[int] = SEEDS) -> dict[str, float]:
    """Goodput with one kind of trouble left out at a time."""
    without: dict[str, dict[str, float]] = {
        "everything": {},
        "no stragglers": {"spread": 0.0, "slow_by": 1.0},
        "no throttling": {"throttled_by": 1.0},
        "no interruptions": {"node_mtbf_hours": 1e9},
        "every interruption announced": {"notice_share": 1.0},
        "none announced": {"notice_share": 0.0},
    }
    return {
        name: round(statistics.fmean(simulate(replace(fleet, **changes), seed).goodput for seed in seeds), 4)  # type: ignore[arg-type]
        for name, changes in without.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Prints the tables, draws the curves if asked, and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=Fleet.hours, help="simulated hours of each run")
    parser.add_argument("--plot", type=Path, help="PNG or SVG file of the curves")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the result")
    options = parser.parse_args(argv)
    rows = []
    header = "".join(f"{each / 60:>7.0f}" for each in INTERVALS)
    print(f"goodput by minutes between checkpoints\nMTBF h  part GB  workers  {header}   best  Young")
    for mtbf, size, elastic in itertools.product(MTBF_HOURS, SIZES_GB, (False, True)):
        fleet = Fleet(node_mtbf_hours=mtbf, checkpoint_gb=size, elastic=elastic, hours=options.hours)
        found = curve(fleet)
        best = recommended(fleet, found)
        rows.append({"mtbf_hours": mtbf, "part_gb": size, "elastic": elastic, "goodput": found, "best": best})
        shares = "".join(f"{share:>7.3f}" for share in found)
        kind = "elastic" if elastic else "fixed"
        print(f"{mtbf:>6.0f}{size:>9.1f}  {kind:8}{shares}{best['simulated'] / 60:>7.0f}{best['young'] / 60:>7.0f}")
    parts = ablation(Fleet(hours=options.hours))
    print("\n".join(f"{name:32}{share:>7.3f}" for name, share in parts.items()))
    if options.plot:
        _draw(rows, options.plot)
    keep("fleet", {"fleet": asdict(Fleet()), "intervals": INTERVALS, "curves": rows, "parts": parts}, options.results)


def _draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        label = f"{row['mtbf_hours']:.0f} h, {row['part_gb']:g} GB, {'elastic' if row['elastic'] else 'fixed'}"
        axes.plot([each / 60 for each in INTERVALS], row["goodput"], "--" if row["elastic"] else "-", label=label)
    axes.set(xscale="log", xlabel="minutes between checkpoints", ylabel="goodput")
    axes.legend(fontsize="x-small", title="node MTBF, part of a checkpoint, workers")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
