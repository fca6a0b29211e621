"""The dense peers on PyTorch: a convolution, a ResNet's training step, its inference.

Importing this module imports PyTorch, which bandjax and its tests do without.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks.candidates import Arrays, Candidate, moved, restored
from experiments.benchmarks.examples import ONNX_FILE
from experiments.benchmarks.workloads import Layer, Network
from experiments.settings.errors import UserError

# PyTorch's own layout, and channels last, which it has from two spatial axes on.
FORMATS: dict[str, dict[int, torch.memory_format]] = {
    "contiguous": dict.fromkeys((1, 2, 3), torch.contiguous_format),
    "channels_last": {2: torch.channels_last, 3: torch.channels_last_3d},
}


def prepare(device: str, precision: str) -> torch.device:
    """As many threads as cores; the GPU's precision as on the other side.

    Raises:
        UserError: this PyTorch has no GPU.
    """
    if device == "gpu":
        if not torch.cuda.is_available():
            raise UserError("this PyTorch has no GPU")
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda")
    torch.set_num_threads(os.cpu_count() or 1)
    return torch.device("cpu")


def dense(
    layer: Layer, arrays: Arrays, direction: str, device: torch.device
) -> Iterator[Candidate]:
    """``conv1d``, ``conv2d`` or ``conv3d`` in both memory formats; of bfloat16 maps by autocast.

    Raises:
      UserError: a transposed layer, which they do not have.
    """
    if layer.input_dilation > 1:
        raise UserError(f"{layer.name}: PyTorch is not timed on transposed layers")
    axes = layer.geometry().axes
    rank = len(axes)
    convolution = getattr(functional, f"conv{rank}d")
    pads = [axis.padding for axis in axes]
    even = all(low == high for low, high in pads) and layer.padding != "CIRCULAR"
    # The last axis comes first.
    widths = [width for pair in reversed(pads) for width in pair]
    options = {"stride": layer.strides, "groups": layer.groups}
    mode = "circular" if layer.padding == "CIRCULAR" else "constant"

    def convolve(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        if even:
            padding = tuple(low for low, _ in pads)
            return convolution(x, kernel, **options, padding=padding)
        return convolution(functional.pad(x, widths, mode=mode), kernel, **options)

    for name, formats in FORMATS.items():
        if rank not in formats:
            continue
        x, kernel, ct = (
            _tensor(a, device).contiguous(memory_format=formats[rank])
            for a in moved(arrays, "first")
        )
        yield Candidate(
            f"torch {name}",
            "torch",
            None,
            call=_call(convolve, x, kernel, ct, direction),
            results=lambda done: restored(
                tuple(t.detach().float().cpu().contiguous().numpy() for t in done), "first"
            ),
        )


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """PyTorch takes no NumPy array of bfloat16."""
    exact = torch.from_numpy(array.astype(np.float32)).to(device)
    return exact if array.dtype == np.float32 else exact.to(torch.bfloat16)


def _mixed(device: torch.device, enabled: bool) -> torch.autocast:
    """Within it products and convolutions are in bfloat16, if enabled."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _call(
    convolve: Callable[..., torch.Tensor],
    x: torch.Tensor,
    kernel: torch.Tensor,
    ct: torch.Tensor,
    direction: str,
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call that computes the output, and with ``train`` the gradients, and waits for them."""
    mixed = x.dtype == torch.bfloat16

    def forward() -> tuple[torch.Tensor, ...]:
        with torch.inference_mode(), _mixed(x.device, mixed):
            y = convolve(x, kernel)
        _wait(x.device)
        return (y,)

    def train() -> tuple[torch.Tensor, ...]:
        with _mixed(x.device, mixed):
            y = convolve(x, kernel)
        gradients = torch.autograd.grad(y, (x, kernel), ct)
        _wait(x.device)
        return y, *gradients

    if direction == "forward":
        return forward
    x.requires_grad_()
    kernel.requires_grad_()
    return train


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class ResNet(nn.Module):
    """The network of ``experiments.models.resnet``, its modules in the same order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        channels, widths = network.image[-1], network.widths
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.pool = nn.MaxPool2d(3, 2, padding=1) if network.stem_pool else nn.Identity()
        self.blocks = nn.Sequential()
        inputs = widths[0]
        for stage, (width, count) in enumerate(zip(widths, network.blocks, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(BasicBlock(inputs, width, stride))
                inputs = width
        self.head = nn.Linear(inputs, network.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(functional.relu(self.norm(self.stem(x))))
        return self.head(self.blocks(x).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


def networks(
    network: Network,
    direction: str,
    images: np.ndarray,
    labels: np.ndarray,
    learning_rate: float,
    momentum: float,
    device: torch.device,
    precision: str,
) -> Iterator[Candidate]:
    """A training step, or inference, in both memory formats. ``images`` are channels last.

    In bfloat16 by autocast; for inference also of parameters and statistics in bfloat16, which
    spares their casts.
    """
    mixed = precision == "bf16"
    for name, formats in FORMATS.items():
        model = initial(network).to(device, memory_format=formats[2])
        x = torch.from_numpy(np.moveaxis(images, -1, 1)).to(device)
        x = x.contiguous(memory_format=formats[2])
        if direction == "train":
            optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum)
            y = torch.from_numpy(labels).to(device, torch.int64)
            calls = {f"torch {name}": _step(model, optimizer, x, y, mixed)}
        else:
            calls = {f"torch {name}": _inference(model, x, mixed)}
            if mixed:
                rounded = copy.deepcopy(model).to(torch.bfloat16)
                calls[f"torch {name}, bf16 parameters"] = _inference(rounded, x, False)
        for each, call in calls.items():
            yield Candidate(
                each,
                "torch",
                None,
                call=call,
                results=lambda done: (done.detach().float().cpu().numpy(),),
            )


def initial(network: Network) -> ResNet:
    """The network with parameters that are the same in every process."""
    torch.manual_seed(0)
    return ResNet(network)


def export(network: Network, folder: Path) -> None:
    """Writes the network for inference as an ONNX file, with a batch of fixed size.

    Raises:
        UserError: this PyTorch does not export it.
    """
    height, width, channels = network.image
    example = torch.zeros((network.batch, channels, height, width))
    model = initial(network).eval()
    try:
        # The newer exporter needs a package more and gives the same operations.
        torch.onnx.export(model, (example,), folder / ONNX_FILE, input_names=["x"], dynamo=False)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"PyTorch's export: {' '.join(str(error).split())}") from error


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    mixed: bool,
) -> Callable[[], torch.Tensor]:
    """A call that takes the next training step and returns its loss."""

    def call() -> torch.Tensor:
        optimizer.zero_grad()
        with _mixed(x.device, mixed):
            loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        _wait(x.device)
        return loss

    return call


def _inference(model: nn.Module, x: torch.Tensor, mixed: bool) -> Callable[[], torch.Tensor]:
    model.eval()
    kind = next(model.parameters()).dtype

    def call() -> torch.Tensor:
        with torch.inference_mode(), _mixed(x.device, mixed):
            y = model(x.to(kind))
        _wait(x.device)
        return y

    return call
