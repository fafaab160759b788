"""Guesses of a smaller model, which runs a few tokens ahead.

It draws with the randomness of the position, as the engine will: ``sampling.categorical`` makes two distributions that
are close draw the same token from the same noise. So a guess comes true about as often as under modified rejection
sampling (Chen et al. 2302.01318: 1 - TV; here at least (1 - TV) / (1 + TV) on each level of the draw), and the output
is, draw for draw, what it is without a draft model, whatever is guessed when (drafter-invariant speculative decoding,
Daliri et al. 2408.07978). Rejection sampling would make it depend on how far was guessed, and so on timing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import jax.numpy as jnp
import numpy as np

from ..config import DecoderConfig
from ..errors import RestillError
from .job import Job
from .model import CachedModel
from .request import Request
from .sampling import draw
from .scheduler import PREFILL_TOKENS
from .shapes import MOST_ROWS, Shapes
from .slots import common_prefix
from .step import SAMPLINGS, drawing_rules, step_inputs


class DraftModel:
    """A small decoder that follows the slots of a large one."""

    def __init__(self, model: CachedModel, shapes: Shapes) -> None:
        self._model, self._shapes = model, shapes
        self._held: dict[int, list[int]] = {}
        self._newest = jnp.zeros(shapes.slots, jnp.int32)

    def guess(self, jobs: Mapping[int, Job], rows: int, count: int) -> dict[int, list[int]]:
        """``count`` tokens that may follow in each row that it has caught up with; all that was drawn must be known.

        Args:
            rows: of the batch, idle ones too.
        """
        jobs = self._follow(jobs, rows)
        if not jobs:
            return {}
        fed, starts, _ = step_inputs(jobs, rows, {}, 1)
        rules = drawing_rules(jobs, rows, self._vocab, {}, 1)
        for row, job in jobs.items():
            fed[row] = _known(job)[-1]
        drawn = []
        for ahead in range(count):
            logits = self._model.step(self._newest, fed, np.where(starts < 0, -1, starts + ahead))
            self._newest, (tokens, *_) = draw(logits, self._newest, {**rules, "positions": rules["positions"] + ahead})
            drawn.append(tokens)
            fed = np.full(rows, -1, np.int32)
            rules["bits"] = np.full_like(rules["bits"], -1)  # what the grammar allows further on is not known yet
        guesses = np.concatenate([np.asarray(tokens) for tokens in drawn], axis=1).tolist()
        for row, job in jobs.items():
            self._held[row] = [*_known(job), *guesses[row][:-1]]
        return {row: guesses[row] for row in jobs}

    def _follow(self, jobs: Mapping[int, Job], rows: int) -> dict[int, Job]:
        """Bring the cache up to all tokens but the newest; the jobs for which that is done.

        A turn computes about as much of prompts as the engine's own: nobody waits for a stranger's long one.
        """
        fed, starts = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
        behind, budget, ready = False, PREFILL_TOKENS, dict[int, Job]()
        for row, job in jobs.items():
            want = _known(job)[:-1]
            shared = common_prefix(self._held.get(row, []), want)
            while len(want) - shared > 1 and budget > 0:
                width = self._shapes.chunk(len(want) - shared, shared)
                part = want[shared : shared + min(width, self._shapes.rest(shared))]
                self._model.chunk(row, shared, part, width)
                shared += len(part)
                budget -= width
            self._held[row] = list(want[:shared])
            if len(want) - shared > 1:
                continue
            ready[row] = job
            behind = behind or shared < len(want)
            if want:  # those that are not behind write again what is there
                fed[row], starts[row] = want[-1], len(want) - 1
        if behind:
            self._model.step(self._newest, fed, starts)
        return ready

    def warm(self) -> None:
        """Compile what guessing needs."""
        self._held = {}
        self._model.warm()
        for rows in (b for b in self._shapes.row_buckets if b <= MOST_ROWS):
            for segment, sampling in product(self._shapes.segments, SAMPLINGS):  # it writes in all of them
                job = Job(Request(prompt=(0,), sampling=sampling), 1, None, dispatched=segment.start + 1)
                jobs = dict.fromkeys(range(rows), job)
                fed, starts, _ = step_inputs(jobs, rows, {}, 1)
                rules = drawing_rules(jobs, rows, self._vocab, {}, 1)
                self._newest, _ = draw(self._model.step(self._newest, fed, starts), self._newest, rules)

    def forget(self) -> None:
        """Start over with an empty cache."""
        self._model.forget()
        self._held, self._newest = {}, jnp.zeros(self._shapes.slots, jnp.int32)

    @property
    def _vocab(self) -> int:
        return self._model.config.vocab_size


def check_draft(config: DecoderConfig, draft: DecoderConfig, deterministic: bool) -> None:
    """Refuse a draft model that cannot guess for ``config``.

    Raises:
        RestillError: another vocabulary, or an engine that guesses nothing.
    """
    if deterministic:
        raise RestillError("a deterministic engine guesses nothing; leave the draft model out")
    if draft.vocab_size != config.vocab_size:
        raise RestillError(
            f"the draft model has {draft.vocab_size} tokens, the model {config.vocab_size}; "
            "choose one that shares the model's tokenizer"
        )


def _known(job: Job) -> Sequence[int]:
    return [*job.request.prompt, *job.tokens]
