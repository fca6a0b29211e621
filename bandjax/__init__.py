"""Band-limited convolution for JAX and Flax.

``band_conv`` is the operator; ``BandConv`` the layer for ``flax.nnx`` (``bandjax.linen.BandConv``
for ``flax.linen``, ``bandjax.equinox`` and ``bandjax.keras`` for Equinox and Keras). Only the
layers need these libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bandjax import _renamed as _renamed
from bandjax import codecs as codecs
from bandjax import memory as memory
from bandjax import plot as plot
from bandjax import schedule as schedule
from bandjax import spectral as spectral
from bandjax._allocator import tune_allocator as tune_allocator
from bandjax._bands.band import Band as Band
from bandjax._bands.band import Compression as Compression
from bandjax._bands.band import Energy as Energy
from bandjax._bands.band import Modes as Modes
from bandjax._bands.band import Nyquist as Nyquist
from bandjax._bands.plan import Budget as Budget
from bandjax._bands.plan import LayerPlan as LayerPlan
from bandjax._bands.plan import Plan as Plan
from bandjax._conv.band_conv import band_conv as band_conv
from bandjax._conv.geometry import ConvGeometry as ConvGeometry
from bandjax._conv.geometry import conv_geometry as conv_geometry
from bandjax._conv.lax import conv_general_dilated as conv_general_dilated
from bandjax._conv.remat import checkpoint as checkpoint
from bandjax._conv.remat import save_spectra as save_spectra
from bandjax._conv.spectral_conv import spectral_conv as spectral_conv
from bandjax._flax.allocate import allocate as allocate
from bandjax._flax.calibrate import calibrate as calibrate
from bandjax._flax.prepare_report import PreparedLayer as PreparedLayer
from bandjax._flax.prepare_report import PrepareReport as PrepareReport
from bandjax._flax.select import ConvLayer as ConvLayer
from bandjax._flax.select import LimitReport as LimitReport
from bandjax._flax.summary import LayerSummary as LayerSummary
from bandjax._flax.summary import Summary as Summary
from bandjax._flax.summary import summary as summary
from bandjax._native.call import NATIVE_TARGETS as NATIVE_TARGETS
from bandjax._native.extension import native_status as native_status
from bandjax._saved.calibrate import FittedDct as FittedDct
from bandjax._saved.calibrate import FittedMap as FittedMap
from bandjax._saved.calibrate import calibrate_codec as calibrate_codec
from bandjax._saved.compress import compress_saved as compress_saved

if TYPE_CHECKING:
    from bandjax import equinox as equinox
    from bandjax import keras as keras
    from bandjax import linen as linen
    from bandjax import nnx as nnx
    from bandjax.nnx import BandConv as BandConv

__version__ = "0.1.0"


_NEED_FLAX = ("BandConv", "linen", "nnx")


def __getattr__(name: str) -> Any:
    """Imports what needs another library when it is first asked for."""
    if name in ("equinox", "keras", "linen", "nnx"):
        return importlib.import_module(f"bandjax.{name}")
    if name == "BandConv":
        return importlib.import_module("bandjax.nnx").BandConv
    raise AttributeError(f"module 'bandjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names, those that are imported when asked for among them."""
    return sorted({*globals(), *_NEED_FLAX})
