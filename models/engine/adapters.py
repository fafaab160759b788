"""Several LoRA adapters over one base, in the same batch, loaded and unloaded while others are served.

All adapters lie side by side in one wide low-rank product: a row computes the columns of every adapter and keeps those
of its own (``select``). That is two dense matmuls whatever the batch holds, with no gather; made for a handful of
adapters. Room comes in powers of two, so that not every load compiles anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..config import DecoderConfig
from ..decoder import FUSED, MATMULS, param_shapes
from ..errors import RestillError

_RANK = 8
"""Ranks are rounded up to multiples of this."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """One adapter; no two loads are the same, so that no cache outlives an unloading."""

    place: int
    scale: float
    leaves: Mapping[str, np.ndarray] = field(repr=False)


class Adapters:
    """The adapters of one engine."""

    def __init__(self, config: DecoderConfig, dtype: Any) -> None:
        self._config, self._dtype = config, dtype
        self._loaded: dict[str, Loaded] = {}
        self._stacked: tuple[dict[str, Array], int] | None = None  # leaves and room: read at once by the worker

    @property
    def names(self) -> list[str]:
        """What is loaded."""
        return sorted(self._loaded)

    def load(self, name: str, leaves: Mapping[str, Any], alpha: float) -> None:
        """Make ``leaves`` (``"layers.i.q.a" [in, rank]``, ``".b" [rank, out]``) known as ``name``.

        Raises:
            RestillError: the name is taken, or a leaf does not fit the model.
        """
        if name in self._loaded:
            raise RestillError(f"an adapter {name!r} is loaded already; unload it first or choose another name")
        shapes = param_shapes(self._config)
        for key, leaf in leaves.items():
            kernel, _, side = key.rpartition(".")
            known = kernel.rpartition(".")[2] in MATMULS and side in ("a", "b")
            fits = known and shapes.get(kernel, (0, 0))["ab".index(side)]
            if not fits or leaf.shape["ab".index(side)] != fits:
                raise RestillError(f"adapter {name!r} does not fit this model: {key} is {tuple(leaf.shape)}")
            if not np.isfinite(leaf).all():
                raise RestillError(f"adapter {name!r} is damaged: {key} holds numbers that are not finite")
            if (twin := f"{kernel}.{'b' if side == 'a' else 'a'}") not in leaves:
                raise RestillError(f"adapter {name!r} is incomplete: it has {key} but no {twin}")
        ranks = {leaf.shape[1 if key.endswith(".a") else 0] for key, leaf in leaves.items()}
        if len(ranks) != 1:
            raise RestillError(f"adapter {name!r} has leaves of ranks {sorted(ranks)}; give one with a single rank")
        [rank] = ranks
        taken = {loaded.place for loaded in self._loaded.values()}
        place = next(i for i in range(len(taken) + 1) if i not in taken)
        host = {key: np.asarray(leaf, np.float32) for key, leaf in leaves.items()}
        self._loaded[name] = Loaded(place, alpha / rank, host)
        try:
            self._stack()
        except BaseException:  # such as memory that does not suffice: it is not loaded then
            del self._loaded[name]
            raise

    def unload(self, name: str) -> None:
        """Forget an adapter; nobody may use it any more.

        Raises:
            RestillError: there is none of that name.
        """
        self.get(name)
        del self._loaded[name]
        self._stack()

    def get(self, name: str | None) -> Loaded | None:
        """The adapter of that name; None is the base model.

        Raises:
            RestillError: there is none of that name.
        """
        if name is not None and name not in self._loaded:
            raise RestillError(f"unknown adapter {name!r}; loaded: {', '.join(self.names) or 'none'}")
        return self._loaded[name] if name is not None else None

    def of(self, rows: Sequence[Loaded | None]) -> tuple[dict[str, Array], np.ndarray] | None:
        """The stacked leaves and ``[B, room]``, each row's scale in its adapter's place; None while none is loaded."""
        if self._stacked is None:
            return None
        leaves, room = self._stacked
        select = np.zeros((len(rows), room), np.float32)
        for row, loaded in enumerate(rows):
            if loaded is not None:
                select[row, loaded.place] = loaded.scale
        return leaves, select

    def _stack(self) -> None:
        if not self._loaded:
            self._stacked = None
            return
        places = 1 + max(loaded.place for loaded in self._loaded.values())
        room = 1 << (places - 1).bit_length()
        widest = max(
            leaf.shape[1] for each in self._loaded.values() for k, leaf in each.leaves.items() if k.endswith(".a")
        )
        rank = -(-widest // _RANK) * _RANK
        shapes, stacked = param_shapes(self._config), {}
        kernels = [*FUSED.items(), ("o", ("o",)), ("down", ("down",))]
        for i, (fused, parts) in product(range(self._config.num_layers), kernels):
            names = [f"layers.{i}.{part}" for part in parts]
            starts = list(accumulate((shapes[name][1] for name in names), initial=0))
            a = np.zeros((shapes[names[0]][0], room, len(parts), rank), np.float32)
            b = np.zeros((room, len(parts), rank, starts[-1]), np.float32)
            for loaded, (n, name) in product(self._loaded.values(), enumerate(names)):
                left, right = (loaded.leaves.get(f"{name}.{side}") for side in "ab")
                if left is not None and right is not None:
                    a[:, loaded.place, n, : left.shape[1]] = left
                    b[loaded.place, n, : left.shape[1], starts[n] : starts[n + 1]] = right
            stacked[f"layers.{i}.{fused}.a"] = jnp.asarray(a.reshape(a.shape[0], -1), self._dtype)
            stacked[f"layers.{i}.{fused}.b"] = jnp.asarray(b.reshape(-1, b.shape[-1]), self._dtype)
        self._stacked = stacked, room
