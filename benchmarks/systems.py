"""The engines that ``benchmarks/engine.py`` compares, each behind the same four questions, one per process.

As a program it serves one of them: a JSON request a line on standard input, a JSON answer a line on standard output.
Every engine decodes greedily and is given exactly as many tokens as asked; end-of-turn tokens do not stop it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import psutil

from restill.models.engine.slots import common_prefix

Tokens = Sequence[int]
Transcript = list[tuple[list[int], list[int]]]
"""Per agent step: the whole prompt, and what the model wrote."""


class System(Protocol):
    """One engine."""

    def prefill(self, prompt: Tokens) -> None:
        """Compute ``prompt``, of which nothing is cached, and draw one token."""
        ...

    def decode(self, prompts: Sequence[Tokens], count: int) -> float:
        """Seconds to decode ``count`` further tokens for each of ``prompts`` together, their prefill not counted."""
        ...

    def replay(self, transcripts: Sequence[Transcript], together: int, **options: Any) -> dict[str, float]:
        """Answer every step of every transcript, ``together`` transcripts at a time.

        Returns ``seconds`` and, where the engine can tell, ``computed``: prompt tokens that were not in its cache.
        """
        ...


class Ours:
    """restill's engine, with 32 slots; a deterministic one, which always computes all of them, with 8."""

    def __init__(
        self, model: str, precision: str, adapter: str | None, warm: str | None = None, steady: str | None = None
    ) -> None:
        from pathlib import Path

        from restill.models.checkpoint.load import load_decoder
        from restill.models.engine.engine import Engine
        from restill.models.home import enable_compile_cache
        from restill.models.lora import load_peft, merge

        enable_compile_cache()
        checkpoint = load_decoder(model)
        params: Any = checkpoint.params
        if adapter:
            loaded = load_peft(Path(adapter))
            params = merge(params, loaded.leaves, alpha=loaded.alpha)
        self.engine = Engine(
            checkpoint.config, params, checkpoint.tokenizer, max_context=1536, precision=precision,  # type: ignore[arg-type]
            slots=8 if steady else 32, deterministic=bool(steady),
        )  # fmt: skip
        if warm:
            self.engine.warmup()

    def _request(self, prompt: Tokens, count: int, grammar: str | None = None) -> Any:
        from restill.models.engine.request import Request, Sampling

        sampling = Sampling(max_tokens=count, ignore_eos=True)
        return Request(prompt=tuple(prompt), sampling=sampling, grammar=grammar)

    def prefill(self, prompt: Tokens) -> None:
        self.engine.generate([self._request(prompt, 1)])

    def decode(self, prompts: Sequence[Tokens], count: int, grammar: str | None = None) -> float:
        self.engine.speculate = False
        self.engine.generate([self._request(p, 1, grammar) for p in prompts])  # now only the last token is to be fed
        began = time.perf_counter()
        done = self.engine.generate([self._request(p, count, grammar) for p in prompts])
        assert all(len(c.tokens) == count for c in done)
        return time.perf_counter() - began

    def replay(self, transcripts: Sequence[Transcript], together: int, *, speculate: bool = True) -> dict[str, float]:
        self.engine.speculate = speculate

        def run(transcript: Transcript) -> None:
            for prompt, output in transcript:
                self.engine.generate([self._request(prompt, len(output))])

        self.engine.forget()
        before, began = self.engine.stats().prefilled, time.perf_counter()
        with ThreadPoolExecutor(together) as pool:
            list(pool.map(run, transcripts))
        return {"seconds": time.perf_counter() - began, "computed": self.engine.stats().prefilled - before}


class Llama:
    """llama.cpp through llama-cpp-python's low-level interface: one context, a sequence per row.

    A replay keeps every sequence's cache between steps and copies the prefix that transcripts share.
    """

    def __init__(self, path: str, sequences: int = 32, context: int = 1024) -> None:
        import llama_cpp

        lib: Any = llama_cpp
        self.lib = lib
        lib.llama_backend_init()
        self._quiet = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._quiet, None)
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = sequences * context, 1024, 512
        params.n_seq_max, params.kv_unified = sequences, True
        params.n_threads = params.n_threads_batch = psutil.cpu_count(logical=True) or 1
        self.context = lib.llama_init_from_model(self.model, params)
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(1024, 0, 1)

    def _run(self, items: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """One batch of (token, position, sequence, wanted); the greedy next token of each wanted one."""
        batch = self.batch
        batch.n_tokens = len(items)
        for i, (token, position, sequence, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if self.lib.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        import numpy as np

        return [
            int(np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.vocab,)).argmax())
            for i, item in enumerate(items)
            if item[3]
        ]

    def _feed(self, sequence: int, tokens: Tokens, start: int) -> int:
        drawn = [0]
        for at in range(0, len(tokens), 512):
            part = tokens[at : at + 512]
            last = at + len(part) == len(tokens)
            drawn = self._run(
                [(t, start + at + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)]
            ) or drawn  # fmt: skip
        return drawn[0]

    def prefill(self, prompt: Tokens) -> None:
        self.lib.llama_memory_clear(self.memory, True)
        self._feed(0, prompt, 0)

    def decode(self, prompts: Sequence[Tokens], count: int) -> float:
        self.lib.llama_memory_clear(self.memory, True)
        newest = [self._feed(row, prompt, 0) for row, prompt in enumerate(prompts)]
        began = time.perf_counter()
        for step in range(count):
            newest = self._run([(newest[row], len(p) + step, row, True) for row, p in enumerate(prompts)])
        return time.perf_counter() - began

    def replay(self, transcripts: Sequence[Transcript], together: int) -> dict[str, float]:
        self.lib.llama_memory_clear(self.memory, True)
        rows: list[dict[str, Any]] = [{"cached": [], "todo": [], "left": 0} for _ in range(together)]
        waiting, computed, began = list(transcripts), 0, time.perf_counter()
        while True:
            for sequence, row in enumerate(rows):
                if row["left"]:
                    continue
                if not row["todo"]:
                    if not waiting:
                        continue
                    row["todo"] = list(waiting.pop(0))
                prompt, output = row["todo"].pop(0)
                donor = max(range(together), key=lambda r: common_prefix(rows[r]["cached"], prompt))
                keep = min(common_prefix(rows[donor]["cached"], prompt), len(prompt) - 1)
                if donor != sequence and keep > common_prefix(row["cached"], prompt):
                    self.lib.llama_memory_seq_rm(self.memory, sequence, 0, -1)
                    self.lib.llama_memory_seq_cp(self.memory, donor, sequence, 0, keep)
                else:
                    self.lib.llama_memory_seq_rm(self.memory, sequence, keep, -1)
                row["newest"] = self._feed(sequence, prompt[keep:], keep)
                row["cached"], row["left"], computed = list(prompt), len(output) - 1, computed + len(prompt) - keep
            active = [(s, row) for s, row in enumerate(rows) if row["left"]]
            if not active and not waiting and not any(row["todo"] for row in rows):
                return {"seconds": time.perf_counter() - began, "computed": computed}
            if active:
                drawn = self._run([(row["newest"], len(row["cached"]), s, True) for s, row in active])
                for token, (_, row) in zip(drawn, active, strict=True):
                    row["cached"].append(row["newest"])
                    row["newest"], row["left"] = token, row["left"] - 1


class Torch:
    """transformers' ``generate`` on torch's CPU backend."""

    def __init__(self, folder: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def _generate(self, prompts: Sequence[Tokens], count: int) -> None:
        width = max(map(len, prompts))
        ids = self.torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = self.torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with self.torch.inference_mode():
            self.model.generate(
                ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
            )

    def prefill(self, prompt: Tokens) -> None:
        self._generate([prompt], 1)

    def decode(self, prompts: Sequence[Tokens], count: int) -> float:
        times = []
        for new in (1, count + 1):
            began = time.perf_counter()
            self._generate(prompts, new)
            times.append(time.perf_counter() - began)
        return times[1] - times[0]

    def replay(self, transcripts: Sequence[Transcript], together: int) -> dict[str, float]:
        began = time.perf_counter()
        for at in range(0, len(transcripts), together):
            group = transcripts[at : at + together]
            for step in range(max(map(len, group))):
                asked = [t[step] for t in group if step < len(t)]
                self._generate([p for p, _ in asked], max(len(o) for _, o in asked))
        return {"seconds": time.perf_counter() - began}


def _timed(system: System, prompt: Tokens) -> float:
    began = time.perf_counter()
    system.prefill(prompt)
    return time.perf_counter() - began


def main(kind: str, *where: str) -> None:
    """Serve one engine until standard input ends."""
    out, sys.stdout = sys.stdout, sys.stderr
    began = time.perf_counter()
    system: Any = {"ours": Ours, "llama": Llama, "torch": Torch}[kind](*(w or None for w in where))
    print(json.dumps({"seconds": time.perf_counter() - began}), file=out, flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        what, arguments = ask.pop("what"), ask
        if what == "prefill":
            answer: Any = {"seconds": _timed(system, **arguments)}
        elif what == "decode":
            answer = {"seconds": system.decode(**arguments)}
        elif what == "replay":
            answer = system.replay(**arguments)
        else:
            answer = {"mib": psutil.Process().memory_info().rss / 2**20}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
