"""What the host hands to one decode step, and what it gets back later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

from .grammar import mask_rows
from .job import Job
from .request import Sampling
from .sampling import Drawn
from .scheduler import Chunk
from .shapes import STEPS
from .speculation import Guess


@dataclass(frozen=True)
class Flight:
    """A decode step whose results have not been read yet.

    Attributes:
        guesses: what it checks, by row.
    """

    jobs: Mapping[int, Job]
    drawn: Drawn
    guesses: Mapping[int, Guess]


@dataclass(frozen=True)
class Scored:
    """A scoring chunk whose log-probabilities ``[width]`` have not been read yet."""

    chunk: Chunk
    logprobs: Array

    def deliver(self) -> bool:
        """Hand the job its part; True when it has all it asked for."""
        job, start = self.chunk.job, self.chunk.start
        assert job.scored is not None
        values = np.asarray(self.logprobs)[: len(self.chunk.tokens)].tolist()
        job.logprobs += values[max(0, job.scored - start - 1) :]
        return len(job.logprobs) == len(job.request.prompt) - job.scored


def steps_at_once(jobs: Mapping[int, Job]) -> int:
    """``STEPS`` if nobody needs the host in between and somebody will use them all, else 1."""
    waits = any(job.waits for job in jobs.values())
    return STEPS if not waits and any(job.max_tokens - job.dispatched >= STEPS for job in jobs.values()) else 1


def step_inputs(
    jobs: Mapping[int, Job], count: int, guesses: Mapping[int, Guess], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What ``runner.decode`` takes for ``count`` rows: tokens to feed, lengths (-1 where nobody is) and drafts.

    A step of width 1 computes one token a row; a wider one checks ``guesses`` too.
    """
    rows = [jobs.get(row) for row in range(count)]
    fresh = [0 if job is None else -1 if job.dispatched else job.request.prompt[-1] for job in rows]
    drafts = [guesses.get(row, Guess()).tokens for row in range(count)]
    padded = np.array([[*draft, *[-1] * (width - 1 - len(draft))] for draft in drafts], np.int32) if width > 1 else None
    lengths = [job.position if job else -1 for job in rows]
    return np.array(fresh, np.int32), np.array(lengths, np.int32), padded


def drawing_rules(
    jobs: Mapping[int, Job],
    count: int,
    vocab_size: int,
    guesses: Mapping[int, Guess],
    width: int,
    *,
    alike: bool = False,
) -> dict[str, Any]:
    """What ``sampling.draw`` takes for those rows; what was drawn before must have been read if a row ``waits``.

    If ``alike``, what is drawn goes through the same program whatever rules the rows have.
    """
    rows = [None if job is None or job.ended else job for job in map(jobs.get, range(count))]
    drafts = [guesses.get(row, Guess()).tokens for row in range(count)]
    samplings = [job.request.sampling if job else None for job in rows]
    rules: dict[str, Any] = {
        "bits": mask_rows([job.matcher if job else None for job in rows], vocab_size, drafts, width),
        "seeds": np.array([job.request.seed & 0x7FFFFFFF if job else 0 for job in rows], np.int32),
        "positions": np.array([job.dispatched if job else 0 for job in rows], np.int32),
        "temperature": np.array([s.temperature if s else 0.0 for s in samplings], np.float32),
    }
    some = [s or Sampling() for s in samplings]
    if alike or any(_bends(s) for s in some):  # one program for them all
        top_k = np.array([min(s.top_k, vocab_size) for s in some], np.int32)
        rules["cuts"] = (top_k, *(np.array([getattr(s, n) for s in some], np.float32) for n in ("top_p", "min_p")))
        seen = np.zeros((count, -(-vocab_size // 32)), np.int32)
        for row, job in enumerate(rows):
            if job is not None and job.request.sampling.repetition_penalty != 1:
                seen[row] = _bits([*job.request.prompt, *job.tokens], vocab_size)
        rules["repeated"] = (seen, np.array([s.repetition_penalty for s in some], np.float32))
    return rules


def _bends(sampling: Sampling) -> bool:
    """Whether it draws from anything but the model's distribution at a temperature."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0 or sampling.repetition_penalty != 1


SAMPLINGS = (Sampling(), Sampling(top_p=0.9))
"""One of each kind that ``drawing_rules`` makes a program of its own for."""


def _bits(tokens: Sequence[int], vocab_size: int) -> np.ndarray:
    """A set of tokens as bits ``[ceil(vocab/32)]`` int32, little-endian words."""
    present = np.zeros(-(-vocab_size // 32) * 32, bool)
    present[np.asarray(tokens)] = True
    return np.packbits(present, bitorder="little").view(np.int32)
