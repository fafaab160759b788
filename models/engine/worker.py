"""The working half of the engine: one thread that computes what the scheduler plans.

A decode step gives one token to every running request. The device is always one step ahead of what the host has read
(a small model: one dispatch of several steps), so that it never waits for the host; what a request was given beyond its
end is dropped. Where the host decides what may be drawn (a grammar, a repetition penalty) it reads the last token while
the device computes the next logits.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import RestillError
from ..tokenizer import Tokenizer
from . import runner
from .adapters import Adapters
from .guessing import Guesser
from .job import Job
from .model import CachedModel
from .request import FinishReason, Request
from .sampling import Drawn, draw
from .scheduler import Chunk, Scheduler
from .shapes import STEPS, Shapes
from .slots import Fork, Slot, Swap
from .speculation import Guess
from .step import SAMPLINGS, Flight, Scored, drawing_rules, step_inputs, steps_at_once


class Worker:
    """The device's state (models with their caches, the step in flight) and the loop over it.

    Args:
        wake: held by whoever touches ``scheduler``; notified when there is something to do.
    """

    def __init__(
        self,
        model: CachedModel,
        draft: CachedModel | None,
        tokenizer: Tokenizer,
        adapters: Adapters,
        shapes: Shapes,
        wake: threading.Condition,
        speculate: bool,
    ) -> None:
        self.tokenizer, self.adapters, self._model = tokenizer, adapters, model
        self.shapes, self.scheduler, self.closed = shapes, Scheduler(shapes), False
        self.turning = False  # the device may be given work even after the last request was answered
        self.guesser = Guesser(draft, shapes, speculate)
        self._newest = jnp.zeros(shapes.slots, jnp.int32)
        self._flight: Flight | None = None
        self._scored: list[Scored] = []
        self._wake = wake
        self.steps = self.rows_run = self.tokens_decoded = self.tokens_prefilled = 0

    def run(self) -> None:
        """Work until ``closed``; what then still waits or runs is cancelled."""
        while True:
            with self._wake:
                while self.scheduler.idle and not self.closed:
                    self._wake.wait()
                if self.closed:
                    break
                self.turning = True
            try:
                self._turn()
            except Exception as error:  # the batch is lost, the engine is not
                self._fail(error)
            with self._wake:
                self.turning = False
                self._wake.notify_all()
        for job in self.scheduler.jobs:
            job.finish("cancelled", self.tokenizer)
        self.forget()

    def stop(self, thread: threading.Thread | None) -> None:
        """End ``thread``, which is in ``run``, or do what it would do at its end."""
        with self._wake:
            self.closed = True
            self._wake.notify_all()
        if thread is None:
            self.forget()
        elif thread is not threading.current_thread():
            thread.join()

    def _turn(self) -> None:
        began = time.monotonic()
        with self._wake:
            over = self.scheduler.over()
            for job, _ in over:
                if job.slot and not job.logprobs:  # nobody knows whether what it wrote are numbers
                    self._wipe(job.slot)
                self.scheduler.remove(job)
            work = list(self.scheduler.prefill())
        for job, reason in over:
            job.finish(reason, self.tokenizer)
        self._prefill(work)
        rows = self.scheduler.rows()
        width, guesses = self.guesser.plan(rows, flying=self._flight is not None)
        if self._flight is not None and width > 1:
            self._collect()
            rows = self.scheduler.rows()
            width, guesses = self.guesser.plan(rows, flying=False)
        steps = steps_at_once(rows) if self._model.light and width == 1 and not work else 1
        ahead = self._dispatch(rows, guesses, width, steps)
        self._collect()
        self._flight = ahead
        if width > 1 or (steps > 1 and self.guesser.guesses(rows)):  # what came of it decides what is guessed next
            self._collect()
        self.guesser.time(rows, width, None if work else (time.monotonic() - began) / steps)

    def _prefill(self, work: Sequence[Swap | Fork | Chunk]) -> None:
        for item in work:
            if isinstance(item, Chunk):
                lora = self.adapters.of([item.job.adapter])
                logprobs = self._model.chunk(item.slot, item.start, item.tokens, item.width, item.targets, lora)
                if logprobs is not None:
                    self._scored.append(Scored(item, logprobs))
                self.tokens_prefilled += len(item.tokens)
            else:
                self._model.cache.move(item)

    def _dispatch(self, jobs: dict[int, Job], guesses: Mapping[int, Guess], width: int, steps: int) -> Flight | None:
        if not jobs:
            return None
        self.steps += steps
        self.rows_run += steps * len(jobs)
        rows = self.shapes.rows(max(jobs))
        drawn = self._run_steps(jobs, rows, steps) if steps > 1 else self._run_step(jobs, rows, guesses, width)
        for job in jobs.values():
            job.dispatched += steps
        return Flight(jobs, drawn, guesses)

    def _lora(self, jobs: Mapping[int, Job], rows: int) -> runner.Lora | None:
        return self.adapters.of([job.adapter if (job := jobs.get(row)) else None for row in range(rows)])

    def _run_steps(self, jobs: Mapping[int, Job], rows: int, count: int) -> Drawn:
        fed, starts, _ = step_inputs(jobs, rows, {}, 1)
        rules = drawing_rules(jobs, rows, self._model.config.vocab_size, {}, 1)
        del rules["bits"]  # of all tokens
        lora = self._lora(jobs, rows)
        self._newest, drawn = self._model.steps(self._newest, fed, starts, rules, count, lora)
        return drawn

    def _run_step(self, jobs: Mapping[int, Job], rows: int, guesses: Mapping[int, Guess], width: int) -> Drawn:
        lora = self._lora(jobs, rows)
        fed, starts, drafts = step_inputs(jobs, rows, guesses, width)
        logits = self._model.step(self._newest, fed, starts, drafts, lora)
        if any(job.waits for job in jobs.values()):
            self._collect()
        vocab, alike = self._model.config.vocab_size, self.shapes.deterministic
        rules = drawing_rules(jobs, rows, vocab, guesses, width, alike=alike)
        self._newest, drawn = draw(logits, self._newest, rules, drafts)
        return drawn

    @contextmanager
    def idle(self, what: str) -> Iterator[None]:
        """Nobody runs inside, nor may ask; refused while somebody does, and when the engine is closed."""
        with self._wake:
            self._wake.wait_for(
                lambda: self.closed or self.scheduler.wanted or not (self.scheduler.jobs or self.turning)
            )
            if self.closed:
                raise RestillError("the engine is closed; make a new one")
            if busy := self.scheduler.wanted:
                raise RestillError(f"{what}() while {busy} requests are in the engine; wait for them")
            yield

    def warm(self) -> None:
        """Run every program once over an empty cache; nobody may be running."""
        try:
            self._warm()
        except BaseException:  # what was donated is gone
            self.forget()
            raise

    def _warm(self) -> None:
        self.scheduler.table.forget()
        self._model.warm(self.adapters.of([None]))
        for rows in self.shapes.row_buckets:
            for width, segment, sampling in product(self.shapes.widths(rows), self.shapes.segments, SAMPLINGS):
                job = Job(Request(prompt=(0,), sampling=sampling), 1, None, dispatched=segment.start + 1)
                jobs = dict.fromkeys(range(rows), job)
                self._run_step(jobs, rows, {}, width)
                if self._model.light and width == 1:
                    self._run_steps(jobs, rows, STEPS)
        self.guesser.warm()
        self._model.cache.wait()

    def _collect(self) -> None:
        flight, self._flight = self._flight, None
        scored, self._scored = self._scored, []
        for part in scored:
            if (job := part.chunk.job).ended:
                continue
            done = part.deliver()
            if math.isnan(sum(job.logprobs)):
                self._damaged(job)
            elif done:
                self._end(job, "stop")
        if flight is None:
            return
        tokens, raw, sampled, kept = (np.asarray(part).tolist() for part in flight.drawn)
        for row, job in flight.jobs.items():
            if job.ended or job.slot is None:
                continue
            if guess := flight.guesses.get(row):
                self.guesser.learn(guess, kept[row])
                job.dispatched += kept[row]
            for drawn in list(zip(tokens[row], raw[row], sampled[row], strict=True))[: kept[row] + 1]:
                if not self._accept(job, *drawn):
                    break

    def _accept(self, job: Job, token: int, raw: float, sampled: float) -> bool:
        """Hand the job its next token; whether it goes on."""
        assert job.slot is not None
        if math.isnan(raw):
            self._damaged(job)
            return False
        self.tokens_decoded += 1
        job.slot.tokens.append((job.tokens or job.request.prompt)[-1])
        reason = job.accept(token, raw, sampled, self.tokenizer)
        if reason is not None:
            self._end(job, reason)
        return reason is None

    def _damaged(self, job: Job) -> None:
        assert job.slot is not None
        self._wipe(job.slot)
        with self._wake:
            self.scheduler.remove(job)
        job.fail(RestillError("the model's logits are not numbers (NaN); its weights or adapter are damaged"))

    def _wipe(self, slot: Slot) -> None:
        """What is not a number would reach whoever gets the slot next."""
        slot.tokens = []
        self._model.cache.clear(slot.index)

    def _end(self, job: Job, reason: FinishReason) -> None:
        with self._wake:
            self.scheduler.remove(job)
        if job.scored is None:
            self.guesser.remember(job.request.prompt, job.tokens)
        job.finish(reason, self.tokenizer)

    def _fail(self, error: Exception) -> None:
        """The donated cache may be gone: start over with an empty one and tell everyone who was in it."""
        with self._wake:
            lost, waiting = list(self.scheduler.running.values()), self.scheduler.waiting
            self.scheduler = Scheduler(self.shapes)
            self.scheduler.waiting = waiting
            self.forget()
        for job in lost:
            job.fail(error)

    def replace(self, params: Mapping[str, Array]) -> None:
        """Other parameters; nobody may be running."""
        self.scheduler.table.forget()
        self.forget()
        self._model.replace(params)

    def forget(self) -> None:
        """Start over with empty caches."""
        self._model.forget()
        self.guesser.forget()
        self._newest, self._flight, self._scored = jnp.zeros(self.shapes.slots, jnp.int32), None, []
