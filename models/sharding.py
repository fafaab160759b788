"""Where each parameter lives on a mesh: one rules table over logical axes.

The layout is 1-D weight-stationary tensor parallelism (Pope et al. 2211.05102, section 3.2.1): the first matmul of a
pair is split over its outputs, the second over its inputs, so that each pair costs one all-reduce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .errors import RestillError

RULES: Mapping[str, str | None] = {
    "vocab": "tensor",
    "embed": None,
    "heads": "tensor",
    "mlp": "tensor",
    "batch": "data",
}
"""Logical axis to mesh axis."""

LOGICAL_AXES: Mapping[str, tuple[str, ...]] = {
    "embed": ("vocab", "embed"),
    "lm_head": ("embed", "vocab"),
    "norm": ("embed",),
    "attn_norm": ("embed",),
    "mlp_norm": ("embed",),
    "q": ("embed", "heads"),
    "k": ("embed", "heads"),
    "v": ("embed", "heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
"""Logical axes of each kind of leaf, by the last part of its name."""


def make_mesh(data: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A ``data x tensor`` mesh.

    Raises:
        RestillError: fewer devices than the mesh needs.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) < data * tensor:
        raise RestillError(f"a {data}x{tensor} mesh needs {data * tensor} devices, there are {len(devices)}")
    return Mesh(np.array(devices[: data * tensor]).reshape(data, tensor), ("data", "tensor"))


def leaf_spec(name: str) -> P:
    """The partition of a canonical parameter, e.g. ``layers.3.q`` to ``P(None, 'tensor')``."""
    return P(*(RULES[axis] for axis in LOGICAL_AXES[name.rsplit(".", 1)[-1]]))


def shard_params(params: Mapping[str, Any], mesh: Mesh) -> dict[str, Array]:
    """Parameters placed on the mesh by the rules table."""
    return {name: jax.device_put(leaf, NamedSharding(mesh, leaf_spec(name))) for name, leaf in params.items()}


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Arrays ``[B, ...]`` split over the data axis."""
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P(RULES["batch"]))), batch)
