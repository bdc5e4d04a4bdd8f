"""The object store of a demo: its names, where a demo's folder has it, and its bundle."""

from pathlib import Path

from blip3o.errors import ConfigError
from cluster.local_s3 import holds_store

FOLDER = Path("runs/demo")
BUCKET = "blip3o"
STORE = "store"  # the folder of the object store, in that of the demo
BASE = f"s3://{BUCKET}"
BUNDLE = f"{BASE}/bundles/demo"


def find_store(folder: Path) -> Path:
    """The data of the store in a demo's folder, or the folder itself. Raises `ConfigError` if neither is a store's."""
    for found in (folder / STORE, folder):
        if holds_store(found):
            return found
    raise ConfigError(f"{folder} holds no store: give the folder of a demo (`blip3o demo --out {folder}` makes one)")
