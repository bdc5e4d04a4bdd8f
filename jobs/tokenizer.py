"""`blip3o tokenizer RECIPE`: trains the tokenizer of a small model on its own captions and questions.

A model that starts from a released backbone uses that backbone's tokenizer.json and does not need this. The work is
`blip3o.data.text.tokenizer_training`.
"""

import logging
import sys

from blip3o import storage
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.data.text.tokenizer_training import train_tokenizer
from blip3o.storage.sizes import readable
from jobs.common import DryRun, RecipeName, StageOverrides, entry_point, open_pipeline

logger = logging.getLogger(__name__)


def command(recipe: RecipeName, *, overrides: StageOverrides, dry_run: DryRun = False) -> None:
    """Train the tokenizer of a small model on the sources of a recipe, or of a pipeline's first stage."""
    pipeline = open_pipeline(recipe, overrides, dry_run=dry_run)
    if dry_run:
        return
    first = pipeline.stages[0]
    uri = tokenizer_uri(first.data)
    before = storage.read_bytes(uri) if storage.exists(uri) else None
    tokenizer = train_tokenizer(first)
    after = tokenizer.to_bytes()
    did = "the same tokenizer is already there:" if after == before else "wrote tokenizer"
    print(f"{did} {uri} ({len(tokenizer)} tokens, {readable(len(after))})")
    if before not in (None, after):
        logger.warning("it replaces another tokenizer: runs that were trained with that one cannot be resumed")


main = entry_point("tokenizer", command)

if __name__ == "__main__":
    sys.exit(main())
