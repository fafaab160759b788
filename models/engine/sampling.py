"""Drawing the next token, for a whole batch, on the device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..decoder import NEG_INF
from .noise import gumbel

Drawn = tuple[Array, Array, Array, Array]
"""Tokens, raw and sampled log-probabilities, each ``[B, T]``, and how many drafts were kept, ``[B]``."""

_BLOCK = 128


def unpack_mask(bits: Array, vocab: int) -> Array:
    """Allowed-token bits ``[B, ceil(vocab/32)]`` int32 (llguidance's layout) to a bool ``[B, vocab]``."""
    wide = (bits[:, :, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
    return wide.reshape(bits.shape[0], -1)[:, :vocab] != 0


def truncate(logits: Array, top_k: Array, top_p: Array, min_p: Array) -> Array:
    """Logits with everything outside top-k, the top-p nucleus and min-p at -inf; 0, 1 and 0 switch a row's cut off.

    top-p keeps the smallest set of most likely tokens whose mass reaches p (Holtzman et al. 1904.09751).
    """
    vocab = logits.shape[-1]
    order = jnp.sort(logits, axis=-1, descending=True)
    kth = jnp.take_along_axis(order, jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab)[:, None] - 1, axis=-1)
    kept = jnp.where(order >= kth, order, NEG_INF)
    before = jnp.cumsum(jax.nn.softmax(kept, axis=-1), axis=-1) - jax.nn.softmax(kept, axis=-1)
    # The nucleus ends at the last token before which less than p has been gathered.
    last = jnp.sum((before < top_p[:, None]) & (kept > NEG_INF / 2), axis=-1)
    floor = jnp.take_along_axis(order, jnp.maximum(last, 1)[:, None] - 1, axis=-1)
    floor = jnp.where(top_p[:, None] < 1, floor, NEG_INF)  # rounding may reach 1 before the last token
    least = order[:, :1] + jnp.log(min_p)[:, None]
    return jnp.where(logits >= jnp.maximum(jnp.maximum(kth, floor), least), logits, NEG_INF)


def penalise(logits: Array, seen: Array, penalty: Array) -> Array:
    """Logits made smaller where the bits ``seen [B, ceil(vocab/32)]`` are set; ``penalty [B]`` of 1 changes nothing."""
    factor = jnp.where(unpack_mask(seen, logits.shape[-1]), penalty[:, None], 1.0)
    return jnp.where(logits > 0, logits / factor, logits * factor)


def argmax(x: Array) -> Array:
    """``jnp.argmax`` of ``[B, V]`` over V, by blocks: on CPU a tenth of its time."""
    blocks = _blocks(x, NEG_INF)
    block = jnp.argmax(blocks.max(-1), axis=-1)
    inner = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + jnp.argmax(inner, axis=-1)


def _blocks(x: Array, fill: float) -> Array:
    """``[B, V]`` as ``[B, blocks, _BLOCK]``."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK)), constant_values=fill).reshape(x.shape[0], -1, _BLOCK)


def categorical(logits: Array, seeds: Array, positions: Array) -> Array:
    """One draw per row of ``softmax(logits [B, V])``, fixed by ``seeds [B]`` and ``positions [B]``.

    The Gumbel trick on two levels, a block and then a token within it: it needs hundreds of random numbers a row
    instead of V. Two distributions that are close draw the same token from the same noise: with probability
    ``sum_i 1 / sum_j max(p_j / p_i, q_j / q_i)`` on each level (Daliri et al. 2408.07978). A token of zero
    probability is never drawn.
    """
    p = _blocks(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), 0)
    noise = gumbel(seeds, positions, p.shape[1] + _BLOCK)
    block = jnp.argmax(jnp.log(p.sum(-1)) + noise[:, _BLOCK:], axis=-1)
    inner = jnp.take_along_axis(p, block[:, None, None], axis=1)[:, 0]
    return block * _BLOCK + jnp.argmax(jnp.log(inner) + noise[:, :_BLOCK], axis=-1)


def sample(
    logits: Array,
    bits: Array | None,
    seeds: Array,
    positions: Array,
    temperature: Array,
    cuts: tuple[Array, Array, Array] | None = None,
    repeated: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Draw one token a row.

    Args:
        logits: ``[B, V]`` f32. bits: grammar mask or None. seeds, positions: ``[B]``; together they fix the draw.
        temperature: ``[B]``, 0 for greedy. cuts: top_k, top_p and min_p, each ``[B]``, if any row truncates.
        repeated: bits of the tokens seen so far and the penalty, if any row has one.

    Returns:
        tokens ``[B]``; their log-probabilities under the model itself, and under what they were drawn from.
    """
    raw = jax.nn.log_softmax(logits, axis=-1)
    adjusted = logits if repeated is None else penalise(logits, *repeated)
    allowed = adjusted if bits is None else jnp.where(unpack_mask(bits, logits.shape[-1]), adjusted, NEG_INF)
    greedy = argmax(allowed)
    scaled = allowed / jnp.where(temperature > 0, temperature, 1.0)[:, None]
    if cuts is not None:  # sorting the vocabulary takes longer than the model, so not where nobody truncates
        top_k, top_p, min_p = cuts
        needed = jnp.any((top_k > 0) | (top_p < 1) | (min_p > 0))
        scaled = jax.lax.cond(needed, truncate, lambda logits, *_: logits, scaled, *cuts)
    tokens = jnp.where(temperature > 0, categorical(scaled, seeds, positions), greedy)
    row = tokens[:, None]
    drawn = jnp.take_along_axis(scaled, row, axis=-1)[:, 0] - jax.nn.logsumexp(scaled, axis=-1)
    # A greedy draw has no randomness: its log-probability is 0.
    return tokens, jnp.take_along_axis(raw, row, axis=-1)[:, 0], jnp.where(temperature > 0, drawn, 0.0)


@partial(jax.jit, donate_argnums=1)
def draw(logits: Array, newest: Array, rules: Mapping[str, Any], drafts: Array | None = None) -> tuple[Array, Drawn]:
    """One token for each of B rows, or up to T where drafts come true.

    Args:
        logits: ``[B, T, V]`` (``runner.decode``). newest: ``[slots]`` each slot's newest token.
        rules: the keyword arguments of ``sample`` except logits, for B rows (``bits``: for B x T).
        drafts: ``[B, T - 1]``, -1 for none. Each position is drawn as it would be without them; a draft is kept while
            it equals what was drawn.

    Returns:
        ``newest`` with what was drawn last, and ``Drawn``.
    """
    batch, width, _ = logits.shape
    rules = {
        name: part if name == "bits" else jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), part)
        for name, part in rules.items()
    }
    rules["positions"] = rules["positions"] + jnp.tile(jnp.arange(width, dtype=jnp.int32), batch)
    drawn, raw, sampled = (part.reshape(batch, width) for part in sample(logits.reshape(batch * width, -1), **rules))
    kept = jnp.zeros(batch, jnp.int32)
    if drafts is not None:
        kept = jnp.cumprod(drawn[:, :-1] == drafts, axis=1).sum(axis=1)
    last = jnp.take_along_axis(drawn, kept[:, None], axis=1)[:, 0].astype(newest.dtype)
    return newest.at[:batch].set(last), (drawn, raw, sampled, kept)
