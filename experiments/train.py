"""Train a network dense and band-limited, and compare.

    python -m experiments.train
    python -m experiments.train --model fcn --data ucr:FiftyWords --data-dir DIR

    python -m experiments.train --resume runs/cnn-digits

Each pair of a band and a seed is one run. A finished run leaves its own JSON file in the output
folder and is not repeated when the same command is started again; one that was stopped goes on from
its last checkpoint. The job ends with a table, a picture of the curves (curves.png) and a summary
of all runs in that folder (summary.json).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.jobs.launch import launch
from experiments.jobs.options import Options
from experiments.jobs.training import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return launch("experiments.train", Options, arguments, run_job)


if __name__ == "__main__":
    sys.exit(main())
