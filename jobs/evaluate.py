"""Scores a bundle on held-out data: `python -m jobs.evaluate RECIPE --bundle URI [--out URI] [--set key=value …]`.

With `--suite NAME[,NAME] --target URI` instead of the recipe it runs benchmarks (`jobs.evaluation.command`). What is
measured is in `blip3o.evaluate.heldout.evaluation`.
"""

import argparse
import json
import sys

from blip3o import settings, storage
from blip3o.config.recipe import Recipe
from blip3o.evaluate.heldout.evaluation import evaluate
from jobs.common import run_job
from jobs.evaluation import command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, metavar="URI", help="the folder that jobs.export wrote")
    parser.add_argument("--out", metavar="URI", help="where the results go (default: evaluation/ of the recipe's run)")


def _run(recipe: Recipe, options: argparse.Namespace) -> None:
    out = options.out or storage.join(recipe.run.storage, recipe.run.name, "evaluation")
    scores = evaluate(recipe, options.bundle, out).scores
    print(json.dumps(scores, indent=1, ensure_ascii=False))
    print(f"written to {storage.normalize(out)}: evaluation.json, answers.jsonl, grid.png, report.html")


_HELP = "Score a bundle on held-out data. For benchmarks give --suite NAME --target URI instead (--suite NAME --help)."


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    arguments = sys.argv[1:] if argv is None else argv
    if any(argument.partition("=")[0] == "--suite" for argument in arguments):
        return command.main(arguments)
    return run_job("evaluate", _HELP, _run, argv, extend=_options)


if __name__ == "__main__":
    settings.configure_ray()
    sys.exit(main())
