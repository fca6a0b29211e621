"""``bandjax.checkpoint`` and ``nnx.remat`` take what those of JAX and Flax take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import thinned
from flax import nnx

import bandjax
from bandjax import Compression

pytestmark = pytest.mark.thin(8)

X = jnp.asarray(np.random.default_rng(21).normal(size=(2, 8, 8, 2)), jnp.float32)
KERNEL = jnp.asarray(np.random.default_rng(22).normal(size=(3, 3, 2, 2)), jnp.float32)
NAME = "bandjax_spectrum"


def loss(kernel, power, x, flag=True, *, scale=1.0):
    y = bandjax.band_conv(x, kernel, Compression(0.5)) if power else x
    return (jnp.where(flag, jnp.sin(y), 0) * scale).sum()


CALLS = [
    ((KERNEL, 1, X), {}),
    ((KERNEL, 1, X, True), {}),
    ((KERNEL, 1, X), {"scale": 3.0}),
    ((KERNEL, 1, X), {"flag": False, "scale": jnp.float32(2)}),
]


@pytest.mark.parametrize(("args", "keywords"), CALLS)
@pytest.mark.parametrize("static", [1, (1,), (-2,)])
@pytest.mark.parametrize("prevent_cse", [True, False])
def test_scalars_keywords_and_static_arguments(args, keywords, static, prevent_cse):
    if static == (-2,) and len(args) != 3:
        static = (-3,)
    wrapped = bandjax.checkpoint(loss, static_argnums=static, prevent_cse=prevent_cse)
    actual = jax.grad(lambda kernel: wrapped(kernel, *args[1:], **keywords))(KERNEL)
    wanted = jax.grad(lambda kernel: loss(kernel, *args[1:], **keywords))(KERNEL)
    assert np.allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_a_static_argument_that_is_not_there():
    with pytest.raises(ValueError, match=r"static_argnums .* 3 positional arguments, got \(4,\)"):
        bandjax.checkpoint(loss, static_argnums=(4,))(KERNEL, 1, X)


@pytest.mark.parametrize("method", thinned(["dft", "direct", "fft"], 2))
def test_offloaded_spectra(method):
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[NAME],
        offload_src="device",
        offload_dst="pinned_host",
    )

    def f(kernel, x):
        return jax.nn.relu(bandjax.band_conv(x, kernel, Compression(0.5), method=method)).sum()

    actual = jax.jit(jax.grad(bandjax.checkpoint(f, policy=policy)))(KERNEL, X)
    assert np.allclose(actual, jax.grad(f)(KERNEL, X), rtol=1e-5, atol=1e-4)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.conv = bandjax.BandConv(2, 2, (3, 3), band=Compression(0.5), rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def plain(self, x, train, *, factor=None):
        y = self.norm(self.conv(x), use_running_average=not train)
        return y if factor is None else y * factor


@pytest.mark.full
@pytest.mark.parametrize("form", ["call", "decorator"])
def test_remat_of_a_method_with_flags_and_keywords(form):
    options = {"static_argnums": (2,)}
    wrap = bandjax.nnx.remat
    remat = wrap(Block.plain, **options) if form == "call" else wrap(**options)(Block.plain)
    for factor in (None, jnp.float32(2)):
        gradients, means = [], []
        for f in (remat, Block.plain):
            block = Block(nnx.Rngs(0))
            gradient = nnx.grad(lambda m, f=f, by=factor: jnp.sin(f(m, X, True, factor=by)).sum())(
                block
            )
            gradients.append(gradient["conv"]["kernel"][...])
            means.append(block.norm.mean[...])
        assert np.allclose(*gradients, rtol=1e-4, atol=1e-5)
        assert np.allclose(*means)


def test_the_module_is_no_static_argument():
    with pytest.raises(ValueError, match="static_argnums must leave out 0"):
        bandjax.nnx.remat(Block.plain, static_argnums=(0, 2))
