"""Checkpoints of a training run: orbax folders, the newest finished one wins."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..models.errors import RestillError

Leaves = Mapping[str, Any]


class Checkpoints:
    """Training state by step under ``folder``: trained leaves and optimiser state, bit for bit.

    Randomness and the data position need no state of their own: both are functions of (seed, step).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        named = (p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit())
        return sorted(int(p.name) for p in named)

    def save(self, step: int, leaves: Leaves, optimiser: Any, *, keep: int = 2) -> None:
        """Write the state after ``step``; orbax renames at the end, so a killed save leaves no half one."""
        _orbax().save(self.folder / str(step), _tree(leaves, optimiser), overwrite=True)
        for old in self.steps()[:-keep]:
            shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def load(self, step: int, leaves: Leaves, optimiser: Any) -> tuple[dict[str, Any], Any]:
        """The state after ``step``, in the structure of ``leaves`` and ``optimiser``.

        Raises:
            RestillError: the checkpoint does not have these leaves.
        """
        abstract = _tree(leaves, optimiser)
        path = self.folder / str(step)
        try:
            loaded = _orbax().load(path, abstract)
        except (ValueError, KeyError, OSError) as error:
            raise RestillError(
                f"{path} cannot be read ({str(error).splitlines()[0]:.120}); delete it to go on from an older one"
            ) from None
        values = [loaded["optimiser"][str(i)] for i in range(len(abstract["optimiser"]))]
        return dict(loaded["leaves"]), jax.tree.unflatten(jax.tree.structure(optimiser), values)

    def clear(self) -> None:
        """Delete all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _tree(leaves: Leaves, optimiser: Any) -> dict[str, Any]:
    flat = jax.tree.leaves(optimiser)
    return {
        "leaves": {name: np.asarray(leaf) for name, leaf in leaves.items()},
        "optimiser": {str(i): np.asarray(leaf) for i, leaf in enumerate(flat)},
    }


def _orbax() -> Any:
    from orbax.checkpoint import v1

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save there
    return v1
