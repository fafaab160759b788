"""The trainers that ``benchmarks/training.py`` compares, one per process.

As a program it serves one of them: a JSON request a line on standard input (``{"steps": 3}``), a JSON answer a line on
standard output. Each takes the same packed rows in the same order: forward, backward, clip to norm 1, AdamW.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import psutil

from restill.selftrain.pack import PackedRows, micro_batch
from restill.selftrain.trainer import TrainConfig

RANK, ALPHA, RATE = 16, 32.0, 1e-4


def config_of(method: str, dtype: str, rows: int, length: int) -> TrainConfig:
    """What is trained: all weights with the embeddings, or low-rank leaves on all matmuls."""
    shared: dict[str, Any] = {"lr": RATE, "rows": rows, "row_length": length}
    shared["precision"] = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    if method == "full":
        return TrainConfig(method="full", embeddings=True, **shared)
    return TrainConfig(rank=RANK, alpha=ALPHA, **shared)


class Ours:
    """The inside of ``Trainer.fit``: the same programs, batches made from packed rows in every step."""

    def __init__(self, folder: str, method: str, dtype: str, rows: PackedRows, size: int) -> None:
        from restill.models.checkpoint.load import load_decoder
        from restill.models.home import enable_compile_cache
        from restill.selftrain.steps import TrainSteps
        from restill.selftrain.trainer import Trainer

        enable_compile_cache()
        checkpoint = load_decoder(folder)
        train = config_of(method, dtype, size, rows.tokens.shape[1])
        trainer = Trainer(checkpoint.config, checkpoint.params, train, tokenizer=checkpoint.tokenizer)
        trained, frozen, params = trainer.initial()
        self.rows, self.size = rows, size
        self.steps = TrainSteps(checkpoint.config, train, params, frozen, total=1000)
        self.state = self.steps.place(trained), self.steps.place(self.steps.init(trained))

    def step(self, index: int, part: Any) -> float:
        batch = micro_batch(self.rows, part, self.size)
        self.steps.accumulate(self.state[0], self.steps.lower(batch), batch)
        *state, loss, _ = self.steps.update(*self.state, index)
        self.state = state[0], state[1]
        return loss


class Torch:
    """transformers on torch's CPU backend: SDPA with one mask for the packed rows, logits at loss positions only,
    peft for LoRA, clipping, fused AdamW. The batches are made before the clock starts."""

    def __init__(self, folder: str, method: str, dtype: str, rows: PackedRows, size: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch, self.rows, self.size = torch, rows, size
        torch.manual_seed(0)
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        self.model = AutoModelForCausalLM.from_pretrained(folder, **options)
        self.model.config.use_cache = False
        if method == "lora":
            from peft import LoraConfig, get_peft_model

            names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
            lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)
            self.root = get_peft_model(self.model, lora)  # changes self.model in place
            self.root.train()
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=RATE, weight_decay=0.0, fused=True)
        self.batches: dict[tuple[int, ...], dict[str, Any]] = {}

    def prepare(self, part: Any) -> dict[str, Any]:
        """Tensors of a batch, its mask ``[B, 1, L, L]`` among them."""
        torch, key = self.torch, tuple(part.tolist())
        if key not in self.batches:
            made = micro_batch(self.rows, part, self.size)
            batch = {name: torch.tensor(np.asarray(value)) for name, value in made.items()}
            count, segments = int(batch["count"]), batch["segments"]
            same = segments[:, None, :, None] == segments[:, None, None, :]
            length = segments.shape[1]
            self.batches[key] = {
                "input_ids": batch["tokens"].long(),
                "position_ids": batch["positions"].long(),
                "attention_mask": same & torch.ones(length, length, dtype=torch.bool).tril(),
                "at": batch["at"][:count].long(),
                "ids": batch["ids"][:count, 0].long(),
                "weights": batch["weights"][:count],
            }
        return self.batches[key]

    def step(self, index: int, part: Any) -> float:
        torch, batch = self.torch, self.prepare(part)
        inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask")}
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden.reshape(-1, hidden.shape[-1])[batch["at"]])
        each = torch.nn.functional.cross_entropy(logits.float(), batch["ids"], reduction="none")
        loss = (each * batch["weights"]).sum() / batch["weights"].abs().sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())


def main() -> None:
    """Serve one trainer: ``trainers.py ours|torch FOLDER full|lora DTYPE ROWS.npz ROWS_A_STEP``."""
    kind, folder, method, dtype, packed, size = sys.argv[1:]
    rows = PackedRows(**{name: value for name, value in np.load(packed).items()}, truncated=0)
    trainer: Ours | Torch = {"ours": Ours, "torch": Torch}[kind](folder, method, dtype, rows, int(size))
    parts = [np.arange(i, i + int(size), dtype=np.int32) for i in range(0, len(rows) - int(size) + 1, int(size))]
    if isinstance(trainer, Torch):
        for part in parts:
            trainer.prepare(part)
    print(json.dumps({"seconds": 0.0}), flush=True)
    done = 0
    for line in sys.stdin:
        steps, tokens, losses = json.loads(line)["steps"], 0, []
        began = time.perf_counter()
        for _ in range(steps):
            part = parts[done % len(parts)]
            losses.append(trainer.step(done, part))
            tokens += int((rows.segments[part] >= 0).sum())
            done += 1
        seconds = time.perf_counter() - began
        mib = psutil.Process().memory_info().rss / 2**20
        print(json.dumps({"seconds": seconds, "tokens": tokens, "loss": losses[0], "mib": mib}), flush=True)


if __name__ == "__main__":
    main()
