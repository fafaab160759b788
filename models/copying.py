"""Fresh weights that can copy from the start: an induction circuit, written in.

A model finds out late, and all at once, how to go on as the context did before (Olsson et al. 2209.11895); our nano
models had not after four million tokens. But names to copy are most of what an agent writes. So a fresh model starts
with the circuit, and training does with it what it likes:

- the first layer's first head looks at the token before, whatever it is, and notes part of it beside the token's own
  embedding;
- in the next two layers the first head looks for the place that notes the token at hand, and adds part of the token
  there to what is said next.
"""

from __future__ import annotations

import numpy as np

from .config import DecoderConfig

EMBEDDED = 1.0
"""Size of each component of an embedding."""
CONSTANT = 3.0
"""A component that all tokens share, in such sizes: what the first head's query and keys are made of."""
BEFORE, ALIKE, SAID = 14.0, 40.0, 10.0
"""Scores of the token before and of an equal token, before the softmax; how loudly the copied token is added. Twice the
scores copy better before training and worse after it."""
REACH = 400
"""Tokens over which position must not disturb whether two tokens are alike."""


def write_copying(config: DecoderConfig, params: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Write the circuit into fresh ``params``, in place. Needs two layers; a third copies more of a token.

    The residual stream gets a constant, then parts of ``min(head_dim, (width - 1) / 4)`` components: the note of the
    token before (empty in the embeddings), what tokens are told apart by, and for each copying layer what it copies.
    """
    width, dim, half = config.hidden_size, config.head_dim, config.head_dim // 2
    n = min(dim, (width - 1) // 4)
    note, told, *copied = (slice(1 + i * n, 1 + (i + 1) * n) for i in range(min(4, config.num_layers + 1)))
    embed = EMBEDDED * rng.choice((-1.0, 1.0), size=params["embed"].shape)  # all equally long
    embed[:, 0], embed[:, note] = CONSTANT * EMBEDDED, 0
    params["embed"] = embed.astype(np.float32)
    params["norm"] = np.full(width, 0.1 / EMBEDDED, np.float32)  # so that fresh logits are not extreme
    constant = CONSTANT / np.sqrt((width - 1 - n + CONSTANT**2) / width)  # behind the norm

    turns = config.rope_theta ** (-np.arange(half) / half)
    fast = np.arange(min(6, half))  # together they peak at one place only
    size = np.sqrt(BEFORE * np.sqrt(dim) / len(fast)) / constant
    params["layers.0.k"][0, fast] = size
    params["layers.0.q"][0, fast] = size * np.cos(turns[fast])
    params["layers.0.q"][0, half + fast] = -size * np.sin(turns[fast])
    params["layers.0.v"][told, :n] = np.eye(n)
    params["layers.0.o"][:n, note] = EMBEDDED * np.eye(n)

    slow = np.flatnonzero(turns * REACH < 1.2)
    compared = np.concatenate([slow, half + slow])[:n]
    size, louder = np.sqrt(ALIKE * np.sqrt(dim) / len(compared)), 1.0
    for i, part in enumerate(copied):
        prefix, chosen = f"layers.{i + 1}.", (np.arange(len(compared)) - i * len(compared)) % n
        params[prefix + "q"][told.start + chosen, compared] = size * louder
        params[prefix + "k"][note.start + chosen, compared] = size * louder
        params[prefix + "v"][part, :n] = louder * np.eye(n)
        params[prefix + "o"][:n, part] = SAID * EMBEDDED * np.eye(n)
        louder *= np.sqrt(1 + n * SAID**2 / width)  # what was added makes the norm's output smaller
