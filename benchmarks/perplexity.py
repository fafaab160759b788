"""What a precision costs: perplexity of real paragraphs under each, through the engine that serves them.

    python benchmarks/perplexity.py corpus.jsonl

``corpus.jsonl`` has a ``text`` a line (the SQuAD paragraphs of the experiments, for one).
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from restill.models.checkpoint.load import load_decoder
from restill.models.engine.engine import Engine
from restill.models.home import enable_compile_cache


def main(
    corpus: Annotated[Path, typer.Argument(help="JSON lines with a text each.")],
    paragraphs: Annotated[int, typer.Option(help="The first so many.")] = 200,
    model: Annotated[str, typer.Option(help="Name or folder.")] = "smollm2-135m",
    precisions: Annotated[str, typer.Option(help="Compared to the first of these.")] = "f32,w8a8",
    longest: Annotated[int, typer.Option(help="Tokens of a paragraph, at most.")] = 256,
    quick: Annotated[bool, typer.Option("--quick", help="20 paragraphs.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Print the perplexity of each precision, and by how much it exceeds the first."""
    enable_compile_cache()
    checkpoint = load_decoder(model)
    with corpus.open() as lines:
        texts = [json.loads(line)["text"] for line in islice(lines, 20 if quick else paragraphs)]
    rows = [checkpoint.tokenizer.encode(text)[: longest - 1] for text in texts]
    found: dict[str, float] = {}
    for precision in precisions.split(","):
        engine = Engine(
            checkpoint.config, checkpoint.params, checkpoint.tokenizer, slots=1, max_context=longest,
            precision=precision,  # type: ignore[arg-type]
        )  # fmt: skip
        scores = engine.score_many([([checkpoint.tokenizer.eos_id], row) for row in rows])
        engine.close()
        found[f"perplexity {precision}"] = float(np.exp(-np.concatenate(scores).mean()))
        first = next(iter(found.values()))
        value = found[f"perplexity {precision}"]
        print(f"{precision}: {value:.3f} over {sum(map(len, rows)):,} tokens ({100 * (value / first - 1):+.2f} %)")
    if json_out:
        json_out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
