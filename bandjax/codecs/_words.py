"""Numbers of few bits in words of 32, and which number gets how many."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

WORD = 32
LEAST, MOST = 2, 12  # bits of a coefficient that is kept
_DROPPED = 12.0**-0.5  # of a step: a weaker coefficient is nearer to 0 than to its code


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the codes of a block lie.

    Attributes:
      words: words of a block; the first begins with the block's header.
      header: bits of it.
      word: of each value, the word that holds its code.
      shift: the lowest bit there.
      width: bits; 0 for a value that is not kept.
    """

    words: int
    header: int
    word: tuple[int, ...]
    shift: tuple[int, ...]
    width: tuple[int, ...]

    @property
    def table(self) -> np.ndarray:
        """Word, lowest bit and width of each value, int32 ``(values, 3)``."""
        return np.array([self.word, self.shift, self.width], np.int32).T

    @property
    def fullest(self) -> int:
        """Codes in the word that holds most of them."""
        kept = [w for w, width in zip(self.word, self.width, strict=True) if width]
        return max(map(kept.count, set(kept)), default=1)


# The layout as an operand: a partitioned function may not hold arrays of its own.


def pack_words(
    header: jax.Array, codes: jax.Array, table: jax.Array, words: int, fullest: int
) -> jax.Array:
    """Packs headers ``(N, places, lanes)`` and codes ``(N, places, values, lanes)``, uint32.

    Returns ``(N, places, words, lanes)``.
    """
    word, shift, width = table.T
    # The codes of a word one after another, in so many places as the fullest word has; what is not
    # kept comes last.
    owner = jnp.where(width > 0, word, words)
    number = jax.lax.broadcasted_iota(jnp.int32, (words, 1), 0)
    first = jnp.sum(owner[None] < number, 1, dtype=jnp.int32, keepdims=True)
    place = first + jax.lax.broadcasted_iota(jnp.int32, (1, fullest), 1)
    value = jnp.argsort(owner)[jnp.minimum(place, owner.size - 1)]
    used = (place < owner.size) & (owner[value] == number)
    n, places, _, lanes = codes.shape
    own = jnp.take(codes, value.ravel(), 2).reshape(n, places, words, fullest, lanes)
    own = own << shift[value].astype(jnp.uint32)[None, None, :, :, None]
    packed = jnp.sum(jnp.where(used[None, None, :, :, None], own, 0), 3, dtype=jnp.uint32)
    return packed.at[:, :, 0].add(header)


def unpack_words(words: jax.Array, table: jax.Array) -> jax.Array:
    """The codes; 0 where nothing was kept."""
    _, shift, width = (c.astype(jnp.uint32) for c in _columns(table))
    mask = (jnp.ones_like(width) << width) - np.uint32(1)
    return (jnp.take(words, table[:, 0], 2) >> shift) & mask


def _columns(table: jax.Array) -> tuple[jax.Array, ...]:
    word, shift, width = (column[None, None, :, None] for column in table.T)
    return word, shift, width


def fit(header: int, widths: Sequence[int], words: int | None) -> Layout | None:
    """Puts widths into words, the widest first, each where it first fits.

    Args:
      header: bits of the first word that are taken.
      widths: of each value.
      words: how many there are; None for as many as it takes.

    Returns:
      None where they do not fit.
    """
    taken = [header]
    word, shift = [0] * len(widths), [0] * len(widths)
    for k in sorted(range(len(widths)), key=lambda k: (-widths[k], k)):
        if not widths[k]:
            continue
        place = next((w for w, used in enumerate(taken) if used + widths[k] <= WORD), len(taken))
        if place == len(taken):
            if words is not None and place >= words:
                return None
            taken.append(0)
        word[k], shift[k] = place, taken[place]
        taken[place] += widths[k]
    return Layout(words or len(taken), header, tuple(word), tuple(shift), tuple(widths))


def reach(width: int) -> float:
    """The largest magnitude, in steps, that a code of so many bits holds whatever the dither."""
    return float((1 << width >> 1) - 0.5)


@functools.lru_cache(maxsize=1024)
def allocate(strengths: tuple[float, ...], words: int, header: int, loading: float) -> Layout:
    """Bits for values of known strength, by reverse water-filling.

    All values share one quantisation step. Those weaker than what is lost by the step itself get no
    bits; every other gets the fewest whose range is ``loading`` times its strength. The step is the
    smallest for which the codes fit. Bits that are then left over widen the codes beside them.

    Args:
      strengths: standard deviation of each value.
      words: of a block.
      header: bits of it.
      loading: how many times its standard deviation a value may reach.

    Source: Cover and Thomas, "Elements of Information Theory", 2nd edition, section 10.3.3.
    """
    top = max(strengths) or 1.0
    layout = fit(header, [0] * len(strengths), words)
    assert layout is not None
    low, high = math.log2(top) - 16, math.log2(top) + 8
    for _ in range(24):
        middle = (low + high) / 2
        found = fit(header, _widths(strengths, 2.0**middle, loading), words)
        if found is None:
            low = middle
        else:
            high, layout = middle, found
    return _filled(layout, strengths)


def _widths(strengths: Sequence[float], step: float, loading: float) -> list[int]:
    """The bits of each value at a step."""
    widths = []
    for strength in strengths:
        width = 0
        if strength > step * _DROPPED:
            width = LEAST
            while width < MOST and reach(width) * step < loading * strength:
                width += 1
        widths.append(width)
    return widths


def _filled(layout: Layout, strengths: Sequence[float]) -> Layout:
    """Spends what is left: on dropped values first, then on those that reach farthest."""
    widths = list(layout.width)
    best = layout

    def need(k: int) -> float:
        return strengths[k] / reach(widths[k]) if widths[k] else math.inf

    for k in sorted((k for k, w in enumerate(widths) if not w), key=lambda k: -strengths[k]):
        widths[k] = LEAST
        found = fit(layout.header, widths, layout.words)
        if found is None:
            widths[k] = 0
            break
        best = found
    stuck: set[int] = set()
    while True:
        open_ = [k for k, w in enumerate(widths) if w and w < MOST and k not in stuck]
        if not open_:
            return best
        k = max(open_, key=lambda k: (need(k), -k))
        widths[k] += 1
        found = fit(layout.header, widths, layout.words)
        if found is None:
            widths[k] -= 1
            stuck.add(k)
        else:
            best = found
