"""An adapter that gives feedback (a judge's, a ranker's): trained like any other, and known by its prompt format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .mixture import Mixture

if TYPE_CHECKING:
    from ..models.checkpoint.load import Checkpoint
    from .trainer import TrainConfig


def speaks(model: Any, format: str) -> bool:
    """Whether a model carries an adapter that was trained on this prompt format."""
    adapter = getattr(model, "adapter", None)
    return adapter is not None and dict(adapter.manifest).get("format") == format


def train_adapter(
    checkpoint: Checkpoint,
    mixture: Mixture,
    *,
    out: str | Path,
    format: str,
    train: TrainConfig,
    manifest: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Path:
    """Train a LoRA that speaks one prompt format, whose name its manifest holds; resumable as the trainer is.

    Raises:
        RestillError: ``out`` holds an adapter that was trained differently.
    """
    from .trainer import Trainer

    facts = {"base": checkpoint.name, "base_fingerprint": checkpoint.fingerprint, "format": format, **(manifest or {})}
    trainer = Trainer(checkpoint.config, checkpoint.params, train, tokenizer=checkpoint.tokenizer)
    return trainer.fit(mixture, out=out, manifest=facts, progress=progress)
