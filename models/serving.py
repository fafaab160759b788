"""What an engine is started from (weights, adapter, settings), and the engine once it runs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RestillError

if TYPE_CHECKING:
    from .checkpoint.load import Checkpoint
    from .engine.engine import Engine
    from .engine.precision import Precision
    from .lora import Adapter, AdapterInfo


class Serving:
    """A checkpoint served with one adapter; the engine starts on first use, and all copies share it.

    Args:
        checkpoint: the base weights.
        adapter: low-rank leaves, merged when the engine starts.
        precision: what the engine computes in.
        slots: how many sequences decode at once.
        max_context: tokens of prompt and answer together.
        deterministic: the same bits in any company; see :class:`.engine.engine.Engine`.

    Raises:
        RestillError: unknown precision, or an adapter of another base model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        adapter: Adapter | None = None,
        precision: Precision = "auto",
        slots: int = 16,
        max_context: int = 2048,
        deterministic: bool = False,
    ) -> None:
        from .engine.precision import resolve

        resolve(precision)
        if adapter is not None:
            check_fits(adapter, checkpoint)
        self.checkpoint = checkpoint
        self.precision: Precision = precision
        self.slots, self.max_context, self.deterministic = slots, max_context, deterministic
        self._adapter, self._lock = adapter, threading.Lock()
        self._engine: Engine | None = None

    def with_adapter(self, name_or_path: str | Path | None) -> Serving:
        """The same weights and settings with another adapter, or with none; an engine that rests goes with it.

        Raises:
            RestillError: there is no such adapter, or it belongs to another base model.
        """
        adapter = None
        if name_or_path is not None:
            from .lora import find_adapter, load_peft

            adapter = load_peft(find_adapter(name_or_path))
        return self._another(self.checkpoint, adapter)

    def with_weights(self, folder: str | Path) -> Serving:
        """The same settings with other weights, such as those just trained; an engine that rests goes with them if
        it fits.

        Raises:
            RestillError: there is no model in the folder.
        """
        from .checkpoint.load import load_decoder

        return self._another(load_decoder(str(folder)), None)

    def _another(self, checkpoint: Checkpoint, adapter: Adapter | None) -> Serving:
        other = Serving(
            checkpoint,
            adapter=adapter,
            precision=self.precision,
            slots=self.slots,
            max_context=self.max_context,
            deterministic=self.deterministic,
        )
        mine, their = self.checkpoint, checkpoint
        same = their.config == mine.config and their.tokenizer.fingerprint == mine.tokenizer.fingerprint
        with self._lock:
            if self._engine is not None and not self._engine.params and same:
                self._engine, other._engine = None, self._engine
        return other

    @property
    def adapter(self) -> AdapterInfo | None:
        """Name, hash and manifest of the adapter."""
        return None if self._adapter is None else self._adapter.info

    @property
    def engine(self) -> Engine:
        """The running engine, started if need be."""
        with self._lock:
            if self._engine is None:
                self._engine = self._start()
            elif not self._engine.params:
                self._engine.update(self._params())
            return self._engine

    def rest(self) -> None:
        """Free the memory of the engine's weights and cache until it is used, here or by the next ``with_adapter``."""
        with self._lock:
            if self._engine is not None:
                self._engine.rest()

    def close(self) -> None:
        """Stop the engine if it was started."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _start(self) -> Engine:
        from .engine.engine import Engine
        from .home import enable_compile_cache

        enable_compile_cache()
        return Engine(
            self.checkpoint.config,
            self._params(),
            self.checkpoint.tokenizer,
            slots=self.slots,
            max_context=self.max_context,
            precision=self.precision,
            deterministic=self.deterministic,
        )

    def _params(self) -> Mapping[str, Any]:
        from .lora import merge

        params, adapter = self.checkpoint.params, self._adapter
        return params if adapter is None else merge(params, adapter.leaves, alpha=adapter.alpha)

    def __deepcopy__(self, memo: dict) -> Serving:
        return self  # weights and a running engine are shared, never copied


def check_fits(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Refuse an adapter that was trained on other weights, or that has leaves these weights lack."""
    base = adapter.info.manifest.get("base_fingerprint")
    if base is not None and base != checkpoint.fingerprint:
        raise RestillError(
            f"adapter {adapter.info.name!r} was trained on "
            f"{adapter.info.manifest.get('base', 'other weights')!r} ({base[:12]}), "
            f"not on {checkpoint.name!r} ({checkpoint.fingerprint[:12]}); "
            "load it on its own base model"
        )
    for name, leaf in adapter.leaves.items():
        kernel, side = name.rsplit(".", 1)
        weight = checkpoint.params.get(kernel)
        if weight is None or weight.shape[0 if side == "a" else 1] != leaf.shape[0 if side == "a" else 1]:
            have = "no such weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
            raise RestillError(
                f"adapter {adapter.info.name!r} does not fit {checkpoint.name!r}: {name} has shape "
                f"{tuple(leaf.shape)}, the model has {have}; use the base model it was trained on"
            )
