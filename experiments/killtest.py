"""Kill a training run at random moments and compare: see :mod:`experiments.checks.kill`."""

from __future__ import annotations

import sys

from experiments.checks.kill import main

if __name__ == "__main__":
    sys.exit(main())
