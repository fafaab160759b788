"""The engine: requests from any thread or event loop share one running batch.

This half checks and queues them and hands results back; a thread runs the other (:mod:`restill.models.engine.worker`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jax import Array

from ..config import DecoderConfig
from ..errors import RestillError
from ..tokenizer import Tokenizer
from . import runner
from .adapters import Adapters
from .draft import check_draft
from .grammar import GrammarCompiler
from .job import Job
from .model import CachedModel
from .precision import Precision, check_shapes, dtype_of, resolve, serving_params
from .request import Completion, Request, check_request
from .shapes import Shapes
from .stats import Stats
from .worker import Worker


class Engine:
    """Batched generation over one set of parameters.

    Args:
        params: canonical flat parameters (``decoder.param_shapes``).
        slots: sequences decoded together. max_context: most tokens of prompt and output together.
        speculate: guess tokens that were seen before and check several a step where that pays; changes no result.
        draft: a smaller model with the same tokenizer, ``(config, params)``, that guesses too; changes no result.
        deterministic: a request's tokens and log-probabilities are the same bits whatever else runs, waits or is
            cached (of one machine, model and set of loaded adapters); slower, since a step computes all slots.
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
        speculate: bool = True,
        draft: tuple[DecoderConfig, Mapping[str, Any]] | None = None,
        deterministic: bool = False,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.max_context = min(max_context, config.max_positions)
        self.precision: Precision = resolve(precision)
        self.params = serving_params(config, params, tokenizer, self.precision)
        self._grammars = GrammarCompiler(tokenizer, config.vocab_size)
        self._wake = threading.Condition()
        self._shapes = Shapes(slots, self.max_context, deterministic)
        dtype, small = dtype_of(self.precision), None
        if draft:
            check_draft(config, draft[0], deterministic)
            small = CachedModel(draft[0], serving_params(*draft, tokenizer, self.precision), self._shapes, dtype)
        model = CachedModel(config, self.params, self._shapes, dtype)
        adapters = Adapters(config, dtype)
        self._worker = Worker(model, small, tokenizer, adapters, self._shapes, self._wake, speculate)
        self._thread: threading.Thread | None = None

    # -- asking ---------------------------------------------------------------------------------------------

    def submit(self, request: Request, on_text: Callable[[str], None] | None = None) -> Job:
        """Queue a request; its ``future`` resolves to a ``Completion``. ``on_text`` gets text pieces as they come.

        Raises:
            RestillError: empty or too long a prompt, a token outside the vocabulary, a value of the wrong kind or out
                of its range, an unusable grammar.
        """
        prompt, room = request.prompt, self.max_context - len(request.prompt)
        if not prompt:
            raise RestillError("the prompt is empty; give at least one token")
        if room < 1:
            raise RestillError(
                f"the prompt has {len(prompt)} tokens and max_context is {self.max_context}; "
                f"shorten it to at most {self.max_context - 1} tokens or raise max_context"
            )
        self._check_tokens(prompt)
        check_request(request)
        matcher = self._grammars.matcher(request.grammar) if request.grammar else None
        job = Job(request, min(request.sampling.max_tokens, room), matcher, on_text)
        self._enqueue(job)
        return job

    def load_adapter(self, name: str, leaves: Mapping[str, Any], alpha: float) -> None:
        """Serve LoRA ``leaves`` (``lora.load_peft``) to requests with ``adapter=name``, beside all others.

        Raises:
            RestillError: the name is taken, or the leaves do not fit the model.
        """
        with self._wake:
            self._worker.adapters.load(name, leaves, alpha)
            self._programs_change()

    def unload_adapter(self, name: str) -> None:
        """Take an adapter away.

        Raises:
            RestillError: unknown name, or requests still use it.
        """
        with self._wake:
            loaded = self._worker.adapters.get(name)
            if users := sum(job.adapter is loaded for job in self._worker.scheduler.jobs):
                raise RestillError(f"adapter {name!r} is in use by {users} requests; wait for them or cancel them")
            self._worker.adapters.unload(name)
            self._programs_change()

    def _programs_change(self) -> None:
        if self._shapes.deterministic:  # what other programs have computed may differ in its last bit
            self._worker.scheduler.table.forget()

    def warmup(self) -> None:
        """Compile all that requests may need, at full context; later ones compile nothing until adapters change.

        It takes minutes the first time, and other threads' requests wait.

        Raises:
            RestillError: requests are waiting or running, or the engine is closed.
        """
        with self._worker.idle("warmup"):
            self._awake()
            self._worker.warm()

    def update(self, params: Mapping[str, Any]) -> None:
        """Serve other parameters of the same shapes, such as those just trained, in place of the old ones.

        Nothing is compiled and the old ones are not kept; the cache is dropped, adapters stay loaded.

        Args:
            params: canonical flat parameters.

        Raises:
            RestillError: other shapes, requests are waiting or running, or the engine is closed.
        """
        check_shapes(self.config, params)
        with self._worker.idle("update"):
            self._replace({})  # first, so that there are never two
            self._replace(serving_params(self.config, params, self.tokenizer, self.precision))

    def rest(self) -> None:
        """Free cache and parameters (``params`` is empty) until ``update``; what still runs is cancelled.

        Raises:
            RestillError: the engine is closed.
        """
        with self._wake:
            for job in self._worker.scheduler.jobs:
                job.future.cancel()
        with self._worker.idle("rest"):
            self._replace({})

    def _replace(self, params: dict[str, Array]) -> None:
        self.params = params
        self._worker.replace(params)

    def _awake(self) -> None:
        if not self.params:
            raise RestillError("the engine rests; bring parameters with update()")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not 0 <= min(tokens) <= max(tokens) < self.config.vocab_size:
            raise RestillError(f"the prompt holds a token id outside 0..{self.config.vocab_size - 1}")

    def _enqueue(self, job: Job) -> None:
        with self._wake:
            if self._worker.closed:
                raise RestillError("the engine is closed; make a new one")
            self._awake()
            job.adapter = self._worker.adapters.get(job.request.adapter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._worker.run, name="restill-engine", daemon=True)
                self._thread.start()
                # Also at interpreter exit: a thread inside XLA would abort the process.
                weakref.finalize(self, self._worker.stop, self._thread)
            self._worker.scheduler.waiting.append(job)
            self._wake.notify_all()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Run all requests in one batch; results in the order asked."""
        return self._results(self.submit(request) for request in requests)

    @staticmethod
    def _results(asked: Iterable[Job]) -> list[Completion]:
        """What all jobs came to; where one is refused or fails, the others are cancelled."""
        jobs = list[Job]()
        try:
            for job in asked:
                jobs.append(job)  # noqa: PERF402  # each at once: the next may be refused
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

    def score(self, prompt: Sequence[int], continuation: Sequence[int], adapter: str | None = None) -> np.ndarray:
        """Raw log-probabilities (temperature 1, untruncated) of ``continuation`` after ``prompt``, f32.

        Raises:
            RestillError: empty prompt, or both together exceed max_context.
        """
        return self.score_many([(prompt, continuation)], adapter)[0]

    def score_many(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None = None
    ) -> list[np.ndarray]:
        """``score`` of many (prompt, continuation); what prompts share is computed once."""
        found = self._results(self._submit_score(*pair, adapter) for pair in pairs)
        return [np.array(completion.logprobs, np.float32) for completion in found]

    async def ascore(
        self, prompt: Sequence[int], continuation: Sequence[int], adapter: str | None = None
    ) -> np.ndarray:
        """``score`` for asynchronous code."""
        completion = await asyncio.wrap_future(self._submit_score(prompt, continuation, adapter).future)
        return np.array(completion.logprobs, np.float32)

    def _submit_score(self, prompt: Sequence[int], continuation: Sequence[int], adapter: str | None) -> Job:
        whole = (*prompt, *continuation)
        if not prompt or len(whole) > self.max_context:
            raise RestillError(
                f"cannot score {len(continuation)} tokens after {len(prompt)}: "
                f"the prompt must not be empty and both together fit max_context={self.max_context}"
            )
        self._check_tokens(whole)
        job = Job(Request(prompt=whole, adapter=adapter), 0, None, scored=len(prompt))
        if continuation:
            self._enqueue(job)
        else:
            job.finish("stop", self.tokenizer)
        return job

    @property
    def compilations(self) -> int:
        """Programs compiled so far in this process, over all engines."""
        return runner.compilations()

    @property
    def running(self) -> int:
        """Requests that hold a slot now."""
        return len(self._worker.scheduler.running)

    def stats(self) -> Stats:
        """What it has done so far; subtract an earlier one for what was done since."""
        worker = self._worker
        return Stats(
            steps=worker.steps,
            rows=worker.rows_run,
            places=worker.steps * self._shapes.slots,
            prefilled=worker.tokens_prefilled,
            decoded=worker.tokens_decoded,
            guessed=worker.guesser.guessed,
            kept=worker.guesser.kept,
        )

    @property
    def speculate(self) -> bool:
        """Whether tokens are guessed and checked; may be switched at any time."""
        return self._worker.guesser.on

    @speculate.setter
    def speculate(self, on: bool) -> None:
        self._worker.guesser.on = on and not self._shapes.deterministic

    def forget(self) -> None:
        """Drop what earlier requests left in the cache; those that run are not touched."""
        with self._wake:
            self._worker.scheduler.table.forget()

    def close(self) -> None:
        """Stop the worker and free the cache; what still runs is cancelled."""
        self._worker.stop(self._thread)
