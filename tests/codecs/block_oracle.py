"""What codecs store, read by NumPy in float64."""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np
import pytest

from bandjax._native import extension, packing
from bandjax.codecs import Average, Dct, Uniform
from bandjax.codecs import _blocks as library_blocks

LONGEST = {0: 1, 1: 64, 2: 8, 3: 4}


@contextlib.contextmanager
def kernels(way):
    """With the native kernels, or without."""
    if way == "native":
        if not extension.available("cpu"):
            pytest.skip("no native kernels")
        yield
        return
    clear = (packing._pack, packing._unpack, packing._pack_bits, packing._unpack_bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "available", lambda platform: False)
        for operation in clear:
            operation.cache_clear()
        yield
    for operation in clear:
        operation.cache_clear()


class Blocks:
    """Arrays cut into blocks by loops."""

    def __init__(self, shape, longest=None, values=64, flat=False):
        *leading, self.channels = (1,) * (2 - len(shape)) + tuple(shape)
        rank = min(len(leading) - 1, 3)
        self.examples = math.prod(leading[: len(leading) - rank])
        self.spatial = leading[len(leading) - rank :]
        if flat and rank:
            self.spatial = [math.prod(self.spatial)]
        most = longest or LONGEST[len(self.spatial)]
        self.counts = [math.ceil(n / most) for n in self.spatial]
        self.sizes = [math.ceil(n / k) for n, k in zip(self.spatial, self.counts, strict=True)]
        self.points = math.prod(self.sizes)
        merged = max(1, min(values // self.points, self.channels))
        self.lanes = math.ceil(self.channels / merged)
        self.merged = math.ceil(self.channels / self.lanes)

    def split(self, x):
        """``(N, places, points, merged, lanes)``."""
        x = x.reshape(self.examples, *self.spatial, self.channels)
        filled = np.zeros((*x.shape[:-1], self.merged * self.lanes))
        filled[..., : self.channels] = x
        places = []
        for at in itertools.product(*map(range, self.counts)):
            axes = [
                np.minimum(np.arange(i * b, (i + 1) * b), n - 1)
                for i, b, n in zip(at, self.sizes, self.spatial, strict=True)
            ]
            block = filled[np.ix_(range(self.examples), *axes, range(filled.shape[-1]))]
            places.append(block.reshape(self.examples, self.points, self.merged, self.lanes))
        return np.stack(places, 1)

    def join(self, blocks):
        out = np.zeros((self.examples, *self.spatial, self.merged * self.lanes))
        for place, at in enumerate(itertools.product(*map(range, self.counts))):
            whole = blocks[:, place].reshape(self.examples, *self.sizes, -1)
            into = tuple(
                slice(i * b, min((i + 1) * b, n))
                for i, b, n in zip(at, self.sizes, self.spatial, strict=True)
            )
            part = tuple(slice(s.stop - s.start) for s in into)
            out[(slice(None), *into)] = whole[(slice(None), *part)]
        return out[..., : self.channels]

    def _matrix(self):
        matrix = np.ones((1, 1))
        for n in self.sizes:
            axis = np.empty((n, n))
            for k in range(n):
                for i in range(n):
                    scale = math.sqrt((2 if k else 1) / n)
                    axis[k, i] = scale * math.cos(math.pi * k * (2 * i + 1) / (2 * n))
            matrix = np.kron(matrix, axis)
        return matrix

    def coefficients(self, x):
        """``(N, places, points * merged, lanes)``."""
        out = np.einsum("kp,nbpml->nbkml", self._matrix(), self.split(x))
        return out.reshape(*out.shape[:2], -1, self.lanes)

    def values(self, coefficients):
        split = coefficients.reshape(*coefficients.shape[:2], self.points, self.merged, self.lanes)
        return self.join(np.einsum("kp,nbkml->nbpml", self._matrix(), split))


def _layout(codec, blocks):
    examples, spatial = blocks.examples, tuple(blocks.spatial)
    return codec.layout(library_blocks.blocks_of((examples, *spatial, blocks.channels)))


def widths(codec, blocks):
    return _layout(codec, blocks).width


def _mixed(x):
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


def read_dct(codec, blocks, words, keys):
    """The coefficients that words hold, and the steps."""
    layout = _layout(codec, blocks)
    words = words.astype(np.uint64)
    step = ((words[:, :, 0] & 0xFFF) << 19).astype(np.uint32).view(np.float32).astype(float)
    n, places, _, lanes = words.shape
    out = np.zeros((n, places, len(layout.width), lanes))
    for i, b, lane in itertools.product(range(n), range(places), range(lanes)):
        first = _mixed((int(keys[i]) + b * lanes + lane) & 0xFFFFFFFF)
        for k, width in enumerate(layout.width):
            if not width:
                continue
            code = (int(words[i, b, layout.word[k], lane]) >> layout.shift[k]) % 2**width
            noise = ((first + (k + 1) * 0x9E3779B9) % 2**32 >> 8) / 2**24 - 0.5
            out[i, b, k, lane] = (code - 2 ** (width - 1) - noise + 0.5) * step[i, b, lane]
    return out, step


def bound(codec, x):
    """How far each value may be off, as the docstring of the codec tells."""
    if isinstance(codec, Dct):
        blocks = Blocks(x.shape)
        true = blocks.coefficients(x)
        width = np.array(widths(codec, blocks))
        kept = width > 0
        reach = (2.0 ** (width[kept] - 1) - 0.5)[:, None]
        step = 1.0625 * (np.abs(true[:, :, kept]) / reach).max(2)
        lost = np.sqrt((true[:, :, ~kept] ** 2).sum(2))
        each = step * math.sqrt(len(width)) / 2 + lost
    else:
        average = isinstance(codec, Average)
        longest = codec.block if average else codec.group
        blocks = Blocks(x.shape, longest, 64 if average else codec.group, flat=not average)
        values = blocks.split(x).reshape(
            blocks.examples, -1, blocks.points * blocks.merged, blocks.lanes
        )
        if average:
            values = values - values.mean(2, keepdims=True)
        low, high = values.min(2), values.max(2)
        assert isinstance(codec, Average | Uniform)
        each = 1.05 * (high - low) / (2**codec.bits - 1) + np.abs(low) / 32
        if average:
            each = each + np.abs(blocks.split(x).reshape(values.shape).mean(2)) / 32
    filled = np.repeat(each[:, :, None], blocks.points * blocks.merged, 2)
    return blocks.join(filled).reshape(x.shape)
