"""A decoder with its cache: what the engine computes, without regard to whom it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from jax import Array

from ..config import DecoderConfig
from . import runner
from .cache import KVCache
from .runner import Lora
from .sampling import Drawn
from .shapes import LIGHT, Shapes, pad_to
from .slots import Fork


class CachedModel:
    """Parameters and KV cache.

    Args:
        params: as ``precision.serving_params`` gives them. dtype: of the cache.

    Attributes:
        light: it computes several steps in one dispatch, where the host allows.
    """

    def __init__(self, config: DecoderConfig, params: Mapping[str, Array], shapes: Shapes, dtype: Any) -> None:
        self.config, self._shapes, self._dtype = config, shapes, dtype
        self.light = sum(leaf.size for leaf in params.values()) <= LIGHT and not shapes.deterministic
        self.replace(params)
        self.forget()

    def replace(self, params: Mapping[str, Array]) -> None:
        """Compute with other parameters; what the cache holds is the old ones'."""
        self._params, self._layers = params, _by_layer(params, self.config.num_layers)
        self._outer = {name: leaf for name, leaf in params.items() if not name.startswith("layers.")}

    def forget(self) -> None:
        """Start over with an empty cache."""
        self.cache = KVCache(self.config, self._shapes, self._dtype)

    def chunk(
        self,
        slot: int,
        start: int,
        tokens: Sequence[int],
        width: int,
        targets: Sequence[int] = (),
        lora: Lora | None = None,
    ) -> Array | None:
        """Put ``tokens`` into the cache; log-probabilities f32 ``[width]`` of ``targets``, if there are any."""
        fresh, logprobs = self._compute(slot, start, tokens, width, targets, lora)
        self.cache.put_chunk(slot, start, fresh)
        return logprobs

    def _compute(
        self, slot: int, start: int, tokens: Sequence[int], width: int, targets: Sequence[int], lora: Lora | None
    ) -> tuple[list[tuple[Array, Array]], Array | None]:
        prefix, at, layers = self.cache.prefix(slot, start), np.int32(start), self.config.num_layers
        adapters = _by_layer(lora[0], layers) if lora else []
        ends = self._shapes.ends[: self._shapes.reach(start)]
        x, fresh = runner.embed(self._outer, pad_to(tokens, width)), list[tuple[Array, Array]]()
        for i, (params, segments) in enumerate(zip(self._layers, prefix, strict=True)):
            last = i == layers - 1 and not targets
            own = (adapters[i], lora[1]) if lora else None
            x, k, v = runner.prefill_layer(self.config, params, x, segments, at, own, ends=ends, last=last)
            fresh.append((k, v))
        if not targets:
            return fresh, None
        return fresh, runner.score(self.config, self._outer, x, pad_to(targets, width))

    def step(
        self,
        newest: Array,
        fed: np.ndarray,
        starts: np.ndarray,
        drafts: np.ndarray | None = None,
        lora: Lora | None = None,
    ) -> Array:
        """Logits f32 ``[B, T, V]`` of one decode step (``runner.decode``); its keys and values are in the cache.

        Args:
            starts: ``[B]`` tokens in the cache; -1 for an idle row, which writes nothing.
        """
        groups = self.cache.groups(len(fed), int(starts.max()))
        ends = self._shapes.ends[: len(groups[0])]
        fresh, logits = runner.decode(
            self.config, self._params, groups, newest, fed, np.maximum(starts, 0), drafts, lora, ends=ends
        )
        del groups  # put writes in place only what nobody else holds
        self.cache.put_step(fresh, starts)
        return logits

    def steps(
        self,
        newest: Array,
        fed: np.ndarray,
        starts: np.ndarray,
        rules: Mapping[str, Any],
        count: int,
        lora: Lora | None = None,
    ) -> tuple[Array, Drawn]:
        """``count`` decode steps and their draws (``runner.decode_steps``); keys and values are in the cache.

        Args:
            starts: ``[B]`` tokens in the cache; -1 for an idle row, which writes nothing.
        """
        groups = self.cache.groups(len(fed), int(starts.max()))
        ends, there = self._shapes.ends[: len(groups[0])], np.maximum(starts, 0)
        fresh, newest, drawn = runner.decode_steps(
            self.config, self._params, groups, newest, fed, there, rules, lora, ends=ends, steps=count
        )
        del groups
        self.cache.put_step(fresh, starts, crossing=True)
        return newest, drawn

    def warm(self, lora: Lora | None = None) -> None:
        """Compile what prompts need."""
        slots = [group.start for group in self._shapes.groups]
        for width in self._shapes.chunks:
            for start, targets in product([0, *self._shapes.reaches], ((), (0,))):
                fresh, _ = self._compute(0, start, (), width, targets, lora)
            fitting = [part for part in self._shapes.segments if width <= len(part) + self._shapes.margin]
            for slot, segment in product(slots, fitting):
                self.cache.put_chunk(slot, segment.start, fresh)
        for slot in slots:
            self.cache.move(Fork(slot, slot, self._shapes.max_context))
            self.cache.clear(slot)


def _by_layer(leaves: Mapping[str, Array], count: int) -> list[dict[str, Array]]:
    """The leaves of each layer, named as if it were the first: what differs in name alone is compiled once."""
    layers: list[dict[str, Array]] = [{} for _ in range(count)]
    for name, leaf in leaves.items():
        kind, _, rest = name.partition(".")
        if kind == "layers":
            index, _, own = rest.partition(".")
            layers[int(index)][f"layers.0.{own}"] = leaf
    return layers
