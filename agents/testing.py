"""Test doubles: a model that says what a test wants, and a tokenizer of bytes. No weights, no download."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..models.engine.request import Completion, Request
from ..retrieval.types import Chunk, Hit, content_hash
from .model import Adapter, ChatTokenizer
from .protocol import write_turn

Reply = str | Completion | Exception
Script = Sequence[Reply] | Callable[[str, Request], Reply]


def call(tool: str, thought: str = "I look it up.", **arguments: Any) -> str:
    """A turn that calls a tool: ``call("search", query="Ada birthplace")``."""
    return write_turn(thought, tool, arguments)


def answer(text: str, *citations: int, thought: str = "I know it.") -> str:
    """A turn that ends the run: ``answer("London", 1, 3)``."""
    return write_turn(thought, "finish", {"answer": text, "citations": list(citations)})


def make_hit(doc_id: str, title: str, text: str, start: int = 0) -> Hit:
    """A hit over ``text``, as a search would give it."""
    chunk = Chunk(
        chunk_id=f"{doc_id}:{start}",
        doc_id=doc_id,
        title=title,
        text=text,
        start=start,
        end=start + len(text),
        content_hash=content_hash(title, text),
    )
    return Hit(chunk=chunk, score=0.5)


class ByteTokenizer:
    """The interface of ``models.tokenizer.Tokenizer``: one token a byte, three control tokens, ChatML."""

    special_tokens: Mapping[str, int] = {"<|im_start|>": 256, "<|im_end|>": 257, "<|endoftext|>": 258}
    vocab_size = 259
    eos_id = 257
    eos_ids: tuple[int, ...] = (257, 258)
    pad_id = 258
    special_ids: frozenset[int] = frozenset({256, 257, 258})
    fingerprint = "bytes"

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """UTF-8 bytes; with ``special``, control tokens become their ids."""
        if not special:
            return list(text.encode("utf-8", "replace"))
        for name, token in self.special_tokens.items():
            if name in text:
                before, after = text.split(name, 1)
                return [*self.encode(before, special=True), token, *self.encode(after, special=True)]
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text; bytes that are no UTF-8 become U+FFFD."""
        out = bytearray()
        for token in ids:
            if token < 256:
                out.append(token)
            elif not skip_special:
                out += self.token_bytes(token)
        return out.decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token."""
        if id < 256:
            return bytes([id])
        return list(self.special_tokens)[id - 256].encode()

    def chat(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True) -> list[int]:
        """ChatML."""
        ids: list[int] = []
        for message in messages:
            ids += self.encode(f"<|im_start|>{message['role']}\n", special=True) + self.encode(message["content"])
            ids += self.encode("<|im_end|>\n", special=True)
        return ids + self.encode("<|im_start|>assistant\n", special=True) if add_generation_prompt else ids

    def continue_chat(self, assistant_ids: Sequence[int], messages: Sequence[Mapping[str, str]]) -> list[int]:
        """What follows a sampled turn."""
        closed = bool(assistant_ids) and assistant_ids[-1] == self.eos_id
        return self.encode("\n" if closed else "<|im_end|>\n", special=True) + self.chat(messages)


class ScriptedModel:
    """A token model that follows a script; re-entrant, since a reply depends on the request alone.

    Args:
        script: replies by turn (the last one is repeated), or a function of (decoded prompt, request). A
            reply is the text of a turn, a whole ``Completion``, or an exception to raise.
        latency: seconds each reply takes.

    Attributes:
        requests: every request so far.
    """

    def __init__(
        self,
        script: Script,
        *,
        tokenizer: ChatTokenizer | None = None,
        name: str = "scripted",
        fingerprint: str = "scripted",
        adapter: Adapter | None = None,
        max_context: int = 1_000_000,
        latency: float = 0.0,
    ) -> None:
        self._script = script
        self.tokenizer: Any = tokenizer or ByteTokenizer()
        self.name = name
        self.fingerprint = fingerprint
        self.adapter = adapter
        self.max_context = max_context
        self.latency = latency
        self.requests: list[Request] = []

    async def agenerate_tokens(self, request: Request) -> Completion:
        """The scripted reply as tokens, closed by the end-of-turn token unless ``max_tokens`` cuts it."""
        started = time.monotonic()
        self.requests.append(request)
        if request.deadline is not None and started >= request.deadline:
            return Completion(tokens=(), text="", logprobs=(), sampled_logprobs=(), finish_reason="deadline")
        if self.latency:
            await asyncio.sleep(self.latency)
        reply = self._reply(request)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Completion):
            return reply
        ids = [*self.tokenizer.encode(reply), self.tokenizer.eos_ids[0]]
        cut = len(ids) > request.sampling.max_tokens
        ids = ids[: request.sampling.max_tokens]
        logprobs = tuple(_logprob(request.seed, place, token) for place, token in enumerate(ids))
        return Completion(
            tokens=tuple(ids),
            text=self.tokenizer.decode(ids, skip_special=True),
            logprobs=logprobs,
            sampled_logprobs=logprobs,
            finish_reason="length" if cut else "stop",
            cached=0,
            seconds=time.monotonic() - started,
        )

    def _reply(self, request: Request) -> Reply:
        if callable(self._script):
            return self._script(self.tokenizer.decode(request.prompt), request)
        return self._script[min(self.turn(request.prompt), len(self._script) - 1)]

    def turn(self, prompt: Sequence[int]) -> int:
        """Which turn of the run a prompt asks for, counted by the end tokens since the question."""
        turns: list[list[int]] = [[]]
        for token in prompt:
            if token in self.tokenizer.eos_ids:
                turns.append([])
            else:
                turns[-1].append(token)
        heads = [self.tokenizer.decode(turn)[:40] for turn in turns]
        asked = max(
            (n for n, head in enumerate(heads) if "Question: " in head and "Observation: " not in head),
            default=0,
        )
        return (len(turns) - 2 - asked) // 2


def _logprob(seed: int, place: int, token: int) -> float:
    digest = hashlib.blake2b(f"{seed}/{place}/{token}".encode(), digest_size=2).digest()
    return -int.from_bytes(digest, "big") / 65536 * 3
