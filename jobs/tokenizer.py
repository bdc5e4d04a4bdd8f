"""`blip3o tokenizer RECIPE`: trains the tokenizer of a small model on its own captions and questions.

A model that starts from a released backbone uses that backbone's tokenizer.json and does not need this. The work is
`blip3o.data.text.tokenizer_training`.
"""

import sys

from blip3o.data.text.tokenizer_training import train_tokenizer
from jobs.common import DryRun, RecipeName, StageOverrides, entry_point, open_pipeline


def command(recipe: RecipeName, *, overrides: StageOverrides, dry_run: DryRun = False) -> None:
    """Train the tokenizer of a small model on the sources of a recipe, or of a pipeline's first stage."""
    pipeline = open_pipeline(recipe, overrides, dry_run=dry_run)
    if not dry_run:
        train_tokenizer(pipeline.stages[0])


main = entry_point("tokenizer", command)

if __name__ == "__main__":
    sys.exit(main())
