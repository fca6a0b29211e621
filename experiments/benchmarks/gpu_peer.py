"""PyTorch's side of the benchmark of GPUs, and the convolutions that users report as slow."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

# The convolutions that users of JAX report as slow, with every frequency kept: name, input,
# kernel, and arguments of lax.conv_general_dilated.
USERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D, 100 taps": ((16, 4096, 64), (100, 64, 64), {"padding": "SAME"}),
    "31x31 depthwise": (
        (32, 32, 32, 256),
        (31, 31, 1, 256),
        {"padding": "SAME", "feature_group_count": 256},
    ),
    "16x16": ((32, 64, 64, 32), (16, 16, 32, 32), {"padding": "SAME"}),
    "stem 7x7/2": (
        (32, 224, 224, 3),
        (7, 7, 3, 64),
        {"padding": [(3, 3), (3, 3)], "window_strides": (2, 2)},
    ),
    "7x7 depthwise": (
        (32, 64, 64, 256),
        (7, 7, 1, 256),
        {"padding": "SAME", "feature_group_count": 256},
    ),
    "1-D, 1,001 taps, depthwise": (
        (16, 16384, 64),
        (1001, 1, 64),
        {"padding": "SAME", "feature_group_count": 64},
    ),
    "3-D transposed 4x4x4/2": (
        (4, 32, 32, 32, 64),
        (4, 4, 4, 64, 32),
        {"lhs_dilation": (2, 2, 2), "padding": [(2, 2)] * 3},
    ),
    "3-D transposed 4x4x4/2, 64 to 1": (
        (4, 32, 32, 32, 64),
        (4, 4, 4, 64, 1),
        {"lhs_dilation": (2, 2, 2), "padding": [(2, 2)] * 3},
    ),
    "grouped 3x3, 8 groups": (
        (32, 64, 64, 256),
        (3, 3, 32, 256),
        {"padding": "SAME", "feature_group_count": 8},
    ),
    "depthwise 3x3": (
        (32, 64, 64, 256),
        (3, 3, 1, 256),
        {"padding": "SAME", "feature_group_count": 256},
    ),
    "3-D 3x3x3": ((4, 32, 32, 32, 64), (3, 3, 3, 64, 64), {"padding": "SAME"}),
    "3x3, dilated by 2": (
        (32, 64, 64, 128),
        (3, 3, 128, 128),
        {"padding": "SAME", "rhs_dilation": (2, 2)},
    ),
    "1-D transposed, stride 8": (
        (16, 2048, 64),
        (16, 64, 64),
        {"lhs_dilation": (8,), "padding": [(11, 12)]},
    ),
}


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """Returns ``run`` as a CUDA graph, which no host can delay."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def seconds(
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    how: dict[str, Any],
    options: argparse.Namespace,
    dtype: str = "float32",
    calls: int = 2,
) -> dict[str, Any]:
    """PyTorch's time of one training call, channels last, TF32 as JAX has it."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    rank = len(x_shape) - 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    groups = how.get("feature_group_count", 1)
    n, *size, c = x_shape
    *taps, per_group, o = w_shape
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(rank, torch.contiguous_format)
    kind = getattr(torch, dtype)

    def array(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=kind).to(memory_format=last)

    if "lhs_dilation" in how:
        stride = how["lhs_dilation"][0]
        low = how["padding"][0][0]
        conv = getattr(torch.nn.functional, f"conv_transpose{rank}d")
        total = sum(how["padding"][0])
        more = {"stride": stride, "padding": taps[0] - 1 - low}
        more["output_padding"] = total - 2 * low
        weights = (c, o, *taps)
    else:
        conv = getattr(torch.nn.functional, f"conv{rank}d")
        dilation = how.get("rhs_dilation", (1,))[0]
        pads = how["padding"]
        pad = (taps[0] - 1) * dilation // 2 if isinstance(pads, str) else pads[0][0]
        stride = how.get("window_strides", (1,))[0]
        more = {"stride": stride, "padding": pad, "dilation": dilation, "groups": groups}
        if taps[0] % 2 == 0:
            more["padding"] = "same"
        weights = (o, per_group, *taps)
    xs = [array(n, c, *size).requires_grad_() for _ in range(calls)]
    w = array(*weights).requires_grad_()
    ct = torch.randn_like(conv(xs[0], w, **more))

    def run() -> None:
        for x in xs:
            torch.autograd.grad(conv(x, w, **more), (x, w), ct)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    run()
    wait()
    call = run if device == "cpu" else captured(run)
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        for _ in range(4):
            call()
        wait()
        times.append((time.perf_counter() - start) / (4 * calls))
    return {"us": 1e6 * statistics.median(times), "us_min": 1e6 * min(times)}
