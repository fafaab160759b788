"""The compiled parts of training: frozen lower layers, gradient accumulation, the optimiser's update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..models.config import DecoderConfig
from ..models.decoder import MATMULS
from ..models.mixed import NARROW
from .loss import Head, cross_entropy, final_norm, head_of, run_layers

if TYPE_CHECKING:
    from .trainer import TrainConfig

Leaves = Mapping[str, Any]


class Sums(NamedTuple):
    """What micro batches add up to.

    Attributes:
        gradient: of the weighted sum of ``-log p``, as many leaves as are trained.
        loss: that sum.
        denominator: what ``update`` divides both by: the sum of the weights' sizes, unless it is replaced. With 1, the
            weights mean what they say (TRICE's, whose sum may be 0).
    """

    gradient: Any
    loss: Any
    denominator: Any


class TrainSteps:
    """Three programs, compiled once per (model, rows, row length): ``lower``, ``accumulate``, ``update``.

    Gradients and the denominator are sums over micro batches and are divided once, so that the result does
    not depend on how a step was cut into micro batches.
    """

    def __init__(
        self, config: DecoderConfig, train: TrainConfig, params: Leaves, frozen: Leaves, *, total: int
    ) -> None:
        self.config, self.train = config, train
        scale = train.alpha / train.rank
        low, high = range(train.frozen_layers), range(train.frozen_layers, config.num_layers)
        self._params = {name: self._kernel(name, jnp.asarray(leaf)) for name, leaf in params.items()}
        self._frozen = {name: jnp.asarray(leaf) for name, leaf in frozen.items()}
        self._sums: Any = None
        warm = round(train.warmup * total)
        self._rate = optax.warmup_cosine_decay_schedule(
            train.lr / (warm + 1), train.lr, warm, max(total, warm + 1), train.lr / 10
        )
        optimiser = optax.chain(
            optax.clip_by_global_norm(train.clip),
            optax.scale_by_adam(),
            optax.add_decayed_weights(train.weight_decay),
        )
        self._optimiser = optimiser

        def lower(params: Leaves, lora: Leaves, tokens: Array, positions: Array, segments: Array) -> Array:
            x = params["embed"][tokens.reshape(-1)]
            return run_layers(config, params, lora, scale, x, positions, segments, low)

        def loss(trained: Leaves, params: Leaves, lora: Leaves, x: Array, batch: Leaves) -> Array:
            if train.method == "full":
                params = {**params, **{name: self._kernel(name, leaf) for name, leaf in trained.items()}}
            else:
                lora = {**lora, **trained}
            if train.embeddings:
                x = params["embed"][batch["tokens"].reshape(-1)]
            x = run_layers(config, params, lora, scale, x, batch["positions"], batch["segments"], high)
            hidden, kernel = final_norm(config, params, x[batch["at"]]), self._narrow(head_of(config, params))
            head = Head(config.tie_embeddings, train.embeddings)
            target = (batch["ids"], batch["shares"], batch["weights"], batch["count"])
            return cross_entropy(head, hidden, kernel, *target)

        def accumulate(sums: Any, trained: Leaves, params: Leaves, lora: Leaves, x: Array, batch: Leaves) -> Any:
            grads, total, denominator = sums
            value, new = jax.value_and_grad(loss)(trained, params, lora, x, batch)
            return (
                jax.tree.map(jnp.add, grads, new),
                total + value,
                denominator + jnp.abs(batch["weights"]).sum(),
            )

        # The rate is an argument, so that one program serves mixtures of any size.
        def update(trained: Leaves, state: Any, sums: Any, rate: Array) -> Any:
            grads, total, denominator = sums
            grads = jax.tree.map(lambda g: g / denominator, grads)
            changes, state = optimiser.update(grads, state, trained)
            trained = jax.tree.map(lambda leaf, change: leaf - rate * change, trained, changes)
            return trained, state, total / denominator, optax.tree.norm(grads)

        self._lower = jax.jit(lower)
        self._accumulate = jax.jit(accumulate, donate_argnums=0)
        self._update = jax.jit(update, donate_argnums=(0, 1))

    def _kernel(self, name: str, leaf: Array) -> Array:
        return self._narrow(leaf) if name.rpartition(".")[2] in MATMULS else leaf

    def _narrow(self, leaf: Array) -> Array:
        """A kernel as products take it; the gradient of a trained one is rounded on its way back, and summed in f32."""
        return leaf if self.train.precision == "f32" else leaf.astype(NARROW)

    def init(self, trained: Leaves) -> Any:
        """Fresh optimiser state."""
        return self._optimiser.init({name: jnp.asarray(leaf) for name, leaf in trained.items()})

    @staticmethod
    def place(tree: Any) -> Any:
        """Copies on the device, which the steps may donate."""
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)

    def lower(self, batch: Leaves) -> Any:
        """Hidden states ``[B*L, D]`` that enter the first trained layer; where that is the embedding, nothing."""
        if self.train.embeddings:
            return np.zeros(0, np.float32)
        return self._lower(self._params, self._frozen, batch["tokens"], batch["positions"], batch["segments"])

    def accumulate(self, trained: Leaves, x: Any, batch: Leaves) -> None:
        """Add gradient, loss sum and denominator of one micro batch."""
        if self._sums is None:
            self._sums = self._nothing(trained)
        unused = None if self.train.embeddings else "tokens"
        batch = {name: leaf for name, leaf in batch.items() if name != unused}
        self._sums = self._accumulate(self._sums, trained, self._params, self._frozen, x, batch)

    def take(self, trained: Leaves) -> Sums:
        """What was accumulated since the last ``take`` or ``update``; zeros if nothing was."""
        sums, self._sums = self._sums, None
        return Sums(*(sums or self._nothing(trained)))

    def update(
        self, trained: Leaves, state: Any, step: float, sums: Sums | None = None
    ) -> tuple[Any, Any, float, float]:
        """Optimiser step number ``step`` (from 0) on what was accumulated, or on ``sums``.

        Returns:
            New leaves, new state, mean loss, gradient norm.
        """
        taken = sums or self.take(trained)
        rate = np.float32(np.asarray(self._rate(step)))
        trained, state, loss, norm = self._update(trained, state, tuple(taken), rate)
        return trained, state, float(np.asarray(loss)), float(np.asarray(norm))

    @staticmethod
    def _nothing(trained: Leaves) -> tuple[Any, Array, Array]:
        return jax.tree.map(jnp.zeros_like, dict(trained)), jnp.float32(0), jnp.float32(0)
