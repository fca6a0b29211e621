"""Codecs against NumPy: what is stored, how far it may be off, and what it takes."""

from __future__ import annotations

import itertools
import math

import block_oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bandjax.codecs import Average, Cast, Codec, Dct, Offload, Uniform

pytestmark = pytest.mark.thin(12)

LOSSY = [Dct(bits=8), Dct(bits=2.5), Dct(bits=6, share=0.25), Average(), Uniform(), Uniform(5, 32)]
SHAPES = [
    *((2, 16, 9, 5), (3, 4, 2, 40), (1, 7, 7, 3), (2, 130, 6), (1, 5, 9, 4, 3), (5, 70)),
    *((2, 1, 1, 9), (2, 3, 8, 8, 4), (33,)),
]
whatever_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
lossy = pytest.mark.parametrize("codec", LOSSY, ids=repr)


def smooth(shape, seed=0, dtype=np.float32):
    """Random waves, mostly of low frequency, around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) + 0.7
    for axis in range(1, len(shape) - 1):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    return jnp.asarray(x * rng.uniform(0.1, 3, shape[-1:]), dtype)


def there_and_back(codec, x):
    return np.asarray(jax.jit(lambda x: codec.unpack(codec.pack(x)))(x), np.float64)


@whatever_shape
@pytest.mark.parametrize("codec", [c for c in LOSSY if isinstance(c, Dct)], ids=repr)
@pytest.mark.parametrize("way", ["native", "xla"])
def test_dct_stores_the_coefficients_of_the_cosine_transform(shape, codec, way):
    x = smooth(shape)
    with block_oracle.kernels(way):
        packed = codec.pack(x)
        got = np.asarray(codec.unpack(packed), np.float64)
    blocks = block_oracle.Blocks(shape)
    true = blocks.coefficients(np.asarray(x, np.float64))
    stored, step = block_oracle.read_dct(codec, blocks, *map(np.asarray, packed.arrays))
    width = np.array(block_oracle.widths(codec, blocks))
    kept = width > 0
    # Each within half a step of the truth, and what is dropped is zero.
    off = np.abs(stored - true)[:, :, kept]
    assert (off <= 0.5001 * step[:, :, None] + 1e-6 * np.abs(true).max()).all()
    assert (stored[:, :, ~kept] == 0).all()
    # The step is that of the docstring.
    reach = 2.0 ** (width[kept] - 1) - 0.5
    least = (np.abs(true[:, :, kept]) / reach[:, None]).max(2)
    assert (step >= least * (1 - 1e-5)).all()
    assert (step <= least * 1.0626 + 1e-30).all()
    # What comes back is what the codes say.
    expected = blocks.values(stored)
    np.testing.assert_allclose(got, expected.reshape(shape), atol=3e-6 * np.abs(x).max())


@whatever_shape
@lossy
def test_the_error_is_within_the_bound_of_the_docstring(shape, codec):
    x = smooth(shape, seed=1)
    error = np.abs(there_and_back(codec, x) - np.asarray(x, np.float64))
    assert (error <= block_oracle.bound(codec, np.asarray(x, np.float64)) * 1.001 + 1e-6).all()


def random_shape(seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(0, 4))
    limit = {0: 1, 1: 150, 2: 20, 3: 9}[rank]
    spatial = (int(n) for n in rng.integers(1, limit + 1, rank))
    return (int(rng.integers(1, 4)), *spatial, int(rng.integers(1, 40)))


@pytest.mark.parametrize(
    "seeds",
    [
        range(2),
        *(pytest.param(range(n, n + 26), marks=pytest.mark.full) for n in range(2, 500, 26)),
    ],
    ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}",
)
def test_random_shapes(seeds):
    for seed in seeds:
        shape = random_shape(seed)
        codec = LOSSY[seed % len(LOSSY)]
        x = smooth(shape, seed)
        got = there_and_back(codec, x)
        assert got.shape == shape
        true = np.asarray(x, np.float64)
        error = np.abs(got - true)
        assert (error <= block_oracle.bound(codec, true) * 1.001 + 1e-6).all(), (shape, codec)
        assert codec.nbytes(shape) == codec.pack(x).nbytes


def natural(shape, seed):
    """Maps whose energy falls with the square of the frequency, around a mean of one."""
    x = np.fft.fft2(np.random.default_rng(seed).standard_normal(shape), axes=(1, 2))
    waves = np.meshgrid(*(16 * np.fft.fftfreq(n) for n in shape[1:3]), indexing="ij")
    x = np.fft.ifft2(x / np.sqrt(1 + np.hypot(*waves) ** 2)[None, :, :, None], axes=(1, 2)).real
    return jnp.asarray(x / x.std() + 1, jnp.float32)


@pytest.mark.parametrize(
    "ladder",
    [
        [Dct(bits=b) for b in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)],
        [Uniform(bits=b) for b in (1, 2, 3, 4, 6, 8)],
        [Average(bits=b) for b in (1, 2, 3, 4, 6, 8)],
        [Dct(bits=6, share=s) for s in (0.1, 0.25, 0.5, 1)],
    ],
    ids=lambda ladder: repr(ladder[0]),
)
def test_more_bits_never_raise_the_error_on_average(ladder):
    xs = [natural((16, 32, 32, 8), 3), natural((16, 24, 24, 3), 4)]
    errors = [np.mean([((there_and_back(c, x) - x) ** 2).mean() for x in xs]) for c in ladder]
    assert all(b <= a for a, b in itertools.pairwise(errors)), errors
    sizes = [sum(c.nbytes(x.shape) for x in xs) for c in ladder]
    assert sizes == sorted(sizes)


def test_bits_are_the_average_with_scales_and_all():
    for bits in (1, 1.5, 2.5, 4, 8):
        each = Dct(bits=bits).nbytes((64, 32, 32, 16)) * 8 / (64 * 32 * 32 * 16)
        assert each == pytest.approx(bits, abs=0.01)


@pytest.mark.parametrize("codec", [Dct(bits=4, share=1), Uniform(), Average()], ids=repr)
def test_rounding_is_right_on_average(codec):
    """Of many examples, alike but for their first point, whose bits draw the dither."""
    one = np.asarray(smooth((1, 8, 8, 4), seed=5))
    many = np.repeat(one, 4000, 0)
    many[:, 0, 0, 0] += np.linspace(0, 1e-3, 4000)
    error = there_and_back(codec, jnp.asarray(many)) - many
    mean, deviation = error.mean(0), error.std(0) / math.sqrt(len(many))
    assert deviation.max() > 1e-5
    assert np.abs(mean[1:]).max() < 5 * deviation.max() + 2e-4


@pytest.mark.thin(4)
@lossy
def test_the_same_array_is_stored_the_same_way(codec):
    x = smooth((3, 9, 8, 4))
    whole, alone = codec.pack(x), codec.pack(x[1:2])
    for a, b in zip(whole.arrays, alone.arrays, strict=True):
        np.testing.assert_array_equal(a[1:2], b)


@lossy
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_named_and_stays_in_its_block(codec, bad):
    x = np.array(smooth((2, 16, 16, 2)))
    x[0, 3, 2, 1] = bad
    y = there_and_back(codec, jnp.asarray(x))
    assert np.isnan(y[0, 3, 2, 1])
    assert np.isfinite(y[1]).all()
    assert np.isfinite(y[0, ..., 0]).all()


@lossy
def test_outliers_survive(codec):
    x = np.array(smooth((1, 16, 16, 2)))
    x[0, 0, 0, 0] = 1e30
    y = there_and_back(codec, jnp.asarray(x))
    assert np.isfinite(y).all()
    if not isinstance(codec, Dct):  # A peak has all frequencies, the highest of them too.
        assert y[0, 0, 0, 0] == pytest.approx(1e30, rel=0.4)
    np.testing.assert_array_equal(y[..., 1], there_and_back(codec, jnp.asarray(x))[..., 1])


@pytest.mark.thin(6)
@lossy
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_come_back_in_their_type(codec, dtype):
    x = smooth((2, 9, 8, 3), dtype=dtype)
    y = codec.unpack(codec.pack(x))
    assert (y.dtype, y.shape) == (dtype, x.shape)
    bound = block_oracle.bound(codec, np.asarray(x, np.float64))
    slack = 0.01 * np.abs(np.asarray(x, np.float64)).max()
    assert (np.abs(np.asarray(y, np.float64) - np.asarray(x, np.float64)) <= bound + slack).all()


def test_large_numbers_of_float16_stay_finite():
    x = jnp.full((1, 8, 8, 1), 65504, jnp.float16)
    assert bool(jnp.isfinite(Dct(bits=2).unpack(Dct(bits=2).pack(x))).all())


@pytest.mark.usefixtures("x64")
def test_float64_comes_back_in_its_type():
    x = smooth((2, 9, 8, 3), dtype=np.float64)
    y = Dct(bits=8).unpack(Dct(bits=8).pack(x))
    assert y.dtype == jnp.float64


@pytest.mark.parametrize("codec", [*LOSSY, Cast(), Offload()], ids=repr)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 8, 8, 3), (2, 0, 4, 3), (2, 4, 4, 0)], ids=str)
def test_empty_arrays(codec, shape):
    packed = codec.pack(jnp.zeros(shape))
    assert packed.nbytes == 0
    assert codec.unpack(packed).shape == shape


@pytest.mark.parametrize("codec", LOSSY, ids=repr)
def test_zeros_are_zeros(codec):
    assert (there_and_back(codec, jnp.zeros((2, 9, 8, 3))) == 0).all()


def test_cast_and_offload():
    x = smooth((2, 9, 8, 3))
    np.testing.assert_array_equal(there_and_back(Cast(), x), x.astype(jnp.bfloat16).astype(float))
    half = x.astype(jnp.bfloat16)
    assert Cast(jnp.float32).pack(half).arrays[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(there_and_back(Offload(), x), x)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: Dct(bits=0.2), ValueError, "0.5 <= bits <= 12, got 0.2"),
        (lambda: Dct(bits=13), ValueError, "0.5 <= bits <= 12, got 13"),
        (lambda: Dct(bits="4"), TypeError, "bits must be a number, got '4'"),
        (lambda: Dct(bits=2.5, share=0.5), TypeError, "bits must be an integer, got 2.5"),
        (lambda: Dct(bits=4, share=0), ValueError, "0 < share <= 1, got 0"),
        (lambda: Uniform(bits=9), ValueError, "1 <= bits <= 8, got 9"),
        (lambda: Uniform(group=0), ValueError, "1 <= group <= 65536, got 0"),
        (lambda: Average(block=1.5), TypeError, "block must be an integer, got 1.5"),
        (lambda: Cast(jnp.int8), TypeError, "dtype must be a floating-point type, got int8"),
        (lambda: Cast("no"), TypeError, "dtype must be a floating-point type, got 'no'"),
        (lambda: Dct().pack(jnp.arange(9)), TypeError, "floating-point numbers, got int32"),
    ],
)
def test_wrong_arguments_raise_one_clear_line(make, error, said):
    with pytest.raises(error) as raised:
        make()
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_codec_is_a_value():
    assert Dct(bits=4) == Dct(bits=4) != Dct(bits=5)
    assert len({Dct(bits=4), Dct(bits=4), Uniform()}) == 2
    assert repr(Dct(bits=2.5)) == "Dct(bits=2.5)"
    assert isinstance(Cast(), Codec)


@pytest.mark.parametrize("codec", [Dct(bits=4), Uniform(), Average()], ids=repr)
def test_vmap_stores_each_as_alone(codec):
    x = smooth((3, 2, 9, 8, 4))
    mapped = jax.vmap(lambda x: codec.unpack(codec.pack(x)))(x)
    alone = jnp.stack([codec.unpack(codec.pack(each)) for each in x])
    np.testing.assert_allclose(mapped, alone, atol=1e-6)


def read_groups(bits, blocks, words):
    """Of each value of a block what its code stands for, and the step: by loops over the bits."""
    words = words.astype(np.uint64)
    least, spread = (
        np.asarray(part << 16, np.uint32).view(np.float32).astype(float)
        for part in (words[:, :, 0] & 0xFFFF, words[:, :, 0] >> 16)
    )
    step = spread / (2**bits - 1)
    count = blocks.points * blocks.merged
    values = np.empty((*words.shape[:2], count, words.shape[-1]))
    for k in range(count):
        word, slot = divmod(k, 32 // bits)
        code = (words[:, :, 1 + word] >> np.uint64(slot * bits)) % np.uint64(2**bits)
        values[:, :, k] = least + code.astype(float) * step
    return values, step


@whatever_shape
@pytest.mark.parametrize("codec", [Uniform(), Uniform(5, 32), Average(), Average(5, 3)], ids=repr)
def test_groups_store_codes_between_least_and_greatest(shape, codec):
    x = smooth(shape, seed=2)
    packed = codec.pack(x)
    arrays = list(map(np.asarray, packed.arrays))
    if isinstance(codec, Average):
        blocks = block_oracle.Blocks(shape, codec.block)
        means = arrays.pop(0).astype(float)[:, :, None]
    else:
        blocks = block_oracle.Blocks(shape, codec.group, codec.group, flat=True)
        means = np.zeros((1, 1, 1, 1))
    values, step = read_groups(codec.bits, blocks, arrays[0])
    true = blocks.split(np.asarray(x, np.float64)).reshape(values.shape)
    slack = 1e-6 * np.abs(true).max()
    assert (np.abs(values + means - true) <= step[:, :, None] * 1.0001 + slack).all()
    # Codes reach from end to end: the step is no larger than the values need.
    range_ = np.ptp(true - means, axis=2)
    widest = range_ * 1.02 + np.abs(true - means).max(2) / 64
    assert (step * (2**codec.bits - 1) <= widest + slack).all()
    got = np.asarray(codec.unpack(packed), np.float64)
    split = (*values.shape[:2], blocks.points, blocks.merged, blocks.lanes)
    expected = blocks.join((values + means).reshape(split)).reshape(shape)
    np.testing.assert_allclose(got, expected, atol=slack)


@pytest.mark.parametrize("way", ["native", "xla"])
@pytest.mark.parametrize("codec", LOSSY, ids=repr)
def test_packing_needs_no_more_than_the_array_itself(codec, way):
    """Without a kernel each code once lay in a row of zeros for every word: 34 times the array."""
    x = jax.ShapeDtypeStruct((4, 32, 32, 64), jnp.float32)
    with block_oracle.kernels(way):
        used = jax.jit(codec.pack).lower(x).compile().memory_analysis()
    assert used.temp_size_in_bytes <= 2.1 * 4 * 4 * 32 * 32 * 64
