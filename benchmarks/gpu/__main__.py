"""`python -m benchmarks.gpu VERB [--device cpu|gpu] [--size nano|full] [--only PART …] [--out FOLDER]`.

Exit code 0 if every part ran to its end and everything that must be equal is; a part that the time did not allow is a
failure, a missed goal of speed is printed and is none.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks._measure import RESULTS
from benchmarks.gpu.bench import Bench, Options
from blip3o import log, settings

VERBS = ("parity", "step", "resume", "draw", "encode")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--size", choices=("nano", "full"), default="full", help="nano: seconds on a CPU")
    parser.add_argument("--only", action="append", metavar="PART", help="one part of the verb; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result")
    parser.add_argument("--seconds", type=float, default=540.0, help="after these, no further part or case is begun")
    parser.add_argument("--same-process", action="store_true", help="resume: new engines, but no new processes")
    options = vars(parser.parse_args(argv))
    only = options.pop("only")
    parts = import_module(f"benchmarks.gpu.{options['verb']}").PARTS
    if unknown := set(only or ()) - set(parts):
        parser.error(f"{options['verb']} has no part {', '.join(sorted(unknown))}: it has {', '.join(parts)}")
    log.configure()
    settings.configure_ray()
    bench = Bench(Options(**options))
    return bench.run({name: part for name, part in parts.items() if not only or name in only})


if __name__ == "__main__":
    sys.exit(main())
