"""`blip3o store FOLDER [--port N]`: starts the S3 store again that `blip3o demo` left in its folder, until Ctrl-C.

What it prints can be pasted into another terminal, or sourced from a file: lines that are no settings are comments.
"""

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.local_s3 import LocalS3
from jobs.commands.demo_store import BASE, BUNDLE, find_store
from jobs.common import entry_point


def instructions(folder: Path, environment: dict[str, str]) -> str:
    """What to set to use a store, as lines of a shell."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    return "\n".join(
        (
            f"# the S3 store in {folder} is up until Ctrl-C; in another terminal:",
            *exports,
            f"# then, for example: blip3o runs --storage {BASE}/runs",
            f"# or: blip3o generate --bundle {BUNDLE} 'a red circle'",
        )
    )


def command(
    folder: Annotated[Path, typer.Argument(help="Folder of a demo, e.g. runs/demo.", show_default=False)],
    *,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; a free one if omitted.")] = None,
) -> None:
    """Start a demo's S3 store again, until Ctrl-C, and print what to set to use it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with LocalS3(data_dir=find_store(folder), port=port) as store:
        print(instructions(folder, store.environment), flush=True)
        try:
            store.wait()
        except KeyboardInterrupt:
            print("# stopping", flush=True)


main = entry_point("store", command)

if __name__ == "__main__":
    sys.exit(main())
