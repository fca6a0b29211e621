"""The sides of a benchmark: which processes a workload is timed in, and which peers are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.benchmarks.workloads import Layer, Workload

OURS = "bandjax"
EXPORT = "export"  # Writes a network as an ONNX file, for the peers that read one.
ONNX = ("onnxruntime", "openvino")
# On a CPU, XLA hands convolutions and products to a library, YNNPACK, unless this list is empty.
WITHOUT_YNN = "--xla_cpu_experimental_ynn_fusion_type="
_NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_MODULES = {
    "torch": ("torch",),
    "onnxruntime": ("onnxruntime", "onnx", "torch"),  # The network is exported by PyTorch.
    "openvino": ("openvino", "onnx", "torch"),
}
PACKAGES = ("torch", "onnxruntime", "onnx", "openvino")
INSTALL = "pip install 'bandjax[peers]'"


@dataclass(frozen=True)
class Side:
    """What one process times, with nothing else beside it.

    Attributes:
        peer: ``bandjax`` or one of a workload's peers; all its variants are timed in this process.
        variant: what tells it from another process of the same peer, in the names of what it times.
        xla_flags: in the process's environment.
    """

    peer: str
    variant: str = ""
    xla_flags: str = ""

    @property
    def name(self) -> str:
        """For a person."""
        return " ".join(filter(None, [self.peer, self.variant]))


def choose(
    workload: Workload, wanted: Sequence[str] | None, device: str, precision: str
) -> tuple[list[Side], dict[str, str]]:
    """The sides to time, bandjax first, and why other peers are left out.

    Args:
        workload: a layer or a network.
        wanted: peers; None for those that the workload names, as far as they are installed.
        device: ``cpu`` or ``gpu``.
        precision: of products.
    """
    left_out: dict[str, str] = {}
    sides = [Side(OURS)]
    for peer in workload.known_peers:
        if peer not in (workload.peers if wanted is None else wanted):
            if wanted is None:
                left_out[peer] = workload.without
            continue
        reason = _refusal(peer, workload, device, precision)
        reason = reason or missing(peer)
        if reason is not None:
            left_out[peer] = reason
            continue
        sides.append(Side(peer))
        if peer in ("lax", "flax") and device == "cpu":
            sides.append(Side(peer, "without YNN", WITHOUT_YNN))
    return sides, left_out


def _refusal(peer: str, workload: Workload, device: str, precision: str) -> str | None:
    """Why a peer does not compute a workload, or None."""
    if isinstance(workload, Layer):
        if peer == "fft-pow2" and workload.padding == "CIRCULAR":
            return "the grid of a periodic layer is its period"
        if peer.startswith("fft") and precision == "bf16":
            return "jnp.fft has no bfloat16"
        if peer == "torch" and workload.input_dilation > 1:
            return f"{workload.name}: PyTorch is not timed on transposed layers"
    if peer in ONNX and device != "cpu":
        return "it is timed on CPUs"
    if peer == "onnxruntime" and precision == "bf16":
        return "it has no bfloat16 on CPUs"
    return None


def missing(peer: str) -> str | None:
    """What is not installed of what a peer needs, in words; None if all is there."""
    absent = [m for m in _MODULES.get(peer, ()) if importlib.util.find_spec(m) is None]
    if not absent:
        return None
    names = [_NAMES.get(module, module) for module in absent]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not installed"
