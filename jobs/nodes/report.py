"""The survey of a cluster as a table and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from blip3o.train.preflight.memory import GIB
from jobs.nodes.judge import Finding, Node

HEADERS = ("node", "group", "CPUs", "GPUs", "memory", "disk free", "shm", "store", "latency", "clock")


def print_report(nodes: Sequence[Node], findings: Sequence[Finding]) -> None:
    """Prints a row for each node, and then a line for each finding."""
    rows = [HEADERS, *(_row(node) for node in nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for finding in findings:
        print(f"{finding.level}: {finding.node}: {finding.what}: {finding.fix}")


def as_json(nodes: Sequence[Node], findings: Sequence[Finding]) -> str:
    """All facts in bytes and seconds, and the findings."""
    tree = {"nodes": [asdict(node) for node in nodes], "findings": [asdict(finding) for finding in findings]}
    return json.dumps(tree, indent=2)


def write_json(target: str, text: str) -> None:
    """Writes to a file, or to stdout for `-`."""
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")


def _row(node: Node) -> tuple[str, ...]:
    facts, store, clock = node.facts, node.store, node.clock
    sizes = (facts.memory, facts.disk_free, facts.shared_memory) if facts else ()
    reached = store if store and not store.error else None
    return (
        node.address,
        node.group,
        f"{node.cpus:g}",
        str(len(facts.gpus)) if facts else "-",
        *(f"{size / GIB:.1f} GiB" for size in sizes),
        *("-" for _ in range(3 - len(sizes))),
        f"{reached.read / 1e6:.0f} MB/s" if reached else "-",
        f"{1e3 * reached.latency:.1f} ms" if reached else "-",
        f"{1e3 * clock.ahead:+.1f} ms" if clock else "-",
    )
