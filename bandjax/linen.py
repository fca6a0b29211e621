"""Band-limited layers for ``flax.linen``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax.core import meta

from bandjax import _layer, _spectral_layer
from bandjax._band import Band
from bandjax._geometry import ConvGeometry, check_groups
from bandjax._linen_limit import Limiting, entered
from bandjax._plan import Plan
from bandjax._select import Limit, LimitReport, Where, options_of

__all__ = ["BandConv", "band_limited"]


class BandConv(nn.Conv):
    """``flax.linen.Conv``, computed on the low frequencies of its input and kernel alone.

    Parameters, their names and their initial values are those of ``flax.linen.Conv``: a dense
    layer's variables apply to this one and back.

    Attributes:
      features, kernel_size, ...: as in ``flax.linen.Conv``; ``CIRCULAR`` padding makes a periodic
        layer on a grid of one period. ``conv_general_dilated`` is not to be set.
      band: :class:`bandjax.Compression`, :class:`bandjax.Modes`, or None for every frequency, with
        which the layer equals ``flax.linen.Conv``.
      grid, method, implementation, residual_dtype, recompute_filter: see :func:`bandjax.band_conv`.
      param_domain: "spatial", or "spectral" for a layer whose parameter is the filter's spectrum on
        the band, ``kernel_spectrum`` ``(2, *box, in / groups, out)``, in place of ``kernel``: see
        :func:`bandjax.spectral_conv`. Its initial value is the spectrum of what ``kernel_init``
        gives.
      spatial_shape: with spectral parameters, the sizes of the input's spatial axes, which set the
        grid that they belong to; by default those of the input. To apply parameters at another
        resolution, give the one that they were made for: they filter at the same waves there,
        for circles keep their proportion to the input, unless ``grid`` is set.
      spectral_decay: with spectral parameters, emphasis of low frequencies: the initial
        coefficients are multiplied by ``(1 + |u|) ** -spectral_decay``.

    With an :class:`bandjax.Energy` band each call sows the limits of the box that it found, int32
    ``modes``, and its true ``compression`` into the collection ``intermediates``.

    Raises:
      TypeError: ``conv_general_dilated`` is given, or an argument has the wrong type.
      ValueError: an argument has a value out of range.

    Example:
      >>> layer = BandConv(8, (3, 3), band=Compression(0.5))
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 32, 32, 3)))
      >>> y.shape
      (2, 32, 32, 8)
    """

    band: Band = None
    grid: int | Sequence[int] | None = None
    method: str = "auto"
    implementation: str | None = None
    residual_dtype: jax.typing.DTypeLike | None = None
    recompute_filter: bool = True
    param_domain: str = "spatial"
    spatial_shape: Sequence[int] | None = None
    spectral_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.conv_general_dilated is not None or self.conv_general_dilated_cls is not None:
            raise TypeError(
                "conv_general_dilated is what BandConv sets; give it to flax.linen.Conv instead"
            )
        _layer.hook(self)  # Raises now what would raise in the first call.
        _spectral_layer.check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Applies the layer to ``(batch..., *spatial, in)``.

        Returns ``(batch..., *spatial_out, features)``.
        """
        check_groups(inputs.shape[-1], self.features, self.feature_group_count)
        # Flax wraps the methods of a module; what it wraps takes any object for its module.
        if self.param_domain == "spectral":
            return self._spectral(inputs)
        seen = _layer.AsFlaxSees(self)
        y = nn.Conv.__call__.__wrapped__(seen, inputs)  # type: ignore[attr-defined]
        for name, value in _layer.found_by_energy(self, seen, inputs.shape).items():
            self.sow("intermediates", name, value)
        return y

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs of ``input_shape``.

        With spectral parameters and a ``spatial_shape`` of other inputs, the box is what there is
        of the parameters' at this size.
        """
        shape, kernel_shape = tuple(input_shape), self._kernel_shape(input_shape)
        if self.param_domain == "spectral":
            return _spectral_layer.geometry_at(self, shape, kernel_shape, self._own(shape))
        return _layer.geometry(self, shape, kernel_shape, self.band)

    def _kernel_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        size = (self.kernel_size,) if isinstance(self.kernel_size, int) else self.kernel_size
        return (*size, input_shape[-1] // self.feature_group_count, self.features)

    def _own(self, input_shape: Sequence[int]) -> ConvGeometry:
        """The geometry that spectral parameters belong to."""
        kernel_shape = self._kernel_shape(input_shape)
        rank = len(kernel_shape) - 2
        sizes = self.spatial_shape
        if sizes is None:
            sizes = input_shape[-rank - 1 : -1]
        elif len(sizes) != rank:
            raise ValueError(
                f"spatial_shape must have one size for each of the {rank} spatial axes, got "
                f"{tuple(sizes)}"
            )
        return _spectral_layer.own_geometry(self, sizes, kernel_shape)

    def _spectral(self, inputs: jax.Array) -> jax.Array:
        kernel_shape = self._kernel_shape(inputs.shape)
        own = self._own(inputs.shape)

        def init(key: jax.Array) -> Any:
            kernel = self.kernel_init(key, kernel_shape, self.param_dtype)
            if isinstance(kernel, meta.AxisMetadata):  # It names the axes that devices share.
                spectrum = _spectral_layer.initial(self, kernel.unbox(), own)
                boxed = kernel.add_axis(0, {meta.PARTITION_NAME: None})
                return boxed.replace_boxed(spectrum)
            return _spectral_layer.initial(self, kernel, own)

        # Parameters of another resolution: applied there without `spatial_shape`, their box tells.
        if self.has_variable("params", "kernel_spectrum"):
            there = meta.unbox(self.get_variable("params", "kernel_spectrum")).shape[1:-2]
            if there != own.box:
                raise ValueError(
                    f"kernel_spectrum has the box {there}, inputs of {inputs.shape} have "
                    f"{own.box}: to use parameters at another resolution, set spatial_shape to the "
                    "one that they belong to"
                )
        spectrum = self.param("kernel_spectrum", init)
        bias: jax.Array | None = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        arrays: Any = self.promote_dtype(inputs, spectrum, bias, dtype=self.dtype)
        x, w, b = arrays
        return _spectral_layer.call(self, x, w, b, own)


class band_limited:  # noqa: N801  As contextlib names such classes.
    """Makes the convolutions of ``flax.linen`` models band-limited, while it is entered.

    Within ``with band_limited(band):``, or within a function that it decorates, every call of a
    ``flax.linen.Conv`` is that of a :class:`BandConv`. Model and variables stay as they are.

    JAX traces a function once and then runs what it compiled. A jitted function that was traced
    outside is not band-limited inside, and one that was traced inside stays so. Enter the context
    in the function that is jitted, or decorate what is jitted: then it is there whenever it counts.

    Args:
      band: for all layers, or a :class:`bandjax.Plan` with one for each; None for every frequency.
      where: which layers, see :func:`bandjax.nnx.band_limit`; paths are those of the variables,
        ``"Block_0/Conv_1"``. With a plan and ``where``, a part of the model may be called.
      strict: raise where a selected layer cannot be band-limited, rather than warn. Such are
        ``ConvTranspose``, ``ConvLocal``, layers with more than three spatial axes, those of complex
        numbers, and those with a ``conv_general_dilated`` of their own.
      grid, method, implementation, residual_dtype, recompute_filter: see
        :func:`bandjax.nnx.band_limit`.

    Entering gives a :class:`bandjax.LimitReport`, which fills as layers are traced. Of contexts
    within each other the innermost that selects a layer limits it.

    Raises:
      TypeError, ValueError: as :func:`bandjax.nnx.band_limit`, of the model when it is traced. That
        layers of a plan are not in the model is known, and raised, at the end of the context.

    Example:
      >>> x = jnp.ones((2, 32, 32, 3))
      >>> model = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, nn.Conv(8, (1, 1))])
      >>> variables = model.init(jax.random.key(0), x)
      >>> with band_limited(Compression(0.5), where=(3, 3)) as report:
      ...     y = model.apply(variables, x)
      >>> print(report)
      convolutions: 1 band-limited, 1 not selected, 0 impossible
        layers_0: Compression(rate=0.5)
        layers_2: left alone, not selected

      >>> apply = jax.jit(band_limited(Compression(0.5), where=(3, 3))(model.apply))
      >>> bool(jnp.allclose(apply(variables, x), y, atol=1e-5))
      True
    """

    def __init__(
        self,
        band: Band | Plan,
        where: Where = None,
        *,
        strict: bool = False,
        grid: int | Sequence[int] | None = None,
        method: str = "auto",
        implementation: str | None = None,
        residual_dtype: jax.typing.DTypeLike | None = None,
        recompute_filter: bool = True,
    ) -> None:
        options = options_of(grid, method, implementation, residual_dtype, recompute_filter)
        self._arguments = Limit(band, options), where, strict, BandConv
        Limiting(*self._arguments)  # Raises now what would raise in the first call.
        self._entered: list[tuple[Limiting, Any]] = []

    def __enter__(self) -> LimitReport:
        limiting = Limiting(*self._arguments)
        context = entered(limiting)
        context.__enter__()
        self._entered.append((limiting, context))
        return limiting.report

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        limiting, context = self._entered.pop()
        context.__exit__(kind, value, traceback)
        if kind is None:
            limiting.finish()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns ``function``, called within the context."""
        if not callable(function):
            raise TypeError(f"band_limited decorates functions, got {function!r}")

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            limiting = Limiting(*self._arguments)
            with entered(limiting):
                out = function(*args, **kwargs)
            limiting.finish()
            return out

        return call
