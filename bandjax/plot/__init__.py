"""Pictures of spectra and of compression.

:func:`spectrum` draws one spectrum, :func:`layer_spectra` those of a layer's input, filter, output
and gradient (:func:`layer_signals` records them), :func:`compression` how much each layer drops.
They draw with matplotlib, which the extra ``bandjax[report]`` installs.

Magnitudes are root mean squares over batch and channels, in decibels,
``20 log10(magnitude / reference)``. Frequencies are in cycles on the grid, the integers ``u`` of
:mod:`bandjax.spectral`.
"""

from __future__ import annotations

from bandjax._flax.capture import LayerSignals, layer_signals
from bandjax.plot._figures import compression, layer_spectra, spectrum

__all__ = ["LayerSignals", "compression", "layer_signals", "layer_spectra", "spectrum"]
