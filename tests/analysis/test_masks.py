"""Lead, top and growth from DC, against loops over NumPy's full spectra."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bandjax import Compression, Energy, band_conv, spectral

pytestmark = pytest.mark.thin(2)

GRIDS = [(1,), (7,), (8,), (1, 4), (5, 6), (6, 5), (9, 4), (8, 8), (3, 4, 5), (4, 6, 2)]


def random(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def frequencies(grid):
    """Every coefficient of a half spectrum: its place in the array, and its signed frequencies."""
    for index in itertools.product(*(range(g) for g in grid[:-1]), range(grid[-1] // 2 + 1)):
        yield index, tuple(k if 2 * k <= g else k - g for k, g in zip(index, grid, strict=True))


def partner(index, grid):
    """Where the conjugate of a coefficient lies, if the half spectrum stores it; else itself."""
    if 2 * index[-1] % grid[-1]:
        return index
    return (*(-k % g for k, g in zip(index[:-1], grid[:-1], strict=True)), index[-1])


def nested_boxes(grid):
    """The boxes that Compression chooses from, found by asking it for every rate."""
    rates = np.linspace(0, 1, 4 * np.prod(grid), endpoint=False)
    return sorted({Compression(float(rate)).modes(grid) for rate in rates})


def whole_energy(x):
    """What each stored frequency of a half spectrum stands for in NumPy's full spectrum."""
    grid = x.shape[1:-1]
    full = (np.abs(np.fft.fftn(x, axes=range(1, x.ndim - 1))) ** 2).sum((0, -1))
    energies = np.zeros((*grid[:-1], grid[-1] // 2 + 1))
    for index in itertools.product(*map(range, grid)):
        if index[-1] <= grid[-1] // 2:
            energies[index] += full[index]
        else:
            energies[tuple(-k % g for k, g in zip(index, grid, strict=True))] += full[index]
    return energies


# ----------------------------------------------------------------------------------------- growth


@pytest.mark.parametrize("grid", GRIDS)
def test_coarse_growth_takes_one_box_after_another(grid):
    places = spectral.growth_places(grid)
    boxes = nested_boxes(grid)
    for index, u in frequencies(grid):
        inside = [all(abs(v) <= limit for v, limit in zip(u, box, strict=True)) for box in boxes]
        assert places[index] == inside.index(True)
    with pytest.raises(ValueError, match="read-only"):
        places[...] = 0


@pytest.mark.parametrize("grid", GRIDS)
def test_fine_growth_fills_the_steps_by_partners(grid):
    coarse, fine = spectral.growth_places(grid), spectral.growth_places(grid, fine=True)
    members: dict[int, set] = {}
    for index, _ in frequencies(grid):
        members.setdefault(int(fine[index]), set()).add(index)
    assert sorted(members) == list(range(len(members)))
    for pair in members.values():
        assert all(pair == {index, partner(index, grid)} for index in pair)
    # One step is full before the next begins.
    order = [int(coarse[next(iter(members[place]))]) for place in range(len(members))]
    assert order == sorted(order)


@pytest.mark.parametrize("g", [5, 7, 8])
def test_fine_growth_of_a_square_is_a_row_and_a_column(g):
    expected = [{(0, 0)}]
    for step in range(1, g // 2 + 1):
        rows = [(sign, j) for j in range(step + 1) for sign in (step, -step)]
        column = [(sign, step) for i in range(step) for sign in (i, -i)]
        for u, v in rows + column:
            pair = {(u % g, v), partner((u % g, v), (g, g))}
            if pair not in expected:
                expected.append(pair)
    places = spectral.growth_places((g, g), fine=True)
    actual = [set(zip(*np.nonzero(places == n), strict=True)) for n in range(places.max() + 1)]
    assert actual == expected


@pytest.mark.parametrize("grid", [(8,), (5, 6), (4, 6, 2)])
def test_every_growth_mask_is_that_of_real_signals(grid):
    places = spectral.growth_places(grid, fine=True)
    keep = jax.jit(functools.partial(spectral.growth_mask, grid, fine=True))
    for count in range(1, places.max() + 2):
        mask = np.asarray(keep(count))
        assert mask.shape == (1, *places.shape, 1)
        assert np.array_equal(mask[0, ..., 0], places < count)
        for index, _ in frequencies(grid):
            assert mask[0, ..., 0][index] == mask[0, ..., 0][partner(index, grid)]
    assert np.array_equal(spectral.growth_mask(grid, 1).sum(), 1)


# ----------------------------------------------------------------------------------------- energy


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("grid", [(7,), (6, 5), (4, 6, 2)])
def test_energy_is_that_of_the_full_spectrum(grid):
    x = random(2, *grid, 3)
    energies = spectral.energy(spectral.analysis(x), grid)
    assert oracle.gap(energies, whole_energy(x)) <= 1e-12
    # Parseval.
    assert float(energies.sum()) == pytest.approx(np.prod(grid) * (x**2).sum(), rel=1e-12)
    modes = tuple(g // 3 for g in grid)
    box = spectral.energy(spectral.analysis(x, grid, modes), grid)
    keep = spectral.keep_box(energies[None, ..., None], grid, modes)[0, ..., 0]
    assert oracle.gap(box, keep) <= 1e-12


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("grid", [(8,), (5, 6)])
def test_energy_mask_is_the_least_growth(grid, fine):
    places = spectral.growth_places(grid, fine=fine)
    find = jax.jit(functools.partial(spectral.energy_mask, grid=grid, fine=fine))
    for seed, share in enumerate([1e-6, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0]):
        energies = whole_energy(random(2, *grid, 3, seed=seed) + seed / 2)
        mask = np.asarray(find(jnp.asarray(energies), share=share))[0, ..., 0]
        kept = next(
            places < n
            for n in range(1, places.max() + 2)
            if energies[places < n].sum() >= share * energies.sum() * (1 - 1e-14)
        )
        assert np.array_equal(mask, kept)
        if not fine:
            boxes = Energy(share).boxes(grid)
            assert mask.sum() in [oracle.kept(grid, box) for box in boxes]


def test_energy_mask_in_single_precision_and_of_numbers_that_are_none():
    energies = jnp.asarray(whole_energy(random(1, 5, 6, 2)), jnp.float32)
    assert bool(spectral.energy_mask(energies, (5, 6), 1).all())
    assert bool(spectral.energy_mask(energies.at[1, 2].set(jnp.nan), (5, 6), 0.1).all())
    # Nothing but DC holds energy.
    only = jnp.zeros((5, 4)).at[0, 0].set(3.0)
    assert int(spectral.energy_mask(only, (5, 6), 1.0, fine=True).sum()) == 1


# ------------------------------------------------------------------------------------ lead and top


@pytest.mark.parametrize("grid", [(8,), (1, 4), (9, 4), (3, 4, 5)])
def test_lead_drops_the_high_end_of_every_axis(grid):
    counts = range(max(g // 2 for g in grid) + 1)
    masks = jax.vmap(functools.partial(spectral.lead_mask, grid))(jnp.arange(len(counts)))
    for dropped, mask in zip(counts, masks, strict=True):
        assert np.array_equal(mask, spectral.lead_mask(grid, dropped))
        for index, u in frequencies(grid):
            limits = [max(g // 2 - dropped, 0) for g in grid]
            kept = all(abs(v) <= limit for v, limit in zip(u, limits, strict=True))
            assert mask[0, ..., 0][index] == kept


@pytest.mark.parametrize(
    ("dropped", "kept"),
    [(0, 1770), (1, 1653), (2, 1540), (5, 1225), (10, 780), (15, 435), (25, 45)],
)
def test_lead_drops_as_many_as_the_paper_tells(dropped, kept):
    # 6.61, 12.99, 30.8, 55.9, 75.4 and 97.5 %.
    mask = spectral.lead_mask((59, 59), dropped)
    assert mask.size == 1770
    assert int(mask.sum()) == kept
    assert float(spectral.compression(mask)) == pytest.approx(1 - kept / 1770, abs=1e-7)


def test_top_drops_the_smallest_of_each_example():
    spectrum = (random(3, 4, 5, 2) + 1j * random(3, 4, 5, 2, seed=1)).astype(np.complex64)
    spectrum[1, 2, 3] = spectrum[1, 0, 0] = 0.25  # equal ones
    masks = jax.jit(jax.vmap(functools.partial(spectral.top_mask, spectrum)))(jnp.arange(41))
    for zeroed, mask in enumerate(np.asarray(masks)):
        for example, kept in zip(spectrum, mask, strict=True):
            order = sorted(range(40), key=lambda n: abs(example.ravel()[n]))
            assert set(np.nonzero(~kept.ravel())[0]) == set(order[:zeroed])


# ---------------------------------------------------------------------------------- approximation


def compressed(x, kernel, x_mask, kernel_mask, geometry):
    """The convolution of masked spectra, by sums over all frequencies and channels."""
    grid = [axis.grid for axis in geometry]
    whole = [oracle.Axis(**{**vars(axis), "modes": axis.grid // 2}) for axis in geometry]
    of_taps = [
        oracle.Axis(**{**vars(a), "size": a.taps, "input_dilation": a.kernel_dilation})
        for a in whole
    ]
    axes = range(1, len(grid) + 1)
    X = np.fft.rfftn(oracle.lay_out(x, whole), axes=axes) * x_mask
    W = np.fft.rfftn(oracle.lay_out(np.moveaxis(kernel, -1, 0), of_taps), axes=axes) * kernel_mask
    Y = np.zeros((len(X), *X.shape[1:-1], len(W)), complex)
    for n, o, c in itertools.product(range(len(X)), range(len(W)), range(X.shape[-1])):
        Y[n, ..., o] += X[n, ..., c] * W[o, ..., c].conj()
    u = np.arange(grid[-1] // 2 + 1)
    Y *= np.where((u == 0) | (2 * u == grid[-1]), 1, 2)[:, None]
    for n, axis in enumerate(geometry, start=1):
        points = [axis.position(i, 0) for i in range(axis.out)]
        phases = np.outer(points, np.arange(Y.shape[n])) * 2j * np.pi / axis.grid
        Y = np.moveaxis(np.tensordot(np.exp(phases), Y, axes=(1, n)), 0, n)
    return Y.real / np.prod(grid)


def geometry_of(sizes, taps, grid=None, padding="SAME", **options):
    rank = len(sizes)
    dilations = {"strides": 1, "input_dilation": 1, "kernel_dilation": 1, **options}
    per_axis = {name: (value,) * rank for name, value in dilations.items()}
    circles = None if grid is None else (grid,) * rank
    return oracle.axes(sizes, taps, padding=padding, grid=circles, **per_axis)


CASES = [
    ((11,), (4,), {"strides": 2, "padding": "VALID"}),
    ((6, 7), (3, 2), {"kernel_dilation": 2}),
    ((5, 4), (2, 3), {"grid": 12, "padding": ((1, 2), (0, 3)), "input_dilation": 2}),
    ((4, 3, 5), (2, 2, 3), {"padding": "CIRCULAR"}),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("sizes", "taps", "options"), CASES)
def test_approximations(sizes, taps, options):
    x, kernel = random(2, *sizes, 3), random(*taps, 3, 2)
    geometry = geometry_of(sizes, taps, **options)
    grid = tuple(axis.grid for axis in geometry)
    exact = oracle.convolve(x, kernel, geometry)
    total = 3 * oracle.kept(grid, [g // 2 for g in grid])

    @jax.jit
    def all_of_them(x, kernel):
        variants = (
            spectral.Lead(0),
            spectral.Lead(1),
            spectral.Growth(0.7),
            spectral.Growth(0.7, fine=True),
            spectral.Top(total // 3),
        )
        return [spectral.approximate(x, kernel, variant, **options) for variant in variants]

    nothing, lead, coarse, fine, top = all_of_them(x, kernel)
    assert nothing.error <= 1e-14
    for result in (nothing, lead, coarse, fine, top):
        assert oracle.gap(result.exact, exact) <= 1e-12
        masks = np.asarray(result.x_mask), np.asarray(result.kernel_mask)
        y = compressed(x, kernel, *masks, geometry)
        assert oracle.gap(result.output, y) <= 1e-12
        deviation = np.abs(y - exact).sum() / np.abs(exact).sum()
        assert float(result.error) == pytest.approx(deviation, rel=1e-9, abs=1e-14)
        assert float(result.compression) == pytest.approx(1 - masks[0].mean(), abs=1e-6)

    # A box of frequencies is the operator itself.
    modes = [max(g // 2 - 1, 0) for g in grid]
    cut = [oracle.Axis(**{**vars(a), "modes": u}) for a, u in zip(geometry, modes, strict=True)]
    assert oracle.gap(lead.output, oracle.convolve(x, kernel, cut)) <= 1e-12
    dynamic = band_conv(x, kernel, Energy(0.7), **options)
    assert oracle.gap(coarse.output, dynamic) <= 1e-12
    assert int(fine.x_mask.sum()) <= int(coarse.x_mask.sum())
    assert not np.any(np.asarray(fine.x_mask) & ~np.asarray(coarse.x_mask))
    assert np.array_equal(
        (~np.asarray(top.x_mask)).sum((*range(1, x.ndim - 1), -1)), [total // 3] * 2
    )
    assert np.array_equal(
        (~np.asarray(top.kernel_mask)).sum((*range(1, x.ndim - 1), -1)), [total // 3] * 2
    )


def test_half_precision_is_computed_in_single():
    x, kernel = random(1, 9, 2).astype(np.float32), random(3, 2, 1).astype(np.float32)
    single = spectral.approximate(x, kernel, spectral.Lead(1))
    half = spectral.approximate(
        jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), spectral.Lead(1)
    )
    assert half.output.dtype == jnp.bfloat16
    assert oracle.gap(half.output, single.output) <= 0.03


def test_relative_error():
    exact = jnp.asarray([[3.0, -4.0]])
    assert float(spectral.relative_error(exact + 1, exact)) == pytest.approx(2 / 7)
    assert float(spectral.relative_error(exact + 1, exact, order=2)) == pytest.approx(2**0.5 / 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral.lead_mask((8, 6), 5), r"0 <= dropped <= 4, got 5"),
        (lambda: spectral.lead_mask((8, 6), -1), r"0 <= dropped <= 4, got -1"),
        (lambda: spectral.top_mask(jnp.zeros((2, 3, 1), jnp.complex64), 4), r"<= 3, got 4"),
        (lambda: spectral.growth_mask((5, 5), 0), r"1 <= places <= 3, got 0"),
        (lambda: spectral.energy_mask(jnp.ones((5, 3)), (5, 5), 0), r"0 < share <= 1, got 0"),
        (lambda: spectral.energy_mask(jnp.ones((5, 3)), (5, 6), 0.5), r"all \(5, 4\).*\(5, 3\)"),
        (
            lambda: spectral.energy(jnp.zeros((1, 5, 5, 1), jnp.complex64), (5, 5)),
            r"at most \(5, 3\).*\(1, 5, 5, 1\)",
        ),
        (lambda: spectral.relative_error(jnp.ones(2), jnp.ones(2), order=3), "1 or 2, got 3"),
        (lambda: spectral.relative_error(jnp.ones(2), jnp.ones(3)), r"same shape.*\(2,\).*\(3,\)"),
        (
            lambda: spectral.approximate(
                jnp.ones((1, 5, 1)), jnp.ones((3, 1, 1)), spectral.Lead(0), padding="REFLECT"
            ),
            "no padding 'REFLECT'",
        ),
        (
            lambda: spectral.approximate(jnp.ones((5, 1)), jnp.ones((3, 1, 1)), spectral.Lead(0)),
            r"x must be \(batch, \*spatial, in\), got shape \(5, 1\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
