"""Inference by ONNX Runtime and by OpenVINO, of the network that PyTorch has exported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.benchmarks.candidates import Candidate
from experiments.benchmarks.examples import ONNX_FILE, random_examples
from experiments.benchmarks.workloads import Network
from experiments.settings.errors import UserError


def candidate(peer: str, network: Network, folder: Path, precision: str) -> Candidate:
    """The network by ``onnxruntime`` or ``openvino``, with as many threads as cores.

    Raises:
        UserError: the processor has no such precision.
    """
    images, _ = random_examples(network)
    x = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    make = {"onnxruntime": _onnxruntime, "openvino": _openvino}[peer]
    call = make(folder / ONNX_FILE, x, precision)
    return Candidate(peer, peer, None, call=call, results=lambda logits: (np.array(logits),))


def _onnxruntime(path: Path, x: np.ndarray, precision: str) -> Callable[[], np.ndarray]:
    """A call that computes the logits."""
    assert precision == "float32"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call() -> np.ndarray:
        (logits,) = session.run(None, {"x": x})
        return logits

    return call


def _openvino(path: Path, x: np.ndarray, precision: str) -> Callable[[], np.ndarray]:
    """A call that computes the logits, tuned for latency."""
    import openvino
    from openvino import properties

    wanted = {"float32": openvino.Type.f32, "bf16": openvino.Type.bf16}[precision]
    compiled = openvino.Core().compile_model(
        path,
        "CPU",
        {
            properties.hint.inference_precision: wanted,
            properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
            properties.inference_num_threads: os.cpu_count() or 1,
        },
    )
    used = compiled.get_property(properties.hint.inference_precision)
    if used != wanted:
        raise UserError(f"on this processor it computes in {used.get_type_name()}")
    request = compiled.create_infer_request()

    def call() -> np.ndarray:
        request.infer([x], share_inputs=True, share_outputs=True)
        return request.get_output_tensor().data

    return call
