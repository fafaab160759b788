"""Fresh weights that can copy from the start: an induction circuit, written in.

A model finds out late, and all at once, how to go on as the context did before (Olsson et al. 2209.11895); our nano
models had not after four million tokens. But names to copy are most of what an agent writes. So a fresh model starts
with the circuit, and training does with it what it likes:

- the first layer's first two heads look at the token before and at the one before that, whatever they are, and note a
  part of each beside the token's own embedding;
- in the next two layers the first head looks for the place whose notes are the last two tokens here, and adds part of
  the token there to what is said next.

(With one token instead of two a name goes on like another that shares a syllable.)
"""

from __future__ import annotations

import numpy as np

from .config import DecoderConfig

EMBEDDED = 1.0
"""Size of each component of an embedding."""
CONSTANT = 3.0
"""A component that all tokens share, in such sizes: what the first head's query and keys are made of."""
BEFORE, ALIKE, SAID = 14.0, 60.0, 10.0
"""Scores of the token before and of an equal pair, before the softmax; how loudly the copied token is added. Larger
scores copy better before training and worse after it."""
REACH = 400
"""Tokens over which position must not disturb whether two tokens are alike."""


def write_copying(config: DecoderConfig, params: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Write the circuit into fresh ``params``, in place. Needs two layers; a third copies more of a token.

    The residual stream gets a constant, then parts of ``min(head_dim, (width - 1) / 5)`` components: the notes of the
    one and two tokens before (empty in the embeddings), what tokens are told apart by, and what each layer copies.
    """
    width, dim, half = config.hidden_size, config.head_dim, config.head_dim // 2
    n = min(dim, (width - 1) // 5)
    before, second, told, *copied = (slice(1 + i * n, 1 + (i + 1) * n) for i in range(min(5, config.num_layers + 2)))
    embed = EMBEDDED * rng.choice((-1.0, 1.0), size=params["embed"].shape)  # all equally long
    embed[:, 0], embed[:, before.start : second.stop] = CONSTANT * EMBEDDED, 0
    params["embed"] = embed.astype(np.float32)
    params["norm"] = np.full(width, 0.1 / EMBEDDED, np.float32)  # so that fresh logits are not extreme
    constant = CONSTANT / np.sqrt((width - 1 - 2 * n + CONSTANT**2) / width)  # behind the norm

    turns = config.rope_theta ** (-np.arange(half) / half)
    fast = np.arange(min(6, half))  # together they peak at one place only
    size = np.sqrt(BEFORE * np.sqrt(dim) / len(fast)) / constant
    params["layers.0.k"][0, fast] = size
    params["layers.0.v"][told, :n] = np.eye(n)
    for back, note in zip(range(1, config.num_heads + 1), (before, second), strict=False):
        head = (back - 1) * dim
        params["layers.0.q"][0, head + fast] = size * np.cos(back * turns[fast])
        params["layers.0.q"][0, head + half + fast] = -size * np.sin(back * turns[fast])
        params["layers.0.o"][head : head + n, note] = EMBEDDED * np.eye(n)

    slow = np.flatnonzero(turns * REACH < 1.2)
    compared = np.stack([slow, half + slow])[:, :n]  # [2, C]: for the last token, and for the one before it
    size, louder = np.sqrt(ALIKE * np.sqrt(dim) / compared.size), 1.0
    for i, part in enumerate(copied):
        prefix, chosen = f"layers.{i + 1}.", (np.arange(compared.shape[1]) - i * compared.shape[1]) % n
        for ours, theirs, places in zip((told, before), (before, second), compared, strict=True):
            params[prefix + "q"][ours.start + chosen, places] = size * louder
            params[prefix + "k"][theirs.start + chosen, places] = size * louder
        params[prefix + "v"][part, :n] = louder * np.eye(n)
        params[prefix + "o"][:n, part] = SAID * EMBEDDED * np.eye(n)
        louder *= np.sqrt(1 + n * SAID**2 / width)  # what was added makes the norm's output smaller
