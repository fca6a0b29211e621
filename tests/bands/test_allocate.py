"""Allocation against every choice of boxes, tried one after another in NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from signals import smooth

import bandjax
from bandjax import Budget, Compression, Energy, Nyquist, Plan
from bandjax._flax.allocate import cheapest

pytestmark = pytest.mark.thin(3)


def projected(x: np.ndarray, grid: tuple[int, ...], box: tuple[int, ...]) -> np.ndarray:
    """What a box holds of samples ``(batch, *spatial, channels)``, by matrices of the DFT."""
    for n, (g, limit) in enumerate(zip(grid, box, strict=True), start=1):
        places = np.arange(x.shape[n])
        u = np.array(sorted({u % g for u in range(-limit, limit + 1)}))
        waves = np.exp(-2j * np.pi * np.outer(u, places) / g)
        project = waves.conj().T @ waves / g
        x = np.moveaxis(np.tensordot(project, x, (1, n)), 0, n)
    assert np.abs(x.imag).max() < 1e-10
    return x.real


def boxes_of(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The boxes with the proportions of a grid."""
    halves = [g // 2 for g in grid]
    return sorted({tuple(m * h // j for h in halves) for j in halves for m in range(j + 1)})


class Sums(nnx.Module):
    """Two layers that see the input, not each other: what they do to a loss is independent."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(1)
        self.one = nnx.Conv(3, 2, (5,), rngs=rngs)
        self.two = nnx.Conv(3, 4, (3,), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.one(x), self.two(x)


WEIGHTS = [np.random.default_rng(3).normal(size=shape) for shape in ((15, 2), (7, 4))]


def linear(model, x):
    """A loss that is linear in what the layers give: its first-order estimate is exact."""
    parts = zip(model(x), WEIGHTS, strict=True)
    return sum(jnp.einsum("nio,io->n", y, jnp.asarray(w, y.dtype)).mean() for y, w in parts)


@pytest.mark.parametrize("of", ["bytes", "coefficients"])
@pytest.mark.parametrize("at_most", [None, Nyquist(Compression(0.1))], ids=str)
def test_the_plan_is_the_best_of_all(of, at_most):
    rng = np.random.default_rng(0)
    batches = [smooth(rng, (n, 15, 3)) for n in (4, 4, 2)]
    x = np.concatenate(batches)
    model = Sums()
    entries = []
    for layer, weights, grid, stride in zip(
        (model.one, model.two), WEIGHTS, ((17,), (15,)), (1, 2), strict=True
    ):
        bound = grid[0] // 2
        if at_most is not None:
            bound = min(Compression(0.1).modes(grid)[0], grid[0] // (2 * stride))
        boxes = [box for box in boxes_of(grid) if box[0] <= bound]
        gradient = np.asarray(
            jax.grad(
                lambda z, f=layer, w=weights: jnp.einsum(
                    "nio,io->", f(z), jnp.asarray(w, "float32")
                )
            )(jnp.asarray(x, "float32"))
        )
        changes = [(gradient * (projected(x, grid, box) - x)).sum((1, 2)) for box in boxes]
        damage = np.array([(change**2).mean() for change in changes])
        damage = np.maximum.accumulate(damage[::-1])[::-1]
        reals = [min(2 * (box[0] + 1), 15) for box in boxes]
        cost = [3 * (box[0] + 1) for box in boxes]
        if of == "bytes":
            cost = [3 * 4 * n for n in reals]
        whole = 3 * 4 * 15 if of == "bytes" else 3 * (grid[0] // 2 + 1)
        entries.append((boxes, damage, cost, whole))
    for share in (0.45, 0.7):
        plan = bandjax.allocate(
            model, [b.astype("float32") for b in batches], linear, Budget(share, of, at_most)
        )
        allowed = share * sum(entry[3] for entry in entries)
        choices = itertools.product(*(range(len(entry[0])) for entry in entries))
        best = min(
            (sum(e[1][i] for e, i in zip(entries, choice, strict=True)), choice)
            for choice in choices
            if sum(e[2][i] for e, i in zip(entries, choice, strict=True)) <= allowed
        )
        found = tuple(
            entry[0].index(layer.modes)
            for entry, layer in zip(entries, plan.layers.values(), strict=True)
        )
        costs = sum(e[2][i] for e, i in zip(entries, found, strict=True))
        damage = sum(e[1][i] for e, i in zip(entries, found, strict=True))
        assert costs <= allowed
        assert damage <= best[0] * (1 + 1e-4)
        assert Plan.from_dict(plan.as_dict()) == plan
        assert f"plan of {share:.1%} of the {of}" in str(plan)


def test_the_knapsack():
    rng = np.random.default_rng(1)
    for _ in range(20):
        damages = [np.sort(rng.exponential(size=n))[::-1] for n in rng.integers(1, 5, 4)]
        costs = [np.sort(rng.integers(1, 40, len(d))) for d in damages]
        allowed = int(rng.integers(20, 120))
        every = [
            (sum(d[i] for d, i in zip(damages, choice, strict=True)), choice)
            for choice in itertools.product(*(range(len(d)) for d in damages))
            if sum(c[i] for c, i in zip(costs, choice, strict=True)) <= allowed
        ]
        found = cheapest(damages, costs, allowed)
        if not every:
            assert found is None
            continue
        assert sum(c[i] for c, i in zip(costs, found, strict=True)) <= allowed
        total = sum(d[i] for d, i in zip(damages, found, strict=True))
        assert total == pytest.approx(min(every)[0])
    # Costs may fall towards the largest box. A budget of all of them, or of the least, is met.
    rng = np.random.default_rng(2)
    damages = [np.sort(rng.exponential(size=40))[::-1] for _ in range(12)]
    costs = [rng.integers(1, 10**9, 40) for _ in damages]
    for price in costs:
        price[-1] = min(price[-1], price.mean())
    assert cheapest(damages, costs, sum(int(price[-1]) for price in costs)) == [39] * 12
    least = [int(price.argmin()) for price in costs]
    assert cheapest(damages, costs, sum(int(price.min()) for price in costs)) == least
    # What is left goes to larger boxes of no more damage.
    assert cheapest([np.array([1.0, 1.0, 1.0])], [np.array([1, 2, 4])], 3) == [1]
    # Beyond the resolution of the budget it stays within.
    large = [np.array([100_000, 1_000_003]), np.array([100_000, 1_000_003])]
    assert sum(cheapest([np.array([1.0, 0.0])] * 2, large, 1_101_000)) == 1
    assert cheapest([np.array([1.0, 0.0])] * 2, large, 199_999) is None


class Block(nn.Module):
    """A layer that is called twice, and one that is not selected."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Conv(4, (3, 3), name="shared")
        return nn.Conv(2, (1, 1), name="last")(nn.relu(shared(nn.relu(shared(x)))))


@pytest.mark.full
def test_linen_and_what_is_left_out():
    x = jax.random.normal(jax.random.key(0), (4, 8, 9, 4))
    labels = jnp.array([0, 1, 0, 1])
    model = Block()
    variables = model.init(jax.random.key(1), x)

    def loss(model, batch):
        x, y = batch
        return -jax.nn.log_softmax(model(x).mean((1, 2)))[jnp.arange(4), y].mean()

    plan = bandjax.allocate(
        model,
        [(x, labels)],
        loss,
        Budget(0.4, "multiply-adds"),
        variables=variables,
        where="shared",
    )
    assert list(plan.layers) == ["shared"]
    assert plan.left_out == {"last": "not selected"}
    assert plan.input_shape == (8, 9, 4)
    with bandjax.linen.band_limited(plan):
        assert jnp.isfinite(loss(model.bind(variables), (x, labels)))


def test_wrong_arguments_are_refused():
    model, x = Sums(), jnp.ones((2, 15, 3))
    for bad, kind, message in (
        (0, ValueError, "share must satisfy 0 < share <= 1, got 0"),
        (1.2, ValueError, "share must satisfy 0 < share <= 1, got 1.2"),
        ("half", TypeError, "share must be a real number"),
    ):
        with pytest.raises(kind, match=message):
            bandjax.allocate(model, [x], linear, bad)
    with pytest.raises(ValueError, match="of must be one of bytes, coefficients, multiply-adds"):
        Budget(0.5, "time")
    with pytest.raises(TypeError, match=r"at_most must be .* got Energy"):
        Budget(0.5, at_most=Energy(0.9))
    with pytest.raises(TypeError, match="loss must be a function of a model and a batch, got None"):
        bandjax.allocate(model, [x], None, 0.5)
    with pytest.raises(ValueError, match=r"a budget of 0.01 allows .*: give at least 0\.\d+"):
        bandjax.allocate(model, [x], linear, 0.01)
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        bandjax.allocate(model, [], linear, 0.5)
    with pytest.raises(ValueError, match=r"at least one example each, got shape \(0, 15, 3\)"):
        bandjax.allocate(model, [x, x[:0]], linear, 0.5)
    with pytest.raises(ValueError, match=r"the loss does not depend on these .* layers: one, two;"):
        bandjax.allocate(model, [x], lambda *of: (linear(*of), jnp.ones(()))[1], 0.5)
    with pytest.raises(ValueError, match="of layer one is not finite"):
        bandjax.allocate(model, [x * jnp.nan], linear, 0.5)
    plan = bandjax.allocate(model, [x], linear, 1)
    assert [layer.modes for layer in plan.layers.values()] == [(8,), (7,)]


class Chain(nnx.Module):
    """Two layers, one after the other, with these kernels."""

    def __init__(self, kernels: list[np.ndarray]) -> None:
        options = {"use_bias": False, "dtype": kernels[0].dtype, "param_dtype": kernels[0].dtype}
        self.layers = nnx.List(
            [nnx.Conv(*w.shape[1:], w.shape[:1], rngs=nnx.Rngs(0), **options) for w in kernels]
        )
        for layer, kernel in zip(self.layers, kernels, strict=True):
            layer.kernel[...] = jnp.asarray(kernel)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return x


def test_complex_numbers_are_twice_as_many_real_ones():
    rng = np.random.default_rng(5)

    def numbers(*shape):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    def in_parts(kernel):
        re, im = kernel.real, kernel.imag
        return np.concatenate(
            [np.concatenate([re, im], -1), np.concatenate([-im, re], -1)], -2
        ).astype(np.float32)

    def loss(model, x):
        y, target = model(x), jnp.asarray(targets[: len(x)])
        if not jnp.iscomplexobj(y):
            target = jnp.concatenate([target.real, target.imag], -1)
        return (jnp.abs(y - target) ** 2).sum((1, 2)).mean()

    kernels = [numbers(5, 2, 3), numbers(3, 3, 2)]
    targets = numbers(6, 16, 2)
    # Low frequencies in the real part, others in the imaginary one.
    x = (smooth(rng, (6, 16, 2)) + 1j * rng.normal(size=(6, 16, 2))).astype(np.complex64)
    parts = np.concatenate([x.real, x.imag], -1)
    twin = Chain([in_parts(kernel) for kernel in kernels])
    y = np.asarray(twin(parts))
    np.testing.assert_allclose(
        y[..., :2] + 1j * y[..., 2:], Chain(kernels)(x), rtol=1e-4, atol=1e-4
    )
    for share in (0.3, 0.5, 0.8):
        plan, same = (
            bandjax.allocate(model, [batch], loss, Budget(share, of="coefficients"))
            for model, batch in ((Chain(kernels), x), (twin, parts))
        )
        for path, layer in same.layers.items():
            assert plan.layers[path].modes == layer.modes
            np.testing.assert_allclose(plan.layers[path].energy, layer.energy, rtol=1e-4)
