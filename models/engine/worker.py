"""The working half of the engine: one thread that computes what the scheduler plans.

A decode step gives one token to every running request. The device is always one step ahead of what the host has read,
so that it never waits for the host; what a request was given beyond its end is dropped.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..config import DecoderConfig
from ..errors import RestillError
from ..tokenizer import Tokenizer
from . import runner
from .job import Job
from .precision import Precision, dtype_of
from .request import FinishReason
from .scheduler import Chunk, Fork, Scheduler
from .step import Flight, Scored, step_inputs

CONTEXTS = (512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Cache lengths; the cache starts small and grows to the next one when a request needs it."""


class Worker:
    """The device's state (parameters, KV cache, the step in flight) and the loop over it.

    Args:
        wake: held by whoever touches ``scheduler``; notified when there is something to do.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Mapping[str, Array],
        tokenizer: Tokenizer,
        precision: Precision,
        slots: int,
        max_context: int,
        wake: threading.Condition,
    ) -> None:
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.max_context, self.scheduler, self.closed = max_context, Scheduler(slots), False
        self._dtype = dtype_of(precision)
        self._wake = wake
        self._rows = sorted({b for b in (1, 4, 16, 64, 256) if b < slots} | {slots})
        self._cache: runner.Cache | None = None
        self._newest: Array | None = None
        self._flight: Flight | None = None
        self._scored: list[Scored] = []
        self.steps = self.tokens_decoded = self.tokens_prefilled = 0

    def run(self) -> None:
        """Work until ``closed``; what then still waits or runs is cancelled."""
        while True:
            with self._wake:
                while self.scheduler.idle and not self.closed:
                    self._wake.wait()
                if self.closed:
                    break
            try:
                self._turn()
            except Exception as error:  # the batch is lost, the engine is not
                self._fail(error)
        for job in self.scheduler.jobs:
            job.finish("cancelled", self.tokenizer)
        self._forget()

    def _turn(self) -> None:
        with self._wake:
            over = self.scheduler.over()
            for job, _ in over:
                self.scheduler.remove(job)
            work = list(self.scheduler.prefill())
        for job, reason in over:
            job.finish(reason, self.tokenizer)
        self._prefill(work)
        if any(job.waits for job in self.scheduler.running.values()):
            self._collect()
        ahead = self._dispatch(self.scheduler.rows())
        self._collect()
        self._flight = ahead

    def _prefill(self, work: Sequence[Fork | Chunk]) -> None:
        if not work and self._cache is not None:
            return
        self._reserve()
        for item in work:
            if isinstance(item, Fork):
                self._cache = runner.copy_slot(self._cache, item.source, item.target)
            else:
                where = (runner.pad_to(item.tokens, item.width), np.int32(item.slot), np.int32(item.start))
                if item.targets:
                    targets = runner.pad_to(item.targets, item.width)
                    self._cache, logprobs = runner.score(self.config, self.params, self._cache, *where, targets)
                    self._scored.append(Scored(item, logprobs))
                else:
                    self._cache = runner.prefill(self.config, self.params, self._cache, *where)
                self.tokens_prefilled += len(item.tokens)

    def _reserve(self) -> None:
        """Make the cache long enough for everybody in it."""
        slots = len(self.scheduler.table.slots)
        most = max((job.length for job in self.scheduler.running.values()), default=0) + runner.MARGIN
        context = next((c for c in CONTEXTS if c >= most), self.max_context + runner.MARGIN)
        if self._cache is None:
            self._cache = runner.new_cache(self.config, slots, context, self._dtype)
            self._newest = jnp.zeros(slots, jnp.int32)
        elif self._cache[0][1].shape[2] < context:
            self._cache = runner.grow_cache(self._cache, context)

    def _dispatch(self, jobs: dict[int, Job]) -> Flight | None:
        if not jobs:
            return None
        batch = next(b for b in self._rows if b > max(jobs))
        fresh, lengths, rules = step_inputs(jobs, self.scheduler.table.slots[:batch], self.config.vocab_size)
        self._cache, self._newest, drawn = runner.decode(
            self.config, self.params, self._cache, self._newest, fresh, lengths, rules
        )
        for job in jobs.values():
            job.dispatched += 1
        self.steps += 1
        self.tokens_decoded += len(jobs)
        return Flight(jobs, drawn)

    def _collect(self) -> None:
        flight, self._flight = self._flight, None
        scored, self._scored = self._scored, []
        for part in scored:
            if not part.chunk.job.ended and part.deliver():
                self._end(part.chunk.job, "stop")
        if flight is None:
            return
        tokens, raw, sampled = (np.asarray(part).tolist() for part in flight.drawn)
        for row, job in flight.jobs.items():
            if job.ended or job.slot is None:
                continue
            if math.isnan(raw[row]):
                job.slot.tokens = []
                self._cache = runner.clear_slot(self._cache, row)
                with self._wake:
                    self.scheduler.remove(job)
                job.fail(RestillError("the model's logits are not numbers (NaN); its weights or adapter are damaged"))
                continue
            job.slot.tokens.append((job.tokens or job.request.prompt)[-1])
            reason = job.accept(tokens[row], raw[row], sampled[row], self.tokenizer)
            if reason is not None:
                self._end(job, reason)

    def _end(self, job: Job, reason: FinishReason) -> None:
        with self._wake:
            self.scheduler.remove(job)
        job.finish(reason, self.tokenizer)

    def _fail(self, error: Exception) -> None:
        """The donated cache may be gone: start over with an empty one and tell everyone who was in it."""
        with self._wake:
            lost, waiting = list(self.scheduler.running.values()), self.scheduler.waiting
            self.scheduler = Scheduler(len(self.scheduler.table.slots))
            self.scheduler.waiting = waiting
        self._forget()
        for job in lost:
            job.fail(error)

    def _forget(self) -> None:
        self._cache = self._newest = self._flight = None
        self._scored = []
