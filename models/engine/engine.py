"""The engine: requests from any thread or event loop share one running batch.

A worker thread owns the device. Between two decode steps it computes some of the waiting prompts (what their slots
do not remember yet); a decode step gives one token to every running request. It is always one step ahead of what the
host has read, so that the device never waits for the host; what a request was given beyond its end is dropped.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..config import DecoderConfig
from ..errors import RestillError
from ..tokenizer import Tokenizer
from . import runner
from .grammar import GrammarCompiler
from .job import Job
from .precision import Precision, dtype_of, resolve, serving_params
from .request import Completion, FinishReason, Request
from .scheduler import Chunk, Fork, Scheduler
from .step import Flight, step_inputs

CONTEXTS = (512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Cache lengths; the cache starts small and grows to the next one when a request needs it."""
_MARGIN = runner.CHUNKS[0]
"""Kept free at the end of a slot, so that the last padded chunk fits."""


class Engine:
    """Batched generation over one set of parameters.

    Args:
        params: canonical flat parameters (``decoder.param_shapes``).
        slots: sequences decoded together. max_context: most tokens of prompt and output together.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        *,
        slots: int = 16,
        max_context: int = 2048,
        precision: Precision = "auto",
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.max_context = min(max_context, config.max_positions)
        self.precision = resolve(precision)
        self.params = serving_params(config, params, tokenizer, self.precision)
        self._rows = sorted({b for b in (1, 4, 16, 64, 256) if b < slots} | {slots})
        self._scheduler = Scheduler(slots)
        self._cache: runner.Cache | None = None
        self._newest: Array | None = None
        self._flight: Flight | None = None
        self._grammars = GrammarCompiler(tokenizer, config.vocab_size)
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        self.steps = 0
        self.tokens_decoded = 0
        self.tokens_prefilled = 0

    # -- asking ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, on_text: Callable[[str], None] | None = None) -> Job:
        """Queue a request; its ``future`` resolves to a ``Completion``. ``on_text`` gets text pieces as they come.

        Raises:
            RestillError: empty or too long a prompt, a token outside the vocabulary, an unusable grammar.
        """
        prompt, room = request.prompt, self.max_context - _MARGIN - len(request.prompt)
        if not prompt:
            raise RestillError("the prompt is empty; give at least one token")
        if room < 1:
            raise RestillError(
                f"the prompt has {len(prompt)} tokens and max_context is {self.max_context}; "
                f"shorten it to at most {self.max_context - _MARGIN - 1} tokens or raise max_context"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.config.vocab_size:
            raise RestillError(f"the prompt holds a token id outside 0..{self.config.vocab_size - 1}")
        if request.sampling.max_tokens < 1:
            raise RestillError(f"max_tokens={request.sampling.max_tokens} must be at least 1")
        matcher = self._grammars.matcher(request.grammar) if request.grammar else None
        job = Job(request, min(request.sampling.max_tokens, room), matcher, on_text)
        with self._wake:
            if self._closed:
                raise RestillError("the engine is closed; make a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="restill-engine", daemon=True)
                self._thread.start()
                # A thread inside XLA at interpreter exit aborts the process.
                atexit.register(_close_at_exit, weakref.ref(self))
            self._scheduler.waiting.append(job)
            self._wake.notify()
        return job

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run all requests in one batch; results in the order asked."""
        jobs = [self.submit(request) for request in requests]
        try:
            return [job.future.result() for job in jobs]
        finally:
            for job in jobs:
                job.future.cancel()

    async def agenerate(self, request: Request) -> Completion:
        """Like ``generate`` for one request; cancelling the task frees its slot."""
        return await asyncio.wrap_future(self.submit(request).future)

    async def astream(self, request: Request) -> AsyncIterator[str | Completion]:
        """Pieces of text as they are decoded, then the whole completion; leaving early frees the slot."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def send(piece: str | None) -> None:
            # The reader may have left and closed its loop: then nobody listens, and the batch must go on.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        job = self.submit(request, send)
        job.future.add_done_callback(lambda _: send(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield job.future.result()
        finally:
            job.future.cancel()

    def score(self, prompt: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
        """Raw log-probabilities (temperature 1, untruncated) of ``continuation`` after ``prompt``, f32.

        Raises:
            RestillError: empty prompt, or both together exceed max_context.
        """
        total = len(prompt) + len(continuation)
        if not prompt or total > self.max_context:
            raise RestillError(
                f"cannot score {len(continuation)} tokens after {len(prompt)}: "
                f"the prompt must not be empty and both together fit max_context={self.max_context}"
            )
        if not continuation:
            return np.zeros(0, np.float32)
        length, count = (max(32, 1 << (n - 1).bit_length()) for n in (total, len(continuation)))
        tokens = runner.pad_to([*prompt, *continuation], length)
        logprobs = runner.score(self.config, self.params, tokens, count, np.int32(len(prompt)))
        return np.asarray(logprobs)[: len(continuation)]

    async def ascore(self, prompt: Sequence[int], continuation: Sequence[int]) -> np.ndarray:
        """``score`` off the event loop."""
        return await asyncio.to_thread(self.score, prompt, continuation)

    @property
    def compilations(self) -> int:
        """Programs compiled so far in this process, over all engines."""
        programs = (runner.prefill, runner.decode, runner.copy_slot, runner.clear_slot, runner.score)
        return sum(program._cache_size() for program in programs)

    @property
    def occupancy(self) -> float:
        """Share of slots that were decoding, averaged over the steps so far."""
        return self.tokens_decoded / max(1, self.steps * len(self._scheduler.table.slots))

    def close(self) -> None:
        """Stop the worker and free the cache; what still runs is cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._cache = self._newest = self._flight = None

    # -- working (the worker thread only) --------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                while self._scheduler.idle and not self._closed:
                    self._wake.wait()
                if self._closed:
                    break
            try:
                with self._wake:  # submit appends to the queue that these read
                    over = self._scheduler.over()
                    for job, _ in over:
                        self._scheduler.remove(job)
                    work = list(self._scheduler.prefill())
                for job, reason in over:
                    job.finish(reason, self.tokenizer)
                self._prefill(work)
                self._step()
            except Exception as error:  # the batch is lost, the engine is not
                self._fail(error)
        for job in self._scheduler.jobs:
            job.finish("cancelled", self.tokenizer)

    def _prefill(self, work: Sequence[Fork | Chunk]) -> None:
        if not work and self._cache is not None:
            return
        self._reserve()
        for item in work:
            if isinstance(item, Fork):
                self._cache = runner.copy_slot(self._cache, item.source, item.target)
            else:
                tokens = runner.pad_to(item.tokens, item.width)
                self._cache = runner.prefill(
                    self.config, self.params, self._cache, tokens, np.int32(item.slot), np.int32(item.start)
                )
                self.tokens_prefilled += len(item.tokens)

    def _reserve(self) -> None:
        """Make the cache long enough for everybody in it."""
        slots = len(self._scheduler.table.slots)
        most = max((len(j.request.prompt) + j.max_tokens for j in self._scheduler.running.values()), default=0)
        context = next((c for c in CONTEXTS if c >= most + _MARGIN), self.max_context + _MARGIN)
        if self._cache is None:
            self._cache = runner.new_cache(self.config, slots, context, dtype_of(self.precision))
            self._newest = jnp.zeros(slots, jnp.int32)
        elif self._cache[0][1].shape[2] < context:
            self._cache = runner.grow_cache(self._cache, context)

    def _step(self) -> None:
        """Start a decode step, then read the one before: the host works while the device does.

        A grammar decides on the host what may come next, so a step with one waits for the step before it.
        """
        if any(job.matcher is not None for job in self._scheduler.running.values()):
            self._collect()
        ahead = self._dispatch(self._scheduler.rows())
        self._collect()
        self._flight = ahead

    def _dispatch(self, jobs: dict[int, Job]) -> Flight | None:
        if not jobs:
            return None
        batch = next(b for b in self._rows if b > max(jobs))
        fresh, lengths, rules = step_inputs(jobs, self._scheduler.table.slots[:batch], self.config.vocab_size)
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
                    self._scheduler.remove(job)
                job.fail(RestillError("the model's logits are not numbers (NaN); its weights or adapter are damaged"))
                continue
            job.slot.tokens.append((job.tokens or job.request.prompt)[-1])
            reason = job.accept(tokens[row], raw[row], sampled[row], self.tokenizer)
            if reason is not None:
                self._end(job, reason)

    def _end(self, job: Job, reason: FinishReason) -> None:
        with self._wake:
            self._scheduler.remove(job)
        job.finish(reason, self.tokenizer)

    def _fail(self, error: Exception) -> None:
        """The donated cache may be gone: start over with an empty one and tell everyone who was in it."""
        with self._wake:
            lost, waiting = list(self._scheduler.running.values()), self._scheduler.waiting
            self._scheduler = Scheduler(len(self._scheduler.table.slots))
            self._scheduler.waiting = waiting
        self._cache = self._newest = self._flight = None
        for job in lost:
            job.fail(error)


def _close_at_exit(engine: weakref.ref[Engine]) -> None:
    if (alive := engine()) is not None:
        alive.close()
