"""How the tests stop a run."""

from __future__ import annotations

from experiments.jobs.runs import Stop


class AtThird(Stop):
    """Asks to stop after each third step that this process takes."""

    count = 0

    @property
    def asked(self):
        self.count += 1
        return self.count >= 3
