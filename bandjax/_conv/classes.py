"""All methods; a further one is a further class in this tuple."""

from __future__ import annotations

from bandjax._conv.direct import NativeDirect
from bandjax._conv.methods import Dft, Direct, Fft, Method
from bandjax._conv.native_dft import NativeDft
from bandjax._conv.packed_dft import PackedDft
from bandjax._conv.tiles import FusedTiles, Tiles

CLASSES: tuple[type[Method], ...] = (
    *(Direct, Dft, PackedDft, Fft),
    *(NativeDirect, NativeDft, Tiles, FusedTiles),
)
