"""The rule by which ``method="auto"`` chooses."""

from __future__ import annotations

from bandjax._geometry import ConvGeometry


def cheapest_method(geometry: ConvGeometry, platform: str) -> str:
    return "direct" if geometry.exact else "dft"
