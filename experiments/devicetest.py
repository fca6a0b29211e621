"""Train on one device and on several, and compare: see :mod:`experiments.checks.devices`."""

from __future__ import annotations

import sys

from experiments.checks.devices import main

if __name__ == "__main__":
    sys.exit(main())
