"""The devices that a run is spread over, as a mesh.

The axis ``data`` shares out the examples of each batch, ``model`` the channels: an array of the
state is split along its last axis (the output channels of a kernel, the features of a bias, of
batch norm and of what the optimizer keeps for them) where the axis ``model`` divides it, and is
whole on every device where it does not. XLA adds the communication: what is computed is the batch's
loss, with the batch's statistics, as on one device.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.settings.errors import UserError
from experiments.settings.records import Record

T = TypeVar("T")
AXES = ("data", "model")


@dataclass(frozen=True)
class Devices:
    """Where a run's arrays lie.

    Attributes:
        mesh: with the axes ``data`` and ``model``; None for JAX's default device.
    """

    mesh: Mesh | None = None

    @property
    def data(self) -> int:
        """How many parts a batch has."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    @property
    def model(self) -> int:
        """How many parts the channels have."""
        return 1 if self.mesh is None else self.mesh.shape["model"]

    def describe(self) -> Record:
        """For a record: the mesh, the processes and the kind of device."""
        device = jax.devices()[0]
        kind = device.device_kind if device.platform != "cpu" else "cpu"
        mesh = None if self.mesh is None else dict(self.mesh.shape)
        return {"mesh": mesh, "processes": jax.process_count(), "kind": kind}

    def replicate(self, tree: T) -> T:
        """The arrays, whole on every device."""
        return self._put(tree, lambda _: PartitionSpec())

    def spread_batch(self, tree: T) -> T:
        """The arrays, their first axis along ``data``, which must divide it."""
        return self._put(tree, lambda _: PartitionSpec("data"))

    def place_state(self, tree: T) -> T:
        """The arrays, their last axis along ``model`` where that divides it."""
        return self._put(tree, self._state_spec)

    def constrain_batch(self, tree: T) -> T:
        """Within a compiled function: like :meth:`spread_batch`."""
        return self._constrain(tree, lambda _: PartitionSpec("data"))

    def constrain_state(self, tree: T) -> T:
        """Within a compiled function: like :meth:`place_state`."""
        return self._constrain(tree, self._state_spec)

    def constrain_whole(self, tree: T) -> T:
        """Within a compiled function: like :meth:`replicate`."""
        return self._constrain(tree, lambda _: PartitionSpec())

    def jit(self, function: Any) -> Any:
        """``jax.jit`` with results that are whole on every device."""
        if self.mesh is None:
            return jax.jit(function)
        return jax.jit(function, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def gather(self, tree: T) -> T:
        """The arrays on the default device of each process, wherever they lay."""
        if self.mesh is None:
            return tree
        whole = self.jit(lambda tree: tree)
        return jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), whole(tree))

    def _state_spec(self, leaf: Any) -> PartitionSpec:
        if self.model > 1 and leaf.ndim > 0 and leaf.shape[-1] % self.model == 0:
            return PartitionSpec(*[None] * (leaf.ndim - 1), "model")
        return PartitionSpec()

    def _put(self, tree: T, spec: Any) -> T:
        if self.mesh is None:
            return jax.device_put(tree)
        mesh = self.mesh

        def put(leaf: Any) -> jax.Array:
            array = np.asarray(leaf)
            sharding = NamedSharding(mesh, spec(array))
            # Each process has the whole array, and gives its devices their parts.
            return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

        return jax.tree.map(put, tree)

    def _constrain(self, tree: T, spec: Any) -> T:
        if self.mesh is None:
            return tree
        mesh = self.mesh
        return jax.tree.map(
            lambda leaf: jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec(leaf))),
            tree,
        )


ONE = Devices()


def split_cpu(count: int) -> None:
    """Let JAX see the CPU as so many devices.

    Raises:
        UserError: the number is not positive, or it comes too late.
    """
    if count < 1:
        raise UserError(f"cpu-devices must be at least 1, got {count}")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise UserError(f"cpu-devices cannot be chosen: {' '.join(str(error).split())}") from error


def parse_mesh(text: str | None) -> Devices:
    """The mesh of ``data=4,model=2``; with one process None is no mesh, with several all devices.

    Raises:
        UserError: the text is not of that kind, or there are not so many devices. One process may
            leave some of its devices out, several may not.
    """
    count = jax.device_count()
    several = jax.process_count() > 1
    if text is None:
        if not several:
            return ONE
        text = f"data={count}"
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
        if match is None or match[1] not in AXES or match[1] in sizes or int(match[2]) < 1:
            raise UserError(
                f"mesh must name data=N, model=N or both, each a positive number, got {text!r}"
            )
        sizes[match[1]] = int(match[2])
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    needed = math.prod(shape)
    if several and needed != count:
        raise UserError(
            f"mesh {text!r} has {needed} devices; it must have all {count} of the processes"
        )
    if needed > count:
        raise UserError(
            f"mesh {text!r} needs {needed} devices, there are {count} (--cpu-devices splits the "
            "CPU into several)"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return Devices(jax.make_mesh(shape, AXES, axis_types=kinds, devices=jax.devices()[:needed]))
