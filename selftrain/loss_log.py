"""What a training run says of each step, beside its checkpoints; read without JAX by whoever shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LossLog:
    """One JSON line per step. A resumed run cuts it back to its checkpoint, so no step stands twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """Every readable line; a torn last line is dropped."""
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                break
        return found

    def cut(self, step: int) -> None:
        """Keep rows up to ``step``."""
        kept = [row for row in self.rows() if row["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
