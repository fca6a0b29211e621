"""What a derivative divides by, or takes a root or a logarithm of, is not rounded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_cases import cosine, normal, saved

from bandjax import compress_saved
from bandjax.codecs import Codec, Dct, Uniform

pytestmark = pytest.mark.thin(4)

X, W = normal(0, 64, 32), 0.2 * normal(1, 32, 192)
POOL = jnp.asarray(np.kron(np.eye(64), np.ones((3, 1))), jnp.float32)


def points(y):
    return y.reshape(64, 64, 3)


def response(y):
    """Local response normalisation over five channels."""
    sums = jax.lax.reduce_window(y**2, 0.0, jax.lax.add, (1, 5), (1, 1), "SAME")
    return y / (0.1 + sums / 5) ** 0.75


# What is divided by, or the like, may be next to zero, or below it once it is rounded.
POLES = {
    "norm of three": lambda y: jnp.linalg.norm(points(y), axis=-1),
    "norm by a product": lambda y: jnp.sqrt((y**2) @ POOL + 1e-5),
    "norm by einsum": lambda y: jnp.sqrt(jnp.einsum("nac,nac->na", points(y), points(y)) + 1e-6),
    "local response": response,
    "logarithm of a product": lambda y: jnp.log(jnp.exp(y) @ POOL),
    "logarithm of a sum of three": lambda y: jnp.log(jnp.exp(points(y)).sum(-1)),
    "root": lambda y: jnp.sqrt(jnp.exp(y) @ POOL),
    "power": lambda y: (jnp.exp(y) @ POOL) ** -0.5,
    "product of three": lambda y: jnp.prod(1.5 + jnp.tanh(points(y)), -1),
    "quotient": lambda y: y[:, :96] / (jnp.exp(y) @ POOL)[:, :1],
    "quotient of elements": lambda y: (
        y[:, :96] / jnp.where(y[:, 96:] < 0, -1, 1) / (y[:, 96:] ** 2 + 1)
    ),
    "within a compiled function": lambda y: jax.jit(jnp.log)(jnp.exp(y) @ POOL),
    "of maxima": lambda y: points(y).max(-1),
}
# What follows from how a number is made no rounding can change: these are packed.
BOUNDED = {
    "softsign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "distance": lambda y: jnp.sqrt(y**2 + 0.1),
    "sigmoid": lambda y: 1 / (1 + jnp.exp(-y)),
    "sum of exponentials": lambda y: jnp.log(jnp.exp(y) + jnp.exp(0.5 * y)),
    "clipped": lambda y: jnp.log(jnp.clip(y, 0.1, 2)),
    "whitened": lambda y: (
        (y - y.mean(0, keepdims=True)) * jax.lax.rsqrt(y.var(0, keepdims=True) + 1e-5)
    ),
}


def loss(f):
    def of(w):
        y = f(X @ w)
        return (y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)).sum()

    return of


class Wrong(Codec):
    """Gives back other numbers: those of the other sign, and zeros."""

    def _pack(self, x):
        return (x,)

    def _unpack(self, arrays, shape, dtype):
        places = jnp.arange(arrays[0].size).reshape(shape)
        return jnp.where(places % 3 == 0, 0, -arrays[0]).astype(dtype)


@pytest.mark.parametrize("f", [*POLES.values(), *BOUNDED.values()], ids=[*POLES, *BOUNDED])
def test_no_codec_makes_a_gradient_that_is_not_finite(f):
    assert jnp.isfinite(jax.grad(compress_saved(loss(f), Wrong()))(W)).all()


@pytest.mark.parametrize("f", POLES.values(), ids=POLES)
@pytest.mark.parametrize("codec", [Dct(bits=6), Uniform(bits=4)], ids=repr)
def test_gradients_near_poles_are_near(f, codec):
    exact, near = jax.grad(loss(f))(W), jax.grad(compress_saved(loss(f), codec))(W)
    assert cosine(exact, near) > (0.95 if isinstance(codec, Dct) else 0.8)
    assert 0.8 < jnp.linalg.norm(near) / jnp.linalg.norm(exact) < 1.25


@pytest.mark.parametrize("f", BOUNDED.values(), ids=BOUNDED)
def test_what_has_a_bound_is_packed(f):
    # A map in four bits, beside a mask and small arrays: no map of 12288 numbers as it is.
    assert saved(compress_saved(loss(f), Dct(bits=4)), W).total < 2 * X.size * 4 + 12288 * 2
