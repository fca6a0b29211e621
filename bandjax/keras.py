"""Band-limited layers for Keras 3 on its JAX backend: ``pip install 'bandjax[keras]'``.

Keras takes its backend from the environment, or a file, when it is first imported. If this module
is imported first, and the environment names none, it chooses JAX.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax

from bandjax._bands.band import Band
from bandjax._bands.serialise import band_from_json, band_to_json
from bandjax._conv.geometry import ConvGeometry, conv_geometry
from bandjax._conv.lax import ConvGeneralDilated
from bandjax._conv.options import ConvSpec
from bandjax._flax.select import TRANSPOSED, ConvLayer, Limit, LimitReport, Where, selector, shown
from bandjax._optional import needs

if "keras" not in sys.modules:
    os.environ.setdefault("KERAS_BACKEND", "jax")
try:
    import keras
except ImportError as error:
    if error.name == "keras":
        raise needs("keras", "keras") from error
    raise ImportError(
        f"keras does not load ({error}): set KERAS_BACKEND=jax in the environment"
    ) from error

if keras.backend.backend() != "jax":
    raise ImportError(
        f"bandjax.keras needs the JAX backend of Keras, which runs on {keras.backend.backend()!r}: "
        "set KERAS_BACKEND=jax in the environment before keras is imported"
    )

__all__ = [
    "BandConv1D",
    "BandConv2D",
    "BandConv3D",
    "BandDepthwiseConv1D",
    "BandDepthwiseConv2D",
    "band_limit",
]

_OPTIONS = ("band", "grid", "method", "implementation", "residual_dtype", "recompute_filter")


class _BandLimited:
    """What the band-limited layers add to those of Keras.

    ``convolution_op`` is the convolution alone; ``call`` adds bias and activation to it, for every
    class alike.
    """

    def __init__(
        self,
        *args: Any,
        band: Any = None,
        grid: int | Sequence[int] | None = None,
        method: str = "auto",
        implementation: str | None = None,
        residual_dtype: jax.typing.DTypeLike | None = None,
        recompute_filter: bool = True,
        **conv: Any,
    ) -> None:
        super().__init__(*args, **conv)
        if isinstance(band, dict):  # as get_config writes it
            band = band_from_json(band)
        spec = ConvSpec(band, grid, method, implementation, residual_dtype, recompute_filter)
        _set_options(self, spec)

    def convolution_op(self, inputs: Any, kernel: Any) -> jax.Array:
        """Convolves, in the layout of the layer and the type of the kernel."""
        layer: Any = self
        kernel = keras.ops.convert_to_tensor(kernel)
        inputs = keras.ops.convert_to_tensor(inputs, dtype=kernel.dtype)
        channels = inputs.shape[_channel_axis(layer)]
        if isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D):
            kernel = keras.ops.reshape(kernel, (*kernel.shape[:-2], 1, -1))
        spatial = "DHW"[-layer.rank :]
        layout = f"N{spatial}C" if layer.data_format == "channels_last" else f"NC{spatial}"
        return ConvGeneralDilated.of(self)(
            inputs,
            kernel,
            tuple(layer.strides),
            layer.padding.upper(),
            rhs_dilation=tuple(layer.dilation_rate),
            dimension_numbers=(layout, f"{spatial}IO", layout),
            feature_group_count=channels // kernel.shape[-2],
        )

    def call(self, inputs: Any) -> jax.Array:
        """Applies the layer to a batch."""
        layer: Any = self
        outputs = self.convolution_op(inputs, layer.kernel)
        if layer.use_bias:
            shape = [1] * outputs.ndim
            shape[_channel_axis(layer)] = -1
            outputs = keras.ops.add(outputs, keras.ops.reshape(layer.bias, shape))
        return outputs if layer.activation is None else layer.activation(outputs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the layer, as Keras saves them."""
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        options = {name: getattr(self, name) for name in _OPTIONS}
        options["band"] = band_to_json(options["band"])
        if options["residual_dtype"] is not None:
            options["residual_dtype"] = str(options["residual_dtype"])
        return {**config, **options}

    def geometry(self, input_shape: Sequence[int]) -> ConvGeometry:
        """Returns grid, kept box and true compression for inputs of ``input_shape``, batch first.

        The layer must have been built.
        """
        layer: Any = self
        shape = list(input_shape)
        channels = shape.pop(_channel_axis(layer))
        *taps, in_, out = layer.kernel.shape
        if isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D):
            in_, out = 1, in_ * out
        return conv_geometry(
            (*shape, channels),
            (*taps, in_, out),
            layer.band,
            strides=tuple(layer.strides),
            padding=layer.padding.upper(),
            kernel_dilation=tuple(layer.dilation_rate),
            feature_group_count=channels // in_,
            grid=layer.grid,
        )


def _channel_axis(layer: Any) -> int:
    return -1 if layer.data_format == "channels_last" else 1


def _set_options(layer: Any, spec: ConvSpec) -> None:
    for name, value in spec.attributes().items():
        object.__setattr__(layer, name, value)  # Keras would wrap tuples to track them.


_registered = functools.partial(keras.saving.register_keras_serializable, package="bandjax")


@_registered()
class BandConv1D(_BandLimited, keras.layers.Conv1D):
    """``keras.layers.Conv1D``, computed on the low frequencies of its input and kernel alone.

    Weights, their names and their initial values are those of ``keras.layers.Conv1D``, and so are
    the arguments, ``padding="causal"`` among them; further ones, by name:

    Args:
      band: :class:`bandjax.Compression`, :class:`bandjax.Modes`, :class:`bandjax.Energy`, or None
        for every frequency, with which the layer equals that of Keras.
      grid, method, implementation, residual_dtype, recompute_filter: see :func:`bandjax.band_conv`.

    Models with such layers are saved and loaded as all of Keras are; a program that loads one
    imports ``bandjax.keras`` first.

    Raises:
      TypeError, ValueError: an argument has the wrong type or a value out of range.

    Example:
      >>> layer = BandConv1D(8, 5, padding="same", band=Compression(0.5))
      >>> layer(jnp.ones((2, 64, 3))).shape
      (2, 64, 8)
    """


@_registered()
class BandConv2D(_BandLimited, keras.layers.Conv2D):
    """``keras.layers.Conv2D``, band-limited; see :class:`BandConv1D`.

    Example:
      >>> layer = BandConv2D(8, 3, padding="same", band=Compression(0.5))
      >>> layer(jnp.ones((2, 32, 32, 3))).shape
      (2, 32, 32, 8)
    """


@_registered()
class BandConv3D(_BandLimited, keras.layers.Conv3D):
    """``keras.layers.Conv3D``, band-limited; see :class:`BandConv1D`."""


@_registered()
class BandDepthwiseConv1D(_BandLimited, keras.layers.DepthwiseConv1D):
    """``keras.layers.DepthwiseConv1D``, band-limited; see :class:`BandConv1D`."""


@_registered()
class BandDepthwiseConv2D(_BandLimited, keras.layers.DepthwiseConv2D):
    """``keras.layers.DepthwiseConv2D``, band-limited; see :class:`BandConv1D`."""


_LIMITED: dict[type, Any] = {
    kind.__mro__[2]: kind
    for kind in (BandConv1D, BandConv2D, BandConv3D, BandDepthwiseConv1D, BandDepthwiseConv2D)
}
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_ALL = (*_LIMITED, *_TRANSPOSED, *_SEPARABLE)


def band_limit(
    model: Any,
    band: Band,
    where: Where = None,
    *,
    strict: bool = False,
    grid: int | Sequence[int] | None = None,
    method: str = "auto",
    implementation: str | None = None,
    residual_dtype: jax.typing.DTypeLike | None = None,
    recompute_filter: bool = True,
) -> LimitReport:
    """Makes the convolutions of an existing Keras model band-limited, in place.

    Every ``Conv1D``, ``Conv2D``, ``Conv3D``, ``DepthwiseConv1D`` and ``DepthwiseConv2D`` in the
    model, and in models within it, becomes its band-limited equal; one that is band-limited
    already has its band and options replaced. The layers stay the same objects with the same
    weights, so that optimizers and checkpoints fit as before; what ``fit``, ``evaluate`` and
    ``predict`` have compiled is made anew. To keep the model, limit a ``keras.models.clone_model``.

    Args:
      model: a ``keras.Model``, or a layer.
      band: for all layers; None is every frequency.
      where: which layers, see :func:`bandjax.nnx.band_limit`; paths are the names of the layer and
        of the models that it is in, "encoder/conv2d_1".
      strict: raise, and change nothing, where a selected layer cannot be band-limited; by default
        warn. Such are transposed and separable convolutions, and subclasses of Keras's layers.
      grid, method, implementation, residual_dtype, recompute_filter: of all layers, see
        :func:`bandjax.band_conv`.

    Returns:
      A :class:`bandjax.LimitReport`.

    Raises:
      TypeError: an argument of the wrong type.
      ValueError: no layer is selected, or, with ``strict``, a selected one cannot be limited.

    Example:
      >>> import keras
      >>> model = keras.Sequential(
      ...     [keras.layers.Conv2D(8, 3, name="first"), keras.layers.Conv2D(8, 1, name="second")]
      ... )
      >>> print(band_limit(model, Compression(0.5), where=(3, 3)))
      convolutions: 1 band-limited, 1 not selected, 0 impossible
        first: Compression(rate=0.5)
        second: left alone, not selected
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"model must be a keras.Model or a layer, got {model!r}")
    spec = ConvSpec(band, grid, method, implementation, residual_dtype, recompute_filter)
    limit = Limit(spec)
    chosen = selector(where)
    layers = _convolutions(model, "")
    report = LimitReport()
    changes = []
    for layer in layers:
        reason = _refusal(layer.module)
        if not chosen(layer):
            report.excluded.append(layer.path)
        elif reason is not None:
            report.refused[layer.path] = reason
        else:
            changes.append((layer, ConvSpec(**limit.attributes(layer))))
    if not changes and not report.refused:
        found = ", ".join(shown(layer.path) for layer in layers) or "none"
        raise ValueError(f"no convolution layer is selected (those of the model: {found})")
    report.tell_refused(report.refused, strict, stacklevel=2)
    for layer, options in changes:
        kind = type(layer.module)
        object.__setattr__(layer.module, "__class__", _LIMITED.get(kind, kind))
        _set_options(layer.module, options)
        report.limited[layer.path] = options.band
    for part in (model, *model._flatten_layers(include_self=False)):
        if isinstance(part, keras.Model):  # What was compiled has the layers as they were.
            part.train_function = part.test_function = part.predict_function = None
    return report


def _convolutions(layer: Any, path: str) -> list[ConvLayer]:
    """Every convolution within a layer, once, by the names that lead there."""
    found: dict[int, ConvLayer] = {}

    def visit(layer: Any, path: str) -> None:
        if isinstance(layer, _ALL) and id(layer) not in found:
            found[id(layer)] = ConvLayer(path, tuple(layer.kernel_size), layer)
        for inner in layer._layers:
            visit(inner, f"{path}/{inner.name}" if path else inner.name)

    visit(layer, path)
    return list(found.values())


def _refusal(layer: Any) -> str | None:
    """Why a layer cannot be band-limited; None if it can."""
    if isinstance(layer, _TRANSPOSED):
        return TRANSPOSED
    if isinstance(layer, _SEPARABLE):
        return "a separable convolution: take a depthwise one and a Conv of one tap"
    if isinstance(layer, _BandLimited) or type(layer) in _LIMITED:
        return None
    return f"{type(layer).__name__} is a subclass of a layer of Keras, which may compute otherwise"
