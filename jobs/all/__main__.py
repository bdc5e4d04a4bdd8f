"""`python -m jobs.all`."""

import sys

from jobs.all.command import main

sys.exit(main())
