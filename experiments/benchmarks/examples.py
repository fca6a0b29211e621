"""What a network is timed on, the same on all sides."""

from __future__ import annotations

import numpy as np

from experiments.benchmarks.workloads import Network

LEARNING_RATE = 0.01
MOMENTUM = 0.9
ONNX_FILE = "model.onnx"  # In the folder that the sides share.


def random_examples(network: Network, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(batch, height, width, channels)``, normally distributed, and labels."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((network.batch, *network.image), np.float32)
    return images, rng.integers(network.classes, size=network.batch, dtype=np.int32)
