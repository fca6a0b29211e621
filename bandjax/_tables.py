"""A cache of NumPy tables that is bounded in bytes."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST_BYTES = 64 * 2**20


class TableCache:
    """Keeps the tables that were used last, up to a number of bytes in all.

    A program that is compiled holds its tables itself; the cache only spares the making of a table
    that several layers, or forward and backward pass, share.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.nbytes = 0
        self._tables: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, make: Callable[P, T]) -> Callable[P, T]:
        """Decorates a function of hashable arguments that returns arrays or tuples of them."""

        @functools.wraps(make)
        def cached(*args: P.args, **keywords: P.kwargs) -> T:
            key = make, args, tuple(sorted(keywords.items()))
            with self._lock:
                if key in self._tables:
                    self._tables.move_to_end(key)
                    found: T = self._tables[key][0]
                    return found
            made = make(*args, **keywords)
            self._keep(key, made)
            return made

        return cached

    def clear(self) -> None:
        """Lets go of every table."""
        with self._lock:
            self._tables.clear()
            self.nbytes = 0

    def _keep(self, key: Hashable, made: Any) -> None:
        """Adds a table, and drops those whose use is longest ago."""
        size = sum(a.nbytes for a in (made if isinstance(made, tuple) else (made,)))
        with self._lock:
            if size > self.most_bytes or key in self._tables:
                return
            self._tables[key] = made, size
            self.nbytes += size
            while self.nbytes > self.most_bytes:
                _, (_, dropped) = self._tables.popitem(last=False)
                self.nbytes -= dropped


tables = TableCache()
"""The cache of all transforms and products."""
