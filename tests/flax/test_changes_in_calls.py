"""What a call changes in a module is in the module after it, recomputed or compressed too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bandjax
from bandjax.codecs import Dct


class Changing(nnx.Module):
    """Writes all that a call may write: also in a module within."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.weight = nnx.Param(jnp.ones(64))
        self.fixed = nnx.Param(jnp.full(64, 2.0))
        self.inner = nnx.List([nnx.BatchNorm(64, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])
        self.calls, self.label = 0, "before"

    def __call__(self, x):
        self.weight[...] = 0.5 * self.weight[...]
        if not hasattr(self, "later"):
            self.later = nnx.Param(jnp.full(64, 3.0))
        self.later[...] = self.later[...] + 1
        self.calls, self.label = self.calls + 1, "after"
        self.inner[1].rate = 0.25
        y = self.inner[1](self.inner[0](x * self.weight[...][None]))
        return jnp.tanh(y * self.fixed[...][None] + self.later[...][None])


class MakesModules(nnx.Module):
    def __call__(self, x):
        self.late = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        return self.late(x)


X = jnp.asarray(np.random.default_rng(0).normal(size=(32, 64)), jnp.float32)
WAYS = {
    "remat": bandjax.nnx.remat,
    "remat within scan": lambda f: bandjax.nnx.remat(f, prevent_cse=False),
    "compress_saved": lambda f: bandjax.nnx.compress_saved(f, Dct(bits=8)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("gradient", [True, False], ids=["gradient", "value"])
def test_everything_that_a_call_changes_it_changes_once(way, gradient):
    models = Changing(), Changing()
    for model, call in zip(models, (Changing.__call__, way(Changing.__call__)), strict=True):
        for _ in range(2):
            if gradient:
                nnx.grad(lambda m, call=call: call(m, X).sum())(model)
            else:
                call(model, X)
    (plain, plain_state), (other, state) = (nnx.split(model) for model in models)
    assert plain == other
    for pair in zip(jax.tree.leaves(plain_state), jax.tree.leaves(state), strict=True):
        is_key = jnp.issubdtype(pair[0].dtype, jax.dtypes.prng_key)
        np.testing.assert_allclose(*(map(jax.random.key_data, pair) if is_key else pair), rtol=1e-6)
    assert models[1].calls == 2
    assert models[1].label == "after"
    assert models[1].inner[1].rate == 0.25


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_new_modules_are_refused_before_they_are_lost(way):
    with pytest.raises(ValueError, match=r"makes new modules \(late.*make them beforehand"):
        way(MakesModules.__call__)(MakesModules(), X)
