"""Band-limited layers for ``flax.nnx``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from bandjax._bands.band import Band
from bandjax._bands.plan import Plan
from bandjax._conv.closed import split_static
from bandjax._conv.pool import spectral_pool
from bandjax._conv.remat import checkpoint, save_spectra
from bandjax._flax.nnx_changes import (
    arrays_of,
    changed_state,
    fixed_attributes,
    write_attributes,
)
from bandjax._flax.nnx_layer import BandConv, to_spatial, to_spectral
from bandjax._flax.nnx_models import limit_model
from bandjax._flax.nnx_prepare import prepare_model
from bandjax._flax.prepare_report import PrepareReport
from bandjax._flax.select import Limit, LimitReport, Where
from bandjax._saved import compress
from bandjax.codecs import Codec, Dct

__all__ = [
    "BandConv",
    "band_limit",
    "compress_saved",
    "prepare",
    "remat",
    "spectral_pool",
    "to_spatial",
    "to_spectral",
]


def remat(
    f: Callable[..., Any] | None = None,
    policy: Callable[..., bool] = save_spectra,
    *,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """:func:`bandjax.checkpoint` for a function of a module.

    What the call changes in the module (batch statistics, random streams, parameters, attributes)
    it changes once, and recomputation starts from the state as it was.

    Args:
      f: called as ``f(module, *args, **keywords)``, a method of a class for instance; arguments are
        pytrees of arrays. None gives a decorator: ``@remat(policy=...)``.
      policy: tells what is kept, by default the spectra alone.
      prevent_cse, static_argnums: see :func:`bandjax.checkpoint`; the module is argument 0.

    Returns:
      A function with the same arguments and result.

    Raises:
      ValueError: ``static_argnums`` names the module, or an argument that is not there; from the
        call, where it makes new modules.

    Example:
      >>> class Block(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.conv = BandConv(4, 4, (3, 3), band=Compression(0.5), rngs=rngs)
      ...         self.norm = nnx.BatchNorm(4, rngs=rngs)
      ...
      ...     @remat
      ...     def __call__(self, x):
      ...         return nnx.relu(self.norm(self.conv(x)))
      >>> Block(nnx.Rngs(0))(jnp.ones((2, 9, 9, 4))).shape
      (2, 9, 9, 4)
    """
    if f is None:
        return functools.partial(
            remat, policy=policy, prevent_cse=prevent_cse, static_argnums=static_argnums
        )

    def recomputed(pure: Callable[..., Any], count: int) -> Callable[..., Any]:
        return checkpoint(pure, policy, prevent_cse=prevent_cse)

    return _of_arrays(f, recomputed, static_argnums)


def compress_saved(
    f: Callable[..., Any] | None = None,
    codec: Codec = Dct(bits=4),  # noqa: B008  It is frozen.
    *,
    static_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """:func:`bandjax.compress_saved` for a function of a module: a block, or a whole model.

    What the call changes in the module (batch statistics, random streams, parameters, attributes)
    it changes once. What the module holds is kept as it is, its inputs are packed where they have a
    gradient.

    Args:
      f: called as ``f(module, *args, **keywords)``, a method of a class for instance; arguments are
        pytrees of arrays. None gives a decorator: ``@compress_saved(codec=...)``.
      codec: see :func:`bandjax.compress_saved`.
      static_argnums: positions of arguments that are no arrays; the module is argument 0.

    Returns:
      A function with the same arguments and result.

    Raises:
      TypeError: ``codec`` is none.
      ValueError: ``static_argnums`` names the module, or an argument that is not there; from the
        call, where it makes new modules.

    Example:
      >>> class Block(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
      ...         self.norm = nnx.BatchNorm(4, rngs=rngs)
      ...
      ...     @compress_saved(codec=Dct(bits=2.5))
      ...     def __call__(self, x):
      ...         return nnx.relu(self.norm(self.conv(x)))
      >>> Block(nnx.Rngs(0))(jnp.ones((2, 9, 9, 4))).shape
      (2, 9, 9, 4)
    """
    compress.check_codec(codec)
    if f is None:
        return functools.partial(compress_saved, codec=codec, static_argnums=static_argnums)

    def compressed(pure: Callable[..., Any], count: int) -> Callable[..., Any]:
        return compress.compress_saved(pure, codec, argnums=range(2, 2 + count))

    return _of_arrays(f, compressed, static_argnums)


def _of_arrays(
    function: Callable[..., Any],
    transform: Callable[[Callable[..., Any], int], Callable[..., Any]],
    static_argnums: int | Sequence[int],
) -> Callable[..., Any]:
    """Applies a transformation of functions of arrays to a function of a module.

    Args:
      function: of a module and further arguments.
      transform: of a function of the module's parameters, its other state and so many further
        positional arguments, which returns the result and the changed state.
      static_argnums: positions of arguments that are no arrays.
    """
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if 0 in numbers:
        raise ValueError(f"static_argnums must leave out 0, the module, got {static_argnums!r}")

    @functools.wraps(function)
    def call(module: nnx.Module, *args: Any, **keywords: Any) -> Any:
        graph, parameters, *rest = nnx.split(module, nnx.Param, ...)
        whole = (module, *args)
        of_arrays, (_, *traced) = split_static(function, numbers, whole)
        before, after = fixed_attributes(module), {}

        def pure(parameters: Any, rest: Any, *args: Any, **keywords: Any) -> Any:
            # A copy: the caller's arrays are not to be written from within.
            inner = nnx.merge(graph, parameters, *rest, copy=True)
            given = arrays_of(inner)
            out = of_arrays(inner, *args, **keywords)
            after.update(fixed_attributes(inner))
            return out, changed_state(given, inner)

        out, changed = transform(pure, len(traced))(parameters, rest, *traced, **keywords)
        write_attributes(module, before, after)
        nnx.update(module, changed)
        return out

    return call


def band_limit(
    model: nnx.Module,
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
) -> LimitReport:
    """Makes the convolutions of an existing model band-limited, in place.

    Every ``flax.nnx.Conv`` in the model, wherever it is, becomes a :class:`BandConv`; a
    ``BandConv`` has its band and options replaced. The layers stay the same objects with the same
    variables, so that optimizers and checkpoints fit as before; functions that ``nnx.jit`` compiled
    trace the model anew. For a limited copy, limit ``nnx.clone(model)``.

    The band None is every frequency, hence the convolutions of the dense model again, to rounding.

    A band is wider than a kernel: an output depends on inputs all over the map, in ``CAUSAL`` and
    in masked layers on later ones too. Leave them out where that matters.

    Args:
      model: a module.
      band: for all layers, or a :class:`bandjax.Plan` with one for each. A plan of
        :func:`bandjax.calibrate` leaves out what that left out.
      where: which layers, as a function of a :class:`bandjax.ConvLayer`; a shell pattern of paths,
        ``"blocks.*"``; a compiled regular expression, searched in paths; a class; a kernel size,
        ``(3, 3)``; or a list of these, of which any may hold. None for all.
      strict: raise, and change nothing, where a selected layer cannot be band-limited; by default
        warn. Such are ``ConvTranspose``, layers with more than three spatial axes, and those with
        a ``conv_general_dilated`` of their own.
      pools: whether the strided pools of Flax (``max_pool``, ``avg_pool``, ``min_pool``) that calls
        of the model reach become :func:`spectral_pool`, too: within the band, or of a plan within
        what their output can carry. Not for :class:`bandjax.Energy`. Without it they are Flax's
        own, also where an earlier call made them spectral.
      grid, method, implementation, residual_dtype, recompute_filter: of all layers, see
        :func:`bandjax.band_conv`. Periodic layers keep their grid, and a plan has its own.

    Returns:
      A :class:`bandjax.LimitReport`: which layers are limited, which were not selected, and which
      cannot be limited and why.

    Raises:
      TypeError: an argument of the wrong type. A later call raises it where the ``__call__`` of a
        subclass of ``Conv`` convolves in its own way.
      ValueError: no layer is selected; a selected one cannot be limited, with ``strict``; the plan
        is for another model. Calls raise it where inputs have another size than the plan's.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(
      ...     nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.relu, nnx.Conv(8, 8, (1, 1), rngs=rngs)
      ... )
      >>> print(band_limit(model, Compression(0.5), where=(3, 3)))
      convolutions: 1 band-limited, 1 not selected, 0 impossible
        layers.0: Compression(rate=0.5)
        layers.2: left alone, not selected
    """
    limit = Limit.of(band, grid, method, implementation, residual_dtype, recompute_filter)
    return limit_model(model, limit, where, strict, pools)


def prepare(
    model: nnx.Module,
    *inputs: Any,
    dtype: jax.typing.DTypeLike | None = None,
    measure: bool = True,
    **keywords: Any,
) -> tuple[Any, PrepareReport]:
    """Returns a copy of a model that is made for inference.

    The copy, in evaluation mode, gives what the model in evaluation mode does, to rounding.

    * What does not change from call to call is made once. Of each convolution the taps are kept, or
      the filter's spectrum, whichever is faster: taps with the native kernels, taps with the
      backend's own convolution (of the input's projection, if there is a band), the spectrum with
      each method of products over frequencies. All of them are measured on this machine, at the
      sizes and the batch of ``inputs``.
    * A batch norm that alone reads the output of one convolution, or of one ``nnx.Linear``, is done
      by it: its factor goes into the kernel, its shift into the bias. That it does is seen in a
      trace of the model; where the output goes anywhere else too, norms stay as they are. A norm
      before a convolution is not folded into it: padding is zero after the norm.
    * In compiled calls a bias, a residual that is added and a rectifier are done by the native
      kernel of the convolution that they follow, where nothing else reads its output. For that the
      call is traced; one that changes the model's state is not fused, nor one within ``shard_map``
      or on a mesh with explicit axes.
    * Nothing is kept for a backward pass, nor rounded as for one: ``residual_dtype`` and ``saved``
      are without effect. Gradients, should they be asked for, are those of the prepared filters.

    A layer's own ``method`` and ``implementation``, where they are named, hold for the copy too.
    Energy bands, whose box depends on the input, keep their taps, as do layers that are called on
    several sizes. Left alone are transposed convolutions, complex and integer ones, those with a
    ``conv_general_dilated`` or a call of their own, and layers whose parameters are read by others.

    The copy takes inputs of the sizes that it was prepared for, in batches of any number. It holds
    other parameters than the model; keep the model to train on, or to save.

    Args:
      model: a module, which is not changed.
      *inputs: what the model is called with, arrays, ``jax.ShapeDtypeStruct`` or shapes. Their
        batch is the one that is measured.
      dtype: ``jnp.bfloat16`` to keep spectra in half the memory, rounded; None for float32 (float64
        of a layer that computes so).
      measure: whether to measure; if not, the estimates of ``method="auto"`` decide, which are
        those of a training step.
      **keywords: further arguments of the model.

    Returns:
      The prepared copy, and a :class:`bandjax.PrepareReport` of its layers.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: there is no convolution, one is not called, or ``dtype`` is another type. Calls of
        the copy raise it where inputs have another size than what it was prepared for, and in
        training mode.

    Example:
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(
      ...     BandConv(3, 8, (3, 3), band=Compression(0.5), rngs=rngs),
      ...     nnx.BatchNorm(8, rngs=rngs),
      ...     nnx.relu,
      ... )
      >>> prepared, report = prepare(model, (1, 32, 32, 3), measure=False)
      >>> report.norms
      {'layers.1': 'layers.0'}
      >>> prepared(jnp.ones((4, 32, 32, 3))).shape
      (4, 32, 32, 8)
    """
    return prepare_model(model, inputs, keywords, dtype, measure)
