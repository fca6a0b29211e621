"""Band-limited layers for ``flax.linen``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax.core import lift
from flax.linen import transforms

from bandjax._bands.band import Band
from bandjax._bands.plan import Plan
from bandjax._conv.pool import spectral_pool
from bandjax._flax.linen_layer import BandConv
from bandjax._flax.linen_models import Limiting, entered
from bandjax._flax.linen_prepare import prepare_model
from bandjax._flax.prepare_report import PrepareReport
from bandjax._flax.select import Limit, LimitReport, Where
from bandjax._saved import compress
from bandjax.codecs import Codec, Dct

__all__ = ["BandConv", "band_limited", "compress_saved", "prepare", "spectral_pool"]


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
        ``ConvTranspose``, ``ConvLocal``, layers with more than three spatial axes, and those with
        a ``conv_general_dilated`` of their own.
      pools: see :func:`bandjax.nnx.band_limit`.
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
        pools: bool = False,
        grid: int | Sequence[int] | None = None,
        method: str = "auto",
        implementation: str | None = None,
        residual_dtype: jax.typing.DTypeLike | None = None,
        recompute_filter: bool = True,
    ) -> None:
        limit = Limit.of(band, grid, method, implementation, residual_dtype, recompute_filter)
        self._arguments = limit, where, strict, pools
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


def prepare(
    model: Any,
    variables: Any,
    *inputs: Any,
    rngs: Any = None,
    dtype: jax.typing.DTypeLike | None = None,
    measure: bool = True,
    **keywords: Any,
) -> tuple[Callable[..., Any], dict[str, Any], PrepareReport]:
    """Returns what applies a model in inference, and the variables for it.

    ``apply(prepared, *inputs, **keywords)`` gives what ``model.apply(variables, *inputs,
    **keywords)`` does, to rounding; what is done to filters and batch norms is what
    :func:`bandjax.nnx.prepare` does. Within a :class:`band_limited` context, or decorated by it,
    this function prepares the band-limited model; ``apply`` needs no context.

    Args:
      model: a module.
      variables: its parameters and other collections, which are not changed.
      *inputs: what the model is called with, arrays, ``jax.ShapeDtypeStruct`` or shapes. Their
        batch is the one that is measured.
      rngs: as ``apply`` takes them, if the model needs them in inference too.
      dtype, measure: see :func:`bandjax.nnx.prepare`.
      **keywords: further arguments of the model, those for inference: ``train=False``. Norms that
        do not use their running statistics are not folded.

    Returns:
      A function with the arguments of ``model.apply``; the variables that go with it, which lack
      what folded norms had; and a :class:`bandjax.PrepareReport` of the layers that are called.

    Raises:
      TypeError, ValueError: as :func:`bandjax.nnx.prepare`. ``apply`` raises ValueError for other
        variables than these.

    Example:
      >>> model = nn.Sequential(
      ...     [nn.Conv(8, (3, 3)), nn.BatchNorm(use_running_average=True), nn.relu]
      ... )
      >>> x = jnp.ones((1, 32, 32, 3))
      >>> variables = model.init(jax.random.key(0), x)
      >>> apply, prepared, report = prepare(model, variables, x, measure=False)
      >>> report.norms, list(prepared)
      ({'layers_1': 'layers_0'}, ['params'])
      >>> bool(jnp.allclose(apply(prepared, x), model.apply(variables, x), atol=1e-5))
      True
    """
    return prepare_model(model, variables, inputs, keywords, rngs, dtype, measure)


def compress_saved(
    target: Any = None,
    codec: Codec = Dct(bits=4),  # noqa: B008  It is frozen.
    *,
    methods: Sequence[str] | None = None,
) -> Any:
    """:func:`bandjax.compress_saved` for a module: a block, or a whole model.

    Variables (batch statistics among them) change once. They are kept as they are; the inputs of
    the module are packed where they have a gradient.

    Args:
      target: a ``flax.linen.Module`` class, or a function of a module within one; without it a
        decorator is returned.
      codec: see :func:`bandjax.compress_saved`.
      methods: of a class, which ones; by default ``__call__``.

    Returns:
      A class or function with the same arguments and variables. Arguments must be pytrees of
      arrays, booleans and strings.

    Raises:
      TypeError: ``codec`` is none, or ``target`` neither class nor function.

    Example:
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.relu(nn.Conv(4, (3, 3))(x))
      >>> model, x = compress_saved(Block, Dct(bits=2.5))(), jnp.ones((2, 9, 9, 4))
      >>> model.apply(model.init(jax.random.key(0), x), x).shape
      (2, 9, 9, 4)
    """
    compress.check_codec(codec)
    if target is None:
        return functools.partial(compress_saved, codec=codec, methods=methods)
    return transforms.lift_transform(_compressed, target, codec, methods=methods)


def _compressed(function: Callable[..., Any], codec: Codec) -> Callable[..., Any]:
    """The transformation for a function of a ``flax.core`` scope."""

    def inner(
        scope_of: Any, repack: Any, variables: Any, rngs: Any, *args: Any, **keywords: Any
    ) -> Any:
        def pure(variables: Any, rngs: Any, *args: Any, **keywords: Any) -> Any:
            scope = scope_of(variables, rngs)
            y = function(scope, *args, **keywords)
            return y, repack(scope)

        transformed = compress.compress_saved(pure, codec, argnums=range(2, 2 + len(args)))
        return transformed(variables, rngs, *args, **keywords)

    return lift.pack(inner, (True,), (True,), (True,), name="compressed", enable_kwargs=True)
