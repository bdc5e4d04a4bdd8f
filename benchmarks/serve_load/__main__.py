"""`python -m benchmarks.serve_load`."""

import sys

from benchmarks.serve_load.comparison import main
from blip3o.errors import ServiceError

if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServiceError as error:
        sys.exit(f"serve_load: {error}")
