"""`python -m benchmarks.serve_abuse`."""

import sys

from benchmarks.serve_abuse.measure import main

if __name__ == "__main__":
    sys.exit(main())
