"""The engine: requests from any thread or event loop share one running batch.

A worker thread owns the device: it admits waiting requests into free slots, prefills what the slot does not
remember yet, and decodes one token for all running slots per step. Requests join and leave between steps.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..config import DecoderConfig
from ..errors import RestillError
from ..tokenizer import Tokenizer
from . import runner
from .grammar import GrammarCompiler, mask_rows
from .job import Job
from .precision import Precision, dtype_of, resolve, serving_params
from .request import Completion, FinishReason, Request
from .slots import SlotTable

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
        self._table = SlotTable(slots)
        self._cache: runner.Cache | None = None
        self._grammars = GrammarCompiler(tokenizer, config.vocab_size)
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}
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
            self._waiting.append(job)
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
        return sum(f._cache_size() for f in (runner.prefill, runner.decode, runner.copy_slot, runner.score))

    @property
    def occupancy(self) -> float:
        """Share of slots that were decoding, averaged over the steps so far."""
        return self.tokens_decoded / max(1, self.steps * len(self._table.slots))

    def close(self) -> None:
        """Stop the worker and free the cache; what still runs is cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        self._cache = None

    # -- working (the worker thread only) --------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._running or self._closed):
                    self._wake.wait()
                if self._closed:
                    break
            try:
                self._admit()
                self._drop_finished()
                if self._running:
                    self._step()
            except Exception as error:  # the batch is lost, the engine is not
                self._fail(error)
        for job in [*self._running.values(), *self._waiting]:
            job.finish("cancelled", self.tokenizer)

    def _admit(self) -> None:
        while self._waiting:
            job = self._waiting[0]
            if self._over(job) is not None:
                self._waiting.popleft()
                self._end(job, self._over(job) or "cancelled")
                continue
            placement = self._table.place(job.request.prompt)
            if placement is None:
                return
            self._waiting.popleft()
            job.slot, job.cached = placement.slot, placement.shared
            self._running[placement.slot.index] = job
            self._reserve(len(job.request.prompt) + job.max_tokens + _MARGIN)
            if placement.source is not None:
                self._cache = runner.copy_slot(self._cache, placement.source.index, placement.slot.index)
            self._prefill(job)

    def _reserve(self, tokens: int) -> None:
        context = next((c for c in CONTEXTS if c >= tokens), self.max_context + _MARGIN)
        if self._cache is None:
            self._cache = runner.new_cache(self.config, len(self._table.slots), context, dtype_of(self.precision))
        elif self._cache[0][1].shape[2] < context:
            self._cache = runner.grow_cache(self._cache, context)

    def _prefill(self, job: Job) -> None:
        """Everything but the prompt's last token, which the first decode step feeds."""
        slot, todo = job.slot, job.request.prompt[job.cached : -1]
        assert slot is not None and self._cache is not None
        for width in runner.chunk_widths(len(todo)):
            start, chunk = len(slot.tokens), todo[:width]
            tokens = runner.pad_to(chunk, width)
            self._cache = runner.prefill(
                self.config, self.params, self._cache, tokens, np.int32(slot.index), np.int32(start)
            )
            slot.tokens.extend(chunk)
            todo = todo[width:]
            self.tokens_prefilled += len(chunk)

    def _step(self) -> None:
        highest = max(self._running)
        rows = next(b for b in self._rows if b > highest)
        jobs = [self._running.get(row) for row in range(rows)]
        last = [0 if job is None else (job.tokens or job.request.prompt)[-1] for job in jobs]
        lengths = [len(slot.tokens) for slot in self._table.slots[:rows]]
        rules = self._rules(jobs)
        self._cache, drawn = runner.decode(
            self.config, self.params, self._cache, np.array(last, np.int32), np.array(lengths, np.int32), rules
        )
        tokens, raw, sampled = (np.asarray(part).tolist() for part in drawn)
        self.steps += 1
        for row, job in enumerate(jobs):
            if job is not None and job.slot is not None:
                self.tokens_decoded += 1
                job.slot.tokens.append(last[row])
                reason = job.accept(tokens[row], raw[row], sampled[row], self.tokenizer)
                if reason is not None:
                    self._end(job, reason)

    def _rules(self, jobs: list[Job | None]) -> dict[str, Any]:
        samplings = [None if job is None else job.request.sampling for job in jobs]
        rules: dict[str, Any] = {
            "bits": mask_rows([None if job is None else job.matcher for job in jobs], self.config.vocab_size),
            "seeds": np.array([0 if job is None else job.request.seed & 0x7FFFFFFF for job in jobs], np.int32),
            "positions": np.array([0 if job is None else len(job.tokens) for job in jobs], np.int32),
            "temperature": np.array([s.temperature if s else 0.0 for s in samplings], np.float32),
            "top_k": None,
            "top_p": None,
        }
        if any(s and (s.top_k > 0 or s.top_p < 1) for s in samplings):
            rules["top_k"] = np.array([s.top_k if s else 0 for s in samplings], np.int32)
            rules["top_p"] = np.array([s.top_p if s else 1.0 for s in samplings], np.float32)
        return rules

    def _over(self, job: Job) -> FinishReason | None:
        if job.future.cancelled():
            return "cancelled"
        late = job.request.deadline is not None and time.monotonic() > job.request.deadline
        return "deadline" if late else None

    def _drop_finished(self) -> None:
        for job in list(self._running.values()):
            if reason := self._over(job):
                self._end(job, reason)

    def _end(self, job: Job, reason: FinishReason) -> None:
        if job.slot is not None:
            self._running.pop(job.slot.index, None)
            self._table.release(job.slot)
        job.finish(reason, self.tokenizer)

    def _fail(self, error: Exception) -> None:
        """The donated cache may be gone: start over with an empty one and tell everyone who was in it."""
        jobs, self._running = list(self._running.values()), {}
        self._table, self._cache = SlotTable(len(self._table.slots)), None
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)


def _close_at_exit(engine: weakref.ref[Engine]) -> None:
    if (alive := engine()) is not None:
        alive.close()
