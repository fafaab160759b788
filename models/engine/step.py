"""What the host hands to one decode step, and what it gets back later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import Array

from .grammar import mask_rows
from .job import Job
from .scheduler import Chunk
from .slots import Slot


@dataclass(frozen=True)
class Flight:
    """A decode step whose results have not been read yet: tokens, raw and sampled log-probabilities by row."""

    jobs: Mapping[int, Job]
    drawn: tuple[Array, Array, Array]


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


def step_inputs(
    jobs: Mapping[int, Job], slots: Sequence[Slot], vocab_size: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """``fresh``, ``lengths`` and ``rules`` of ``runner.decode`` for the rows ``slots``; rows without a job idle."""
    rows = [jobs.get(row) for row in range(len(slots))]
    fresh = [job.request.prompt[-1] if job and not job.dispatched else -1 for job in rows]
    lengths = [
        len(job.request.prompt) - 1 + job.dispatched if job else len(slot.tokens)
        for job, slot in zip(rows, slots, strict=True)
    ]
    samplings = [job.request.sampling if job else None for job in rows]
    rules: dict[str, Any] = {
        "bits": mask_rows([job.matcher if job else None for job in rows], vocab_size),
        "seeds": np.array([job.request.seed & 0x7FFFFFFF if job else 0 for job in rows], np.int32),
        "positions": np.array([job.dispatched if job else 0 for job in rows], np.int32),
        "temperature": np.array([s.temperature if s else 0.0 for s in samplings], np.float32),
        "top_k": None,
        "top_p": None,
    }
    if any(s and (s.top_k > 0 or s.top_p < 1) for s in samplings):
        rules["top_k"] = np.array([s.top_k if s else 0 for s in samplings], np.int32)
        rules["top_p"] = np.array([s.top_p if s else 1.0 for s in samplings], np.float32)
    return np.array(fresh, np.int32), np.array(lengths, np.int32), rules
