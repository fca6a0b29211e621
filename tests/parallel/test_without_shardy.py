"""Programs on a mesh of 2 to 8 devices are computed, by Shardy and by GSPMD, and never aborted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from choices import thinned

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import bandjax

jax.config.update("jax_use_shardy_partitioner", sys.argv[1] == "shardy")
devices = int(sys.argv[2])
size = 2 * devices
mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(size, size, size, size)), jnp.float32)
kernel = jnp.asarray(rng.normal(size=(3, 3, size, 4)), jnp.float32)
for method in sys.argv[3].split(","):
    def loss(x, kernel):
        y = bandjax.band_conv(x, kernel, bandjax.Compression(0.5), method=method)
        return jnp.sin(y).sum()

    step = jax.jit(jax.value_and_grad(bandjax.checkpoint(loss), (0, 1)))
    wanted = jax.device_get(step(x, kernel))
    for spec in (P("d"), P(None, "d"), P(None, None, None, "d"), P()):
        spread = jax.device_put(x, NamedSharding(mesh, spec))
        whole = jax.device_put(kernel, NamedSharding(mesh, P()))
        actual = jax.device_get(step(spread, whole))
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted)):
            assert np.allclose(a, b, rtol=1e-4, atol=1e-4), (method, spec)
print("computed")
"""


@pytest.mark.parametrize(
    ("partitioner", "devices", "methods"),
    thinned(
        [
            pytest.param("gspmd", 2, "dft"),
            *(
                pytest.param(partitioner, devices, "dft,fft,direct")
                for devices in range(2, 9)
                for partitioner in ("gspmd", "shardy")
            ),
        ]
    ),
)
def test_every_method_on_a_mesh(partitioner, devices, methods):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, partitioner, str(devices), methods],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "computed"
