"""Where modules of version 0.1 are now, for the pickles that name them."""

from __future__ import annotations

import importlib
import sys

_MODULES = {
    "_band": "_bands.band",
    "_geometry": "_conv.geometry",
    "_hook": "_conv.lax",
    "_plan": "_bands.plan",
    "_select": "_flax.select",
    "_summary": "_flax.summary",
}

for _before, _now in _MODULES.items():
    sys.modules[f"bandjax.{_before}"] = importlib.import_module(f"bandjax.{_now}")
