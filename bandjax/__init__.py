"""Band-limited convolution for JAX and Flax.

``band_conv`` is the operator; ``BandConv`` the layer for ``flax.nnx`` (``bandjax.linen.BandConv``
for ``flax.linen``). Only the layers need Flax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bandjax import memory as memory
from bandjax import plot as plot
from bandjax import schedule as schedule
from bandjax import spectral as spectral
from bandjax._allocator import tune_allocator as tune_allocator
from bandjax._band import Band as Band
from bandjax._band import Compression as Compression
from bandjax._band import Energy as Energy
from bandjax._band import Modes as Modes
from bandjax._calibrate import calibrate as calibrate
from bandjax._checkpoint import checkpoint as checkpoint
from bandjax._checkpoint import save_spectra as save_spectra
from bandjax._conv import band_conv as band_conv
from bandjax._extension import native_status as native_status
from bandjax._geometry import ConvGeometry as ConvGeometry
from bandjax._geometry import conv_geometry as conv_geometry
from bandjax._hook import conv_general_dilated as conv_general_dilated
from bandjax._native import NATIVE_TARGETS as NATIVE_TARGETS
from bandjax._plan import LayerPlan as LayerPlan
from bandjax._plan import Plan as Plan
from bandjax._select import ConvLayer as ConvLayer
from bandjax._select import LimitReport as LimitReport
from bandjax._spectral_conv import spectral_conv as spectral_conv
from bandjax._summary import LayerSummary as LayerSummary
from bandjax._summary import Summary as Summary
from bandjax._summary import summary as summary

if TYPE_CHECKING:
    from bandjax import linen as linen
    from bandjax import nnx as nnx
    from bandjax.nnx import BandConv as BandConv

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what needs Flax when it is first asked for."""
    if name in ("nnx", "linen"):
        return importlib.import_module(f"bandjax.{name}")
    if name == "BandConv":
        return importlib.import_module("bandjax.nnx").BandConv
    raise AttributeError(f"module 'bandjax' has no attribute {name!r}")
