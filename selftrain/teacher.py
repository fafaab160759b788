"""What a teacher says at every position that a student learns, sampled once and kept.

Gemma 3 (2503.19786, section 2) samples 256 tokens a position, weighted by the teacher's probabilities, and the
student learns the teacher's distribution within them. Drawn with replacement, with counts / 256 as the target, the
expectation of target, loss and gradient is that of the whole distribution; the 256 likeliest tokens, renormalised,
would be biased.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..models.errors import RestillError
from .files import hash_json
from .mixture import Example, Mixture
from .pack import micro_batch, pack
from .progress import Meter

if TYPE_CHECKING:
    from ..models.checkpoint.load import Checkpoint
    from ..models.vocabulary import PrunedVocabulary

GROUP = 32
"""Examples in one part of an unfinished file: what a kill can cost."""
VOCABULARY_CHUNK = 128
"""Positions whose teacher probabilities are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class TeacherTargets:
    """Sampled tokens by example and position, as a compressed sparse row matrix.

    Attributes:
        lengths: ``[E]`` int64, tokens of each example of the mixture, in order.
        offsets: ``[sum(lengths) + 1]`` int64: position i of all has entries ``offsets[i]`` to ``offsets[i + 1]``; none
            where nothing is learnt.
        ids: ``[entries]`` int32, the student's ids, ascending within a position.
        counts: ``[entries]`` uint16, how often each was drawn.
        facts: what decided all this, as plain values.
    """

    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    ids: NDArray[np.int32] = field(repr=False)
    counts: NDArray[np.uint16] = field(repr=False)
    facts: dict[str, Any]

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def width(self) -> int:
        """Entries that the fullest position needs, a power of two, so that few programs are compiled."""
        return 1 << int(self._sizes.max(initial=1) - 1).bit_length()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over facts and content."""
        digest = hashlib.sha256(hash_json(self.facts).encode())
        for part in (self.lengths, self.offsets, self.ids, self.counts):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def at(self, examples: NDArray[Any], positions: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and shares ``[n, width]`` at these ``positions`` of these ``examples``; unused entries are 0."""
        place = self._starts[examples] + positions
        first, size = self.offsets[place], self._sizes[place]
        column = np.arange(self.width)
        used = column < size[:, None]
        entry = np.where(used, first[:, None] + column, 0)
        ids, counts = np.where(used, self.ids[entry], 0), np.where(used, self.counts[entry], 0)
        return ids.astype(np.int32), (counts / counts.sum(1, keepdims=True)).astype(np.float32)

    def check(self, mixture: Mixture, row_length: int) -> None:
        """Make sure that these are the targets of ``mixture``, trained in rows of ``row_length``.

        Raises:
            RestillError: they are another's, or a weighted position has none.
        """
        if self.lengths.tolist() != [len(e.tokens) for e in mixture]:
            raise RestillError("the teacher's targets belong to another mixture; sample them again")
        learnt = np.concatenate([np.asarray(e.weights) != 0 for e in mixture])
        inside = np.concatenate([np.arange(len(e.tokens)) < row_length for e in mixture])
        if (learnt & inside & (self._sizes == 0)).any():
            raise RestillError(
                "a weighted position of the mixture has no teacher target (a negative weight, or rows longer than the "
                f"{self.facts.get('row_length')} tokens that the teacher read); sample them again"
            )

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically."""
        from safetensors.numpy import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        tensors = {name: getattr(self, name) for name in ("lengths", "offsets", "ids", "counts")}
        save_file(tensors, part, metadata={"facts": json.dumps(self.facts, sort_keys=True)})
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> TeacherTargets:
        """Read what :meth:`save` wrote.

        Raises:
            RestillError: no such file, or another kind of file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                return cls(facts=facts, **{n: file.get_tensor(n) for n in ("lengths", "offsets", "ids", "counts")})
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise RestillError(f"{path} holds no teacher targets ({error}); delete it to sample them again") from None

    @classmethod
    def join(cls, parts: Sequence[TeacherTargets], facts: dict[str, Any]) -> TeacherTargets:
        """The targets of several mixtures, one after the other."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            lengths=np.concatenate([part.lengths for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            ids=np.concatenate([part.ids for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            facts=facts,
        )


def draw(probabilities: NDArray[np.float64], uniform: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Tokens drawn with replacement by inverting the distribution function.

    Args:
        probabilities: ``[V]``, of any sum.
        uniform: ``[samples]`` in [0, 1), one for each token to draw.

    Returns:
        The ids that were drawn, ascending, and how often each was.
    """
    cumulative = np.cumsum(probabilities)
    found = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    last = np.flatnonzero(probabilities)[-1]  # rounding may lift a uniform number to the very end
    return np.unique(np.minimum(found, last), return_counts=True)


def sample_targets(
    teacher: Checkpoint,
    mixture: Mixture,
    *,
    out: Path,
    vocabulary: PrunedVocabulary | None = None,
    samples: int = 256,
    row_length: int = 1024,
    seed: int = 0,
    progress: bool = False,
) -> TeacherTargets:
    """Run the teacher over ``mixture`` and draw ``samples`` tokens at each position with a positive weight.

    The distribution is the teacher's at temperature 1; with a ``vocabulary``, restricted to the student's tokens and
    renormalised. Every example has a random stream of its own, so nothing depends on how the work was cut up: a call
    that was killed goes on, and ends with the same file ``out``.

    Args:
        mixture: in the teacher's ids.
        row_length: what is longer is cut, as the trainer does.

    Raises:
        RestillError: ``samples`` out of range, or ``out`` was made from something else.
    """
    if not 1 <= samples <= 65_535:
        raise RestillError(f"samples={samples} a position: give 1 to 65535 (Gemma 3 draws 256)")
    facts = {
        "mixture": mixture.fingerprint,
        "teacher": teacher.fingerprint,
        "vocabulary": None if vocabulary is None else hashlib.sha256(vocabulary.ids.tobytes()).hexdigest(),
        "samples": samples,
        "row_length": row_length,
        "seed": seed,
    }
    if out.is_file():
        found = TeacherTargets.load(out)
        if found.facts == facts:
            return found
        raise RestillError(f"{out} was sampled from another mixture, teacher or seed; delete it, or name another file")
    parts = out.with_name(out.name + ".parts")
    groups = range(0, len(mixture), GROUP)
    ask = _Teacher(teacher, vocabulary, row_length) if len(mixture) else None
    done: list[TeacherTargets] = []
    with Meter("teacher", total=len(groups), show=progress) as meter:
        for first in groups:
            path = parts / f"{first:08d}.safetensors"
            part = TeacherTargets.load(path) if path.is_file() else None
            if part is None or part.facts != facts:
                assert ask is not None
                part = ask.sample(mixture[first : first + GROUP], first, samples, seed, facts)
                part.save(path)
            done.append(part)
            meter.advance()
    joined = TeacherTargets.join(done, facts)
    joined.save(out)
    shutil.rmtree(parts, ignore_errors=True)
    return joined


class _Teacher:
    """The compiled teacher, its head cut to the student's tokens."""

    def __init__(self, teacher: Checkpoint, vocabulary: PrunedVocabulary | None, row_length: int) -> None:
        import jax
        import jax.numpy as jnp

        from ..models.home import enable_compile_cache
        from .loss import final_norm, head_of, run_layers

        enable_compile_cache()
        config, self.row_length = teacher.config, row_length
        params = {name: jnp.asarray(leaf) for name, leaf in teacher.params.items()}
        head = head_of(config, params) if config.tie_embeddings else head_of(config, params).T
        head = head if vocabulary is None else head[vocabulary.shared]

        @jax.jit
        def hidden(params: Any, tokens: Any, positions: Any, segments: Any) -> Any:
            x, layers = params["embed"][tokens.reshape(-1)], range(config.num_layers)
            return final_norm(config, params, run_layers(config, params, {}, 1.0, x, positions, segments, layers))

        logits = jax.jit(lambda hidden, head: hidden @ head.T)
        self._hidden = lambda batch: np.asarray(hidden(params, batch["tokens"], batch["positions"], batch["segments"]))
        self._logits = lambda rows: np.asarray(logits(rows, head))

    def sample(
        self, examples: Sequence[Example], first: int, samples: int, seed: int, facts: dict[str, Any]
    ) -> TeacherTargets:
        """Targets of ``examples``, which are number ``first`` and following of their mixture."""
        cut = [_learnable(example, self.row_length) for example in examples]
        drawn: dict[tuple[int, int], tuple[NDArray[Any], NDArray[Any]]] = {}
        rows = pack(cut, self.row_length) if any(e.targets for e in cut) else None
        streams = [np.random.default_rng([seed, first + i]).random((e.targets, samples)) for i, e in enumerate(cut)]
        ranks = [np.cumsum(np.asarray(e.weights) != 0) - 1 for e in cut]
        for row in range(0 if rows is None else len(rows)):
            assert rows is not None
            batch = micro_batch(rows, np.array([row], np.int32), 1)
            hidden, at = self._hidden(batch), np.asarray(batch["at"])
            for start in range(0, int(batch["count"]), VOCABULARY_CHUNK):
                places = at[start : min(start + VOCABULARY_CHUNK, int(batch["count"]))]
                padded = np.zeros((VOCABULARY_CHUNK, hidden.shape[1]), np.float32)
                padded[: len(places)] = hidden[places]
                logits = self._logits(padded)[: len(places)].astype(np.float64)
                likely = np.exp(logits - logits.max(1, keepdims=True))
                for place, p in zip(places + 1, likely, strict=True):
                    key = int(rows.segments[row, place]), int(rows.positions[row, place])
                    drawn[key] = draw(p, streams[key[0]][ranks[key[0]][key[1]]])
        nothing = np.zeros(0, np.int64), np.zeros(0, np.int64)
        all_of = [drawn.get((i, j), nothing) for i, e in enumerate(cut) for j in range(len(e.tokens))]
        return TeacherTargets(
            lengths=np.array([len(e.tokens) for e in cut], np.int64),
            offsets=np.cumsum([0, *(len(ids) for ids, _ in all_of)]).astype(np.int64),
            ids=np.concatenate([ids for ids, _ in all_of]).astype(np.int32),
            counts=np.concatenate([counts for _, counts in all_of]).astype(np.uint16),
            facts=facts,
        )


def _learnable(example: Example, length: int) -> Example:
    """The example without weights that are negative or beyond ``length``."""
    kept = (w if w > 0 and i < length else 0.0 for i, w in enumerate(example.weights))
    return Example(tokens=example.tokens, weights=tuple(kept))
