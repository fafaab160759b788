"""The trainer: a mixture in, an adapter (or a model) out; killed at any time, it ends with the same bits."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import jax
import numpy as np

from ..models.config import DecoderConfig
from ..models.decoder import MATMULS
from ..models.errors import RestillError
from ..models.home import enable_compile_cache
from ..models.lora import find_adapter, init_lora, load_peft, merge, save_peft
from .checkpoint import Checkpoints
from .files import hash_json, read_json, write_json
from .loss_log import LossLog
from .mixture import Mixture
from .pack import PAD, PackedRows, epoch_order, micro_batch, pack
from .plain import NEWER
from .progress import Meter
from .steps import TrainSteps

if TYPE_CHECKING:
    from ..models.tokenizer import Tokenizer
    from .teacher import TeacherTargets


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    The defaults suit a hundred or so trajectories: many small steps beat few large ones (docs/first_light.md).
    Only ``rows``, ``row_length``, ``rank``, ``frozen_layers``, ``method`` and ``precision`` shape the compiled program.

    Attributes:
        method: low-rank leaves, or all matmuls and norms above ``frozen_layers``.
        embeddings: with ``method="full"``: train the embedding too, and the head where that is a weight of its own.
        precision: "bf16" rounds the factors of all matmuls (``models/mixed.py``): up to 1.8 times as fast on CPUs with
            bf16 instructions (``avx512_bf16`` or ``amx_bf16`` in ``/proc/cpuinfo``), slow on others. What is trained,
            sums, norms, softmax and optimiser stay f32.
        rank, alpha: LoRA (Hu et al. 2106.09685); the update is scaled by ``alpha / rank``.
        lr: peak rate; linear ``warmup`` (share of all steps), then cosine to a tenth.
        rows, row_length: a micro batch is ``[rows, row_length]`` tokens; memory grows with it.
        accumulate: micro batches per optimiser step.
        frozen_layers: lower layers that stay as they are; their hidden states are computed once and kept in
            memory when ``cache_gb`` allows, and no backward pass enters them.
        checkpoint_seconds, checkpoint_steps: save when either is reached (0 steps: by time only).
    """

    method: Literal["lora", "full"] = "lora"
    embeddings: bool = False
    rank: int = 16
    alpha: float = 32.0
    lr: float = 2e-3
    epochs: int = 2
    rows: int = 1
    row_length: int = 1024
    accumulate: int = 1
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    frozen_layers: int = 0
    cache_gb: float = 4.0
    precision: Literal["f32", "bf16"] = field(default="f32", metadata={NEWER: "f32"})
    seed: int = 0
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "rows", "row_length", "accumulate"):
            if getattr(self, name) < 1:
                raise RestillError(f"{name}={getattr(self, name)} must be at least 1")
        if self.method not in ("lora", "full"):
            raise RestillError(f"method={self.method!r} is unknown; use 'lora' or 'full'")
        if self.precision not in ("f32", "bf16"):
            raise RestillError(f"precision={self.precision!r} is unknown; use 'f32' or 'bf16'")
        if self.embeddings and (self.method != "full" or self.frozen_layers):
            raise RestillError(
                f"embeddings=True with method={self.method!r} and frozen_layers={self.frozen_layers}: "
                "they are trained by method='full' with frozen_layers=0"
            )
        if self.lr <= 0 or self.clip <= 0 or not 0 <= self.warmup < 1:
            raise RestillError(f"lr={self.lr} and clip={self.clip} must be positive, warmup={self.warmup} in [0, 1)")

    def recipe(self) -> dict[str, Any]:
        """What decides the result, to the last bit: all but how often to save.

        A knob that is newer than the first runs is left out at its default, so that those can go on.
        """
        newer = {name for name in ("embeddings", "precision") if getattr(self, name) == getattr(TrainConfig, name)}
        aside = {"checkpoint_seconds", "checkpoint_steps"} | newer
        return {k: v for k, v in asdict(self).items() if k not in aside}


class Trainer:
    """Trains a decoder on mixtures.

    Args:
        config: shape of the decoder.
        params: its canonical leaves, f32.
        train: the knobs.
        start: an adapter (folder or name) to continue from; ``None``: a fresh one.
        tokenizer: written beside the weights by ``method="full"``.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Mapping[str, Any],
        train: TrainConfig | None = None,
        *,
        start: str | Path | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.config, self.params, self.train = config, params, train or TrainConfig()
        self.tokenizer = tokenizer
        self.start = None if start is None else load_peft(find_adapter(start))
        if not 0 <= self.train.frozen_layers < config.num_layers:
            raise RestillError(
                f"frozen_layers={self.train.frozen_layers}: the model has {config.num_layers} layers; "
                "leave one to train"
            )
        if self.train.method == "lora" and self.start is not None:
            rank, alpha = self.start.rank, self.start.alpha
            if (rank, alpha) != (self.train.rank, self.train.alpha):
                raise RestillError(
                    f"the adapter to continue from has rank={rank}, alpha={alpha}, "
                    f"the configuration rank={self.train.rank}, alpha={self.train.alpha}; make them equal"
                )
        if self.train.method == "full" and tokenizer is None:
            raise RestillError("method='full' writes a whole model: give Trainer the tokenizer")

    def fit(
        self,
        mixture: Mixture,
        *,
        out: str | os.PathLike[str],
        teacher: TeacherTargets | None = None,
        manifest: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> Path:
        """Train, or go on where a killed run stopped, and return ``out``.

        ``out`` appears when it is complete: an adapter folder, or a model folder for ``method="full"``, with
        ``manifest.json`` and ``train_log.jsonl``. Until then the state lies in ``<out>.training``.

        Args:
            teacher: what to learn at each weighted position of ``mixture``, instead of its token.

        Raises:
            RestillError: ``out`` or its unfinished state belongs to another mixture or recipe, or ``teacher`` to
                another mixture.
        """
        out = Path(out)
        identity = self._identity(mixture)
        if teacher is not None:
            teacher.check(mixture, self.train.row_length)
            identity["teacher"] = teacher.fingerprint
        if out.is_dir():
            _check_same(out, (read_json(out / "manifest.json") or {}).get("training"), identity)
            return out
        work = out.with_name(out.name + ".training")
        if (saved := read_json(work / "identity.json")) is not None:
            _check_same(work, saved, identity)
        write_json(work / "identity.json", identity)
        rows = pack(mixture, self.train.row_length)
        enable_compile_cache()
        leaves, summary = self._run(rows, teacher, work, progress)
        facts = {
            **(manifest or {}),
            "training": identity,
            "examples": len(mixture),
            "tokens": mixture.tokens,
            "targets": mixture.targets,
            "truncated": rows.truncated,
            "fill": round(rows.fill, 4),
            **summary,
        }
        self.export(leaves, out, work, facts)
        return out

    def _identity(self, mixture: Mixture) -> dict[str, Any]:
        return {
            "mixture": mixture.fingerprint,
            "recipe": self.train.recipe(),
            "start": None if self.start is None else self.start.info.hash,
            "model": hash_json(self.config.to_hf()),
        }

    def initial(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """(trained leaves, frozen LoRA leaves, parameters to run on)."""
        train, config = self.train, self.config
        upper = range(train.frozen_layers, config.num_layers)
        given = {} if self.start is None else dict(self.start.leaves)
        if train.method == "full":
            params = dict(self.params)
            if self.start is not None:
                params = merge(params, given, alpha=self.start.alpha)
            names = [f"layers.{i}.{m}" for i in upper for m in (*MATMULS, "attn_norm", "mlp_norm")] + ["norm"]
            if train.embeddings:
                names += [name for name in ("embed", "lm_head") if name in params]
            return {n: np.asarray(params[n], np.float32) for n in names}, {}, params
        fresh = init_lora(config, rank=train.rank, key=jax.random.key(train.seed), layers=upper)
        trained = {n: np.asarray(given.get(n, leaf), np.float32) for n, leaf in fresh.items()}
        return trained, {n: leaf for n, leaf in given.items() if n not in fresh}, dict(self.params)

    def _run(
        self, rows: PackedRows, teacher: TeacherTargets | None, work: Path, progress: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        train = self.train
        trained, frozen, params = self.initial()
        per_epoch = -(-len(rows) // (train.rows * train.accumulate))
        total = per_epoch * train.epochs
        steps = TrainSteps(self.config, train, params, frozen, total=total)
        optimiser = steps.init(trained)
        saves, log = Checkpoints(work / "checkpoints"), LossLog(work / "train_log.jsonl")
        done = max(saves.steps(), default=0)
        if done:
            trained, optimiser = saves.load(done, trained, optimiser)
        log.cut(done)
        trained, optimiser = steps.place(trained), steps.place(optimiser)
        hidden = _Hidden(rows, steps, train)
        saved_at, started, seen, loss = time.monotonic(), time.monotonic(), 0, float("nan")
        with Meter("train", total=total, done=done, show=progress) as meter:
            for step in range(done, total):
                epoch, index = divmod(step, per_epoch)
                order = epoch_order(len(rows), seed=train.seed, epoch=epoch)
                size = train.rows * train.accumulate
                chosen = order[index * size : (index + 1) * size]
                for at in range(0, len(chosen), train.rows):
                    part = chosen[at : at + train.rows]
                    batch = micro_batch(rows, part, train.rows, teacher)
                    steps.accumulate(trained, hidden.of(part), batch)
                    seen += int((rows.segments[part] != PAD).sum())
                trained, optimiser, loss, norm = steps.update(trained, optimiser, step)
                now = time.monotonic()
                speed = seen / max(now - started, 1e-9)
                log.append({"step": step + 1, "epoch": epoch, "loss": loss, "grad_norm": norm})
                meter.advance(f"loss {loss:.3f}  {speed:.0f} tok/s")
                due = train.checkpoint_steps and (step + 1) % train.checkpoint_steps == 0
                if step + 1 < total and (due or now - saved_at > train.checkpoint_seconds):
                    saves.save(step + 1, trained, optimiser)
                    saved_at = time.monotonic()
        final = {n: np.asarray(leaf) for n, leaf in trained.items()}
        # No times here: the manifest of a resumed run equals that of an undisturbed one.
        return final | frozen, {"rows": len(rows), "steps": total, "loss": loss}

    def export(self, leaves: dict[str, Any], out: Path, work: Path, facts: dict[str, Any]) -> None:
        """Write the folder ``out`` with the logs of ``work``, and delete ``work``: one appears as the other goes."""
        part = out.with_name(out.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if self.train.method == "full":
            from ..models.checkpoint.load import save_decoder_hf

            base = self.initial()[2]
            save_decoder_hf(part, self.config, base | leaves, cast("Tokenizer", self.tokenizer))
            write_json(part / "manifest.json", facts)
        else:
            save_peft(part, leaves, self.config, alpha=self.train.alpha, manifest=facts)
        for log in sorted(work.glob("*.jsonl")):
            shutil.copy(log, part / log.name)
        os.replace(part, out)
        shutil.rmtree(work, ignore_errors=True)


class _Hidden:
    """What enters the trained layers, per row: kept in memory if it fits and will be needed again."""

    def __init__(self, rows: PackedRows, steps: TrainSteps, train: TrainConfig) -> None:
        self.rows, self.steps, self.size = rows, steps, train.rows
        fits = rows.tokens.size * steps.config.hidden_size * 4 <= train.cache_gb * 1e9
        self.store: dict[int, np.ndarray] | None = {} if train.frozen_layers and train.epochs > 1 and fits else None

    def of(self, part: np.ndarray) -> Any:
        """Hidden states ``[B*L, D]`` of rows ``part``, padded to a full micro batch."""
        if self.store is None:
            return self.steps.lower(micro_batch(self.rows, part, self.size))
        for row in part:
            if int(row) not in self.store:
                # Always computed beside the same neighbours, so that a resumed run gets the same bits.
                first = int(row) // self.size * self.size
                group = np.arange(first, min(first + self.size, len(self.rows)), dtype=np.int32)
                hidden = np.asarray(self.steps.lower(micro_batch(self.rows, group, self.size)))
                self.store.update(zip(group.tolist(), hidden.reshape(self.size, -1, hidden.shape[-1]), strict=False))
        found = [self.store[int(row)] for row in part]
        found += [found[-1]] * (self.size - len(part))  # no targets there: any finite value will do
        return np.concatenate(found)


def _check_same(path: Path, saved: Any, wanted: dict[str, Any]) -> None:
    if saved == wanted:
        return
    saved = saved if isinstance(saved, dict) else {}
    flat = [{**d, **{f"recipe.{k}": v for k, v in (d.get("recipe") or {}).items()}} for d in (saved, wanted)]
    names = sorted(k for k in flat[0] | flat[1] if k != "recipe" and flat[0].get(k) != flat[1].get(k))
    detail = "; ".join(f"{n}: {str(flat[0].get(n))[:40]} there, {str(flat[1].get(n))[:40]} now" for n in names)
    raise RestillError(f"{path} was trained differently ({detail}); give another out, or delete it")
