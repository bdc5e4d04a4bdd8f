"""`python -m jobs.submit RECIPE …`, which is `blip3o submit`."""

import sys

from jobs.submit.command import main

if __name__ == "__main__":
    sys.exit(main())
