"""What the convolutions of a Flax model keep and compute, layer by layer, against dense ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from bandjax._bands.band import Band, Energy
from bandjax._conv.choose import choose
from bandjax._conv.complex_numbers import is_complex, real_dtype, real_geometry
from bandjax._conv.counts import multiply_adds, residual_bytes
from bandjax._conv.geometry import ConvGeometry, conv_geometry
from bandjax._conv.lax import ConvGeneralDilated
from bandjax._conv.methods import FilterDomain
from bandjax._conv.options import ConvSpec
from bandjax._flax.layer import arguments_of, kind_of, padding_for_flax
from bandjax._flax.observe import Call, observe
from bandjax._optional import report_module

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One convolution layer on inputs of one shape.

    Attributes:
      path: of the layer in the model, "blocks.0.conv" (nnx) or "Block_0/Conv_1" (linen).
      kind: name of its class.
      calls: how often the model calls it with this shape. (Of a layer within ``scan``, ``vmap`` or
        a function under ``jit``: how often it was traced; the shapes are those within.)
      input_shape: ``(batch..., *spatial, in)``.
      kernel_shape: ``(*taps, in / groups, out)``.
      output_shape: ``(batch..., *spatial_out, out)``.
      dtype: in which the layer computes.
      band: what the layer is limited to; None for every frequency, and for dense layers.
      geometry: grid, box and sizes of a band-limited layer; None for a dense one. With an
        :class:`bandjax.Energy` band the box is the largest that it may keep.
      method: "dft", "fft", "direct" or "tiles", which "auto" may have chosen for training on this
        platform; "dense".
      native: whether native kernels compute it.
      kept_bytes: what one call keeps of its input for the backward pass, without recomputation
        (``jax.checkpoint``): the spectrum, the scales of an 8-bit one, the filter's spectrum with
        ``recompute_filter=False``, or the input. The kernel, a parameter, does not count.
      dense_bytes: the same of Flax's own layer: its input, as Flax pads it.
      transforms: real multiply-adds of the transforms in one forward call, see :func:`summary`.
      products: of the product over channels, or of the convolution of method "direct".
      dense_multiply_adds: of Flax's own layer.
    """

    path: str
    kind: str
    calls: int
    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: Any
    band: Band
    geometry: ConvGeometry | None
    method: str
    native: bool
    kept_bytes: int
    dense_bytes: int
    transforms: int
    products: int
    dense_multiply_adds: int

    @property
    def multiply_adds(self) -> int:
        """Real multiply-adds of one forward call."""
        return self.transforms + self.products

    @property
    def compression(self) -> float:
        """The true share of coefficients that is dropped, at least; 0 of a dense layer."""
        return 0.0 if self.geometry is None else self.geometry.compression

    @property
    def at_most(self) -> bool:
        """Whether the box is a bound, which every call may stay below."""
        return isinstance(self.band, Energy)

    def as_dict(self) -> dict[str, Any]:
        """The record, ready for JSON; grid, modes, kept and total are None of a dense layer."""
        geometry = self.geometry
        return {
            "path": self.path,
            "kind": self.kind,
            "calls": self.calls,
            "input_shape": list(self.input_shape),
            "kernel_shape": list(self.kernel_shape),
            "output_shape": list(self.output_shape),
            "dtype": str(self.dtype),
            "band": None if self.band is None else repr(self.band),
            "grid": None if geometry is None else list(geometry.grid),
            "modes": None if geometry is None else list(geometry.modes),
            "kept": None if geometry is None else geometry.kept,
            "total": None if geometry is None else geometry.total,
            "compression": self.compression,
            "at_most": self.at_most,
            "method": self.method,
            "native": self.native,
            "kept_bytes": self.kept_bytes,
            "dense_bytes": self.dense_bytes,
            "transforms": self.transforms,
            "products": self.products,
            "multiply_adds": self.multiply_adds,
            "dense_multiply_adds": self.dense_multiply_adds,
        }


@dataclasses.dataclass(frozen=True)
class Summary:
    """The convolutions of a model, see :func:`summary`.

    Attributes:
      layers: in the order of their first calls; a layer that is called with several shapes has a
        record for each.
      uncalled: paths of convolution layers of an nnx model that were not called.
    """

    layers: tuple[LayerSummary, ...]
    uncalled: tuple[str, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """What all calls keep for the backward pass, in bytes."""
        return sum(layer.calls * layer.kept_bytes for layer in self.layers)

    @property
    def dense_bytes(self) -> int:
        """What they would keep if every layer were dense."""
        return sum(layer.calls * layer.dense_bytes for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Real multiply-adds of all calls, forward."""
        return sum(layer.calls * layer.multiply_adds for layer in self.layers)

    @property
    def dense_multiply_adds(self) -> int:
        """The same if every layer were dense."""
        return sum(layer.calls * layer.dense_multiply_adds for layer in self.layers)

    @property
    def compression(self) -> float:
        """The share of all input coefficients that the band-limited layers drop, at least.

        ``1 - sum(kept * in) / sum(total * in)`` over these layers, ``in`` their input channels; 0
        without any.
        """
        limited = [
            (layer.geometry, layer.calls * layer.input_shape[-1])
            for layer in self.layers
            if layer.geometry is not None
        ]
        total = sum(weight * geometry.total for geometry, weight in limited)
        kept = sum(weight * geometry.kept for geometry, weight in limited)
        return 1 - kept / total if total else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Records and totals, ready for JSON."""
        return {
            "layers": [layer.as_dict() for layer in self.layers],
            "uncalled": list(self.uncalled),
            "compression": self.compression,
            "kept_bytes": self.kept_bytes,
            "dense_bytes": self.dense_bytes,
            "multiply_adds": self.multiply_adds,
            "dense_multiply_adds": self.dense_multiply_adds,
        }

    def table(self) -> Table:
        """A ``rich.table.Table`` with a row for each layer and one for their sum.

        Raises:
          ImportError: rich is not installed.
        """
        escape = report_module("rich.markup").escape
        size, size_unit = _unit(self.kept_bytes, self.dense_bytes, _SIZES)
        work, work_unit = _unit(self.multiply_adds, self.dense_multiply_adds, _COUNTS)
        made: Table = report_module("rich.table").Table(
            title="convolutions: box and cost of one forward pass", caption=self._caption() or None
        )
        made.add_column("layer", overflow="fold")
        for heading in (
            "grid",
            "box\n|u| ≤",
            "drops\n%",
            f"keeps\n{size_unit}",
            "% of\ndense",
            f"mult-\nadds {work_unit}".rstrip(),
            "% of\ndense",
        ):
            made.add_column(heading, justify="right", overflow="fold")
        for layer in self.layers:
            calls, geometry = layer.calls, layer.geometry
            bound = "≤" if layer.at_most else ""
            made.add_row(
                escape(_name(layer)),
                "" if geometry is None else _by(geometry.grid),
                "dense" if geometry is None else bound + _by(geometry.modes),
                "" if geometry is None else ("≥" if bound else "") + _percent(layer.compression),
                *_cells(calls * layer.kept_bytes, calls * layer.dense_bytes, size),
                *_cells(calls * layer.multiply_adds, calls * layer.dense_multiply_adds, work),
            )
        made.add_section()
        bound = "≥" if any(layer.at_most for layer in self.layers) else ""
        made.add_row(
            "all",
            "",
            "",
            bound + _percent(self.compression),
            *_cells(self.kept_bytes, self.dense_bytes, size),
            *_cells(self.multiply_adds, self.dense_multiply_adds, work),
        )
        return made

    def _caption(self) -> str:
        notes = []
        if any(layer.at_most for layer in self.layers):
            notes.append("≤: at most; an Energy band chooses its box in every call")
        if self.uncalled:
            notes.append(f"not called: {', '.join(self.uncalled)}")
        return "\n".join(notes)

    def __str__(self) -> str:
        """The table as plain text."""
        size, size_unit = _unit(self.kept_bytes, self.dense_bytes, _SIZES)
        work, work_unit = _unit(self.multiply_adds, self.dense_multiply_adds, _COUNTS)

        def told(kept: int, dense_kept: int, adds: int, dense_adds: int) -> str:
            return (
                f"keeps {kept / size:.4g} {size_unit} (dense {dense_kept / size:.4g}), "
                f"{adds / work:.4g} {work_unit} multiply-adds (dense {dense_adds / work:.4g})"
            )

        lines = [
            f"{len(self.layers)} convolutions drop {_percent(self.compression)} % of their "
            + "coefficients; forward "
            + told(self.kept_bytes, self.dense_bytes, self.multiply_adds, self.dense_multiply_adds)
        ]
        for layer in self.layers:
            box = "dense"
            if layer.geometry is not None:
                most = "at most " if layer.at_most else ""
                box = (
                    f"grid {_by(layer.geometry.grid)}, |u| <= {most}{_by(layer.geometry.modes)}, "
                    f"drops {'at least ' if most else ''}{_percent(layer.compression)} %"
                )
            figures = (
                layer.kept_bytes,
                layer.dense_bytes,
                layer.multiply_adds,
                layer.dense_multiply_adds,
            )
            lines.append(f"  {_name(layer)}: {box}, " + told(*(layer.calls * n for n in figures)))
        if self.uncalled:
            lines.append(f"  not called: {', '.join(self.uncalled)}")
        return "\n".join(lines)


_SIZES = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30))
_COUNTS = (("", 1), ("k", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12))


def _unit(one: int, other: int, units: Sequence[tuple[str, int]]) -> tuple[int, str]:
    """The largest unit of which there is at least one."""
    size = max(one, other, 1)
    name, factor = max((u for u in units if u[1] <= size), key=lambda u: u[1])
    return factor, name


def _cells(size: int, dense: int, unit: int) -> tuple[str, str]:
    return f"{size / unit:.4g}", _percent(size / dense) if dense else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def _name(layer: LayerSummary) -> str:
    return (layer.path or layer.kind) + (f" (×{layer.calls})" if layer.calls > 1 else "")


def summary(
    model: Any, *inputs: Any, variables: Any = None, rngs: Any = None, **keywords: Any
) -> Summary:
    """Tells what each convolution of a Flax model keeps and computes, against the dense layer.

    The layers are those of ``flax.nnx`` and ``flax.linen``: ``BandConv``, ``Conv`` with a
    :func:`bandjax.conv_general_dilated`, ``Conv`` (with a convolution of somebody else's, too) and
    ``ConvTranspose``, which are reported as dense. The model runs once, on shapes alone; it is not
    changed. An unbound call such as ``BandConv.__call__(layer, x)`` is not seen in nnx models, so
    call layers.

    The multiply-adds are those of one forward pass on this batch, in real numbers: a complex
    product counts four, a real times a complex number two, biases nothing. With ``N`` inputs of
    ``C`` channels, ``O`` output channels, groups ``G`` and ``K`` kept coefficients,

    * method "dft" has ``N C a(input) + C O / G a(taps) + N O a(output)`` for its transforms,
      ``a(n)`` being one channel's transform of ``n`` samples, an axis after another, and
      ``4 K N O C / G`` for the product over channels;
    * "fft" the same product, and ``5/4 g log2(g)`` for each fast transform of ``g`` points
      (half the usual estimate of operations, a real signal's);
    * "direct" the projection on the band, an analysis and a synthesis for each input, and the dense
      convolution. With every frequency kept it is the dense convolution.

    The dense layer has ``N O C / G`` times taps times outputs. Which kernels compute it, and what
    they save by symmetry or by three products in place of four, does not count.

    Args:
      model: a ``flax.nnx.Module`` or a ``flax.linen.Module``.
      inputs: its arguments: arrays, ``jax.ShapeDtypeStruct``, pytrees of them; a tuple of integers
        stands for a float32 array of that shape.
      variables: of a linen model, arrays or shapes; None for those that its ``init`` makes.
      rngs: of a linen model, a key or keys by name; only their shapes are read.
      keywords: further arguments of the model. Arrays count by their shape, all else is passed as
        it is: ``train=False``.

    Returns:
      A record of each layer, sums, ``table()`` to print with rich and ``as_dict()`` for JSON.

    Raises:
      TypeError: ``model`` is no Flax module, or ``variables`` or ``rngs`` are given for one of nnx;
        there are no inputs, or other than arrays.
      ValueError: what the layers raise of inputs that do not fit.

    Example:
      >>> from bandjax.nnx import BandConv
      >>> layer = BandConv(16, 8, (3, 3), band=Modes(3, 2), rngs=nnx.Rngs(0))
      >>> (record,) = summary(layer, (8, 32, 32, 16)).layers
      >>> record.geometry.grid, record.geometry.box, record.kept_bytes, record.dense_bytes
      ((33, 33), (7, 3), 21504, 524288)
    """
    calls, uncalled = observe(model, inputs, keywords, variables, rngs)
    counts: dict[LayerSummary, int] = {}
    for call in calls:
        layer = _of_call(call)
        counts[layer] = counts.get(layer, 0) + 1
    layers = tuple(dataclasses.replace(layer, calls=n) for layer, n in counts.items())
    return Summary(layers, tuple(uncalled))


def _of_call(call: Call) -> LayerSummary:
    """The record of one call of a layer."""
    layer, shape = call.layer, call.input.shape
    dtype = jnp.dtype(layer.dtype or jnp.promote_types(call.input.dtype, layer.param_dtype))
    kernel_shape = _kernel_shape(layer, shape[-1])
    taps, out_features = kernel_shape[:-2], call.output.shape[-1]
    record = LayerSummary(
        path=call.path,
        kind=kind_of(layer),
        calls=1,
        input_shape=shape,
        kernel_shape=kernel_shape,
        output_shape=call.output.shape,
        dtype=dtype,
        band=None,
        geometry=None,
        method="dense",
        native=False,
        kept_bytes=0,
        dense_bytes=math.prod(_as_flax_pads(layer, shape)) * dtype.itemsize,
        transforms=0,
        products=0,
        dense_multiply_adds=math.prod(call.output.shape) * math.prod(kernel_shape[:-1]),
    )
    options = _options(layer)
    if not hasattr(layer, "feature_group_count"):  # ConvTranspose: each input meets each tap.
        every = math.prod(shape) * math.prod(taps) * out_features
        record = dataclasses.replace(record, dense_multiply_adds=every)
    if is_complex(dtype):
        record = dataclasses.replace(record, dense_multiply_adds=4 * record.dense_multiply_adds)
    if options is None:
        return dataclasses.replace(
            record, kept_bytes=record.dense_bytes, products=record.dense_multiply_adds
        )
    geometry = _geometry(layer, options, shape, kernel_shape)
    real, real_type = real_geometry(geometry, dtype), real_dtype(dtype)
    spec = ConvSpec.of(options)
    domain: FilterDomain = getattr(layer, "param_domain", "spatial")
    precision = getattr(layer, "precision", None)
    method = choose(real, spec, real_type, domain, precision=precision)
    transforms, products = multiply_adds(method, real, domain)
    return dataclasses.replace(
        record,
        band=spec.band,
        geometry=geometry,
        method=method.name,
        native=method.native,
        kept_bytes=residual_bytes(method, real, spec, real_type, domain),
        transforms=transforms,
        products=products,
    )


def _options(layer: Any) -> Any:
    """What holds the band and the other options of a band-limited layer; None for a dense one."""
    if hasattr(layer, "band"):
        return layer
    hook = getattr(layer, "conv_general_dilated", None)
    if hook is None and getattr(layer, "conv_general_dilated_cls", None) is not None:
        hook = layer.conv_general_dilated_cls()
    return hook if isinstance(hook, ConvGeneralDilated) else None


def _geometry(
    layer: Any, options: Any, shape: tuple[int, ...], kernel_shape: tuple[int, ...]
) -> ConvGeometry:
    if options is layer:
        geometry: ConvGeometry = layer.geometry(shape)
        return geometry
    padded = _as_flax_pads(layer, shape)
    arguments = arguments_of(layer)
    if padded != shape:
        arguments["padding"] = "VALID"
    return conv_geometry(padded, kernel_shape, options.band, grid=options.grid, **arguments)


def _kernel_shape(layer: Any, channels: int) -> tuple[int, ...]:
    size = layer.kernel_size
    taps = (size,) if isinstance(size, int) else tuple(size)
    out = layer.out_features if hasattr(layer, "out_features") else layer.features
    return (*taps, channels // getattr(layer, "feature_group_count", 1), out)


def _as_flax_pads(layer: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the input of the convolution that Flax's own ``Conv`` calls."""
    if not hasattr(layer, "feature_group_count"):
        return shape
    taps = _kernel_shape(layer, shape[-1])[:-2]
    dilation = layer.kernel_dilation or 1
    dilations = (dilation,) * len(taps) if isinstance(dilation, int) else tuple(dilation)
    if padding_for_flax(layer.padding) is layer.padding:
        return shape
    first = len(shape) - 1 - len(taps)
    spatial = (n + (k - 1) * d for n, k, d in zip(shape[first:-1], taps, dilations, strict=True))
    return (*shape[:first], *spatial, shape[-1])
