"""How far the program runs ahead of the device."""

from __future__ import annotations

import time

import jax

from experiments.training.network import Sums

LONGEST = 16  # steps at a time
SECONDS = 0.03


class Pace:
    """Waits for the device, now and then, while the steps of a network are started.

    To wait after each step keeps the device from idling if one more is under way already, but it
    takes 0.1 ms: much for a step of 2 ms. Short steps are therefore waited for several at a time,
    so many as take :data:`SECONDS` but no more than :data:`LONGEST`. Steps that are longer than
    that are waited for one by one, while the next one runs. Of several processes each does so: they
    must look at the same steps.

    Attributes:
        many: how many steps are waited for at a time.
        ended: the sums of a step that has ended.
    """

    def __init__(self) -> None:
        self.many = 1

    def begin(self, sums: Sums) -> None:
        """An epoch begins, with no step under way.

        Args:
            sums: before its first step.
        """
        self.ended = sums
        self._next, self._at, self._upto = sums, 0, self.many  # What is waited for, and when.
        self._waited = 0  # steps behind the last one that was waited for
        self._since: float | None = None  # when that one had ended

    def started(self, done: int, sums: Sums) -> None:
        """Another step has been started.

        Args:
            done: how many have been, since :meth:`begin`.
            sums: behind it.
        """
        if done < self._upto:
            return
        self._next.loss.block_until_ready()
        now = time.perf_counter()
        count = self._at - self._waited
        if jax.process_count() == 1 and self._since is not None and count > 0:
            self.many = max(1, min(LONGEST, int(SECONDS * count / (now - self._since))))
        self.ended, self._waited, self._since = self._next, self._at, now
        self._next, self._at, self._upto = sums, done, done + self.many
