"""What reverse-mode differentiation keeps of a function, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bandjax._conv.residuals import FILTER_NAME, SPECTRUM_NAME
from bandjax._optional import report_module
from bandjax._saved.keep import PREFIX
from bandjax.memory._residuals import Residual, residuals

if TYPE_CHECKING:
    from rich.table import Table


Key = TypeVar("Key", bound=Hashable)


MIB = 2**20


SPECTRUM, SCALE, FILTER = "spectrum", "scale", "filter spectrum"


PACKED, CONV_INPUT, OTHER = "packed", "convolution input", "other"


KINDS = (SPECTRUM, SCALE, FILTER, PACKED, CONV_INPUT, OTHER)


@dataclasses.dataclass(frozen=True)
class SavedTensor:
    """One array that the forward pass makes and the backward pass reads.

    Attributes:
      name: given to it by ``jax.ad_checkpoint.checkpoint_name``, "bandjax_spectrum" for what
        :func:`bandjax.band_conv` keeps; None without a name.
      operation: primitive that made it, such as "mul" or "conv_general_dilated".
      layer: where in the model. The path of names that ``flax.linen`` (or ``jax.named_scope``)
        gives, "ResNet/Block_0/Conv_1"; without one, as with ``flax.nnx``, the classes whose
        ``__call__`` were entered, with the lines of the user's, "ResNet:79/Block:114/Conv"; or else
        the user's function. Layers that a loop calls on the same line thus share one.
      source: the user's line, "resnet.py:114 (Block.__call__)"; empty where unknown.
      shape: of the array; all steps of a ``jax.lax.scan`` are one array.
      dtype: of the array.
      nbytes: bytes of the array.
      kind: "spectrum"; "scale", of 8-bit spectra; "filter spectrum"; "packed", by
        :func:`bandjax.compress_saved`; "convolution input", read by ``conv_general_dilated``; or
        "other".
    """

    name: str | None
    operation: str
    layer: str
    source: str
    shape: tuple[int, ...]
    dtype: Any
    nbytes: int
    kind: str = OTHER


@dataclasses.dataclass(frozen=True)
class SavedBytes:
    """What a function keeps between forward and backward, see :func:`saved_bytes`.

    Attributes:
      tensors: the arrays that the forward pass makes and keeps, in the order made.
      arguments: bytes of the function's arguments that are kept (parameters, batch). They live on
        whatever is differentiated, so that they are no part of :attr:`total`.
      constants: bytes of what is kept and depends on no argument: arrays that the function closes
        over, and arrays such as the zeros in the derivative of ``jax.nn.relu``, which the compiler
        need not store. No part of :attr:`total`.
    """

    tensors: tuple[SavedTensor, ...]
    arguments: int
    constants: int

    @property
    def total(self) -> int:
        """Bytes of all tensors: what is alive at the end of the forward pass, the maximum."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def average(self) -> float:
        """Mean over a step of the bytes alive.

        Time is counted in tensors. The forward pass makes the n tensors of ``b[1], ..., b[n]``
        bytes one after another, and the backward pass lets them go in reverse. Once the i-th is
        made, and again just before it is let go, ``s[i] = b[1] + ... + b[i]`` bytes are alive; the
        mean over these 2 n moments is ``(s[1] + ... + s[n]) / n``. Without tensors it is 0.
        """
        sums = np.cumsum([tensor.nbytes for tensor in self.tensors], dtype=np.float64)
        return float(sums.mean()) if len(sums) else 0.0

    def by_name(self) -> dict[str | None, int]:
        """Bytes under each name of ``checkpoint_name``; under None those without a name."""
        return _sums((tensor.name, tensor.nbytes) for tensor in self.tensors)

    def by_codec(self) -> dict[str, int]:
        """Bytes that :func:`bandjax.compress_saved` packed, by codec: ``{"Dct(bits=4)": ...}``."""
        packed = (tensor for tensor in self.tensors if tensor.kind == PACKED)
        return _sums(((t.name or "").removeprefix(PREFIX), t.nbytes) for t in packed)

    def by_layer(self) -> dict[str, int]:
        """Bytes kept in each layer, in the order of the forward pass."""
        return _sums((tensor.layer, tensor.nbytes) for tensor in self.tensors)

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind of tensor that there is, see :class:`SavedTensor`."""
        sums = _sums((tensor.kind, tensor.nbytes) for tensor in self.tensors)
        return {kind: sums[kind] for kind in KINDS if kind in sums}

    def table(self) -> Table:
        """A ``rich.table.Table`` of the tensors, those that differ in nothing in one row.

        Raises:
          ImportError: rich is not installed.
        """
        rich_table = report_module("rich.table")
        made: Table = rich_table.Table(title=str(self).partition("\n")[0])
        for heading in ("layer", "kept", "type"):
            made.add_column(heading, overflow="fold")
        for heading in ("arrays", "MiB"):
            made.add_column(heading, justify="right")
        rows: dict[tuple[str, str, str], list[int]] = {}
        for tensor in self.tensors:
            kept = tensor.name or f"{tensor.operation} ({tensor.kind})"
            shape = ", ".join(map(str, tensor.shape))
            rows.setdefault((tensor.layer, kept, f"{tensor.dtype} ({shape})"), []).append(
                tensor.nbytes
            )
        escape = report_module("rich.markup").escape
        for cells, sizes in rows.items():
            made.add_row(*map(escape, cells), str(len(sizes)), f"{sum(sizes) / MIB:.3f}")
        return made

    def __str__(self) -> str:
        lines = [
            f"{_mib(self.total)} kept in {len(self.tensors)} tensors, "
            f"{_mib(self.average)} on average; {_mib(self.arguments)} of arguments"
        ]
        for kind, size in self.by_kind().items():
            lines.append(f"  {_mib(size):>14}  {kind}")
        return "\n".join(lines)


def saved_bytes(
    fun: Callable[..., Any],
    *args: Any,
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
) -> SavedBytes:
    """Counts what reverse-mode differentiation of ``fun`` keeps between forward and backward.

    The sizes are those of the arrays that ``jax.vjp`` hands from one pass to the other, before any
    compiler has seen them; a ``jax.checkpoint`` in ``fun`` is obeyed. XLA may recompute, merge or
    fuse more: :func:`compiled_bytes` tells what it allocates. Nothing is computed.

    An array counts once, however often it is kept. One that was only reshaped, named, or passed to
    a function under ``jax.jit`` is the same array. An array may be kept by ``jax.lax.scan`` for
    every step; the steps are one array.

    Args:
      fun: function of pytrees of arrays, returns a pytree of arrays.
      args: its arguments, arrays or ``jax.ShapeDtypeStruct``; integers and keys are allowed, and so
        are ``flax.nnx`` modules. What ``fun`` closes over counts as constant.
      argnums: which arguments are differentiated, as in ``jax.grad``; None for all.
      has_aux: whether ``fun`` returns a pair, of which the second is not differentiated.

    Returns:
      The tensors kept, and bytes in all, in the mean and by name, layer and kind.

    Raises:
      TypeError: ``fun`` is no function, or an argument no array; what JAX raises of a function that
        has no reverse-mode derivative.
      ValueError: ``argnums`` out of range, or none.

    Example:
      Of the sine's derivative the cosine is kept, 4 bytes for each number:

      >>> saved = saved_bytes(lambda x: jnp.sin(jnp.sin(x)), jnp.ones(1000))
      >>> saved.total, [tensor.operation for tensor in saved.tensors]
      (8000, ['cos', 'cos'])

      A band-limited convolution keeps its input's spectrum, here 7 x 3 complex numbers of 8 bytes
      for each of 8 images and 16 channels; and the kernel, which is an argument:

      >>> x = jax.ShapeDtypeStruct((8, 32, 32, 16), "float32")
      >>> kernel = jax.ShapeDtypeStruct((3, 3, 16, 4), "float32")
      >>> saved = saved_bytes(lambda x, k: band_conv(x, k, Modes(3, 2)), x, kernel)
      >>> saved.by_name(), saved.arguments
      ({'bandjax_spectrum': 21504}, 2304)

    Source: Dziedzic et al., "Band-limited Training and Inference for Convolutional Neural
    Networks", ICML 2019, who count the sizes of the tensors kept, their maximum and average over a
    step.
    """
    if not callable(fun):
        raise TypeError(f"fun must be a function, got {type(fun).__name__}")
    chosen = _chosen(argnums, len(args))

    def pull_back(*args: Any) -> Any:
        def of_chosen(*differentiated: Any) -> Any:
            # Copies, so that mutable modules belong to the trace in which they are called.
            call = jax.tree.map(lambda leaf: leaf, list(args))
            for i, argument in zip(chosen, differentiated, strict=True):
                call[i] = argument
            return fun(*call)

        vjp: Any = jax.vjp  # typed for a literal has_aux alone
        return vjp(of_chosen, *(args[i] for i in chosen), has_aux=has_aux)[1]

    return _count(residuals(jax.make_jaxpr(pull_back)(*args).jaxpr))


def _chosen(argnums: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if argnums is None:
        chosen = tuple(range(count))
    else:
        chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not chosen or not all(-count <= i < count for i in chosen):
        raise ValueError(f"argnums must choose among {count} arguments, got {argnums}")
    return tuple(i % count for i in chosen)


def _count(kept: Sequence[Residual]) -> SavedBytes:
    """Sums up residuals: tensors that were made, arguments and constants."""
    # The scales of 8-bit spectra bear the same name as these.
    eight_bits = any(r.name == SPECTRUM_NAME and r.dtype == np.int8 for r in kept)
    tensors = [
        SavedTensor(
            name=r.name,
            operation=r.operation,
            layer=r.layer,
            source=r.source,
            shape=r.shape,
            dtype=r.dtype,
            nbytes=r.nbytes,
            kind=_kind(r, eight_bits),
        )
        for r in kept
        if r.fate == "made"
    ]
    return SavedBytes(
        tensors=tuple(tensors),
        arguments=sum(r.nbytes for r in kept if r.fate == "argument"),
        constants=sum(r.nbytes for r in kept if r.fate == "constant"),
    )


def _kind(residual: Residual, eight_bits: bool) -> str:
    if residual.name == SPECTRUM_NAME:
        if residual.dtype == np.uint8:
            return SCALE
        if not (eight_bits and jnp.issubdtype(residual.dtype, jnp.floating)):
            return SPECTRUM
        return SCALE if residual.shape[-1:] == (1,) else SPECTRUM
    if residual.name == FILTER_NAME:
        return FILTER
    if residual.name is not None and residual.name.startswith(PREFIX):
        return PACKED
    return CONV_INPUT if residual.convolved else OTHER


def _mib(size: float) -> str:
    return f"{size / MIB:.4g} MiB"


def _sums(pairs: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    sums: dict[Key, int] = {}
    for key, size in pairs:
        sums[key] = sums.get(key, 0) + size
    return sums
