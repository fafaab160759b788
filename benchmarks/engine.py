"""How fast is the engine? restill beside llama.cpp and transformers: the same weights, in turns, in one run.

    pip install -e '.[bench]' && python benchmarks/engine.py

Every engine is a process of its own that waits while the others are measured. Medians over the rounds, then the ratio
of the faster of restill's two precisions to each rival. ``replay.jsonl`` beside this file holds logged agent
transcripts (``--record``).
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from restill.agents.trajectory import Trajectory

HERE = Path(__file__).parent
REPLAY = HERE / "replay.jsonl"
MODEL = "smollm2-135m"
ADAPTER = HERE.parent / "adapters" / "starter"
VOCAB = 49_000
GRAMMAR = r'start: "Thought: " /[^\n]{600,}/ "\nAction: " /[a-z]+/'
"""Leaves the model free for as long as is measured, but not to write what it likes."""


class Served:
    """A system under test in a process of its own: a program beside this one that answers JSON with JSON."""

    def __init__(self, *where: str, program: str = "systems.py") -> None:
        command = [sys.executable, str(HERE / program), *where]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load_seconds = self._answer()["seconds"]

    def ask(self, what: str = "", **arguments: Any) -> dict[str, float]:
        """One measurement."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("an engine's process died; its message stands above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def weights(folder: Path) -> dict[str, Path]:
    """The model as every rival wants it: GGUF in f32, Q8_0 and Q4_1, and a Hugging Face folder."""
    import llama_cpp

    from restill.models.checkpoint.load import load_decoder, save_decoder_hf
    from restill.models.checkpoint.pull import pull

    lib: Any = llama_cpp
    source = next(pull(MODEL).glob("*.gguf"))
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    found = {}
    for name, kind in (("f32", lib.LLAMA_FTYPE_ALL_F32), ("q8_0", lib.LLAMA_FTYPE_MOSTLY_Q8_0)):
        found[name] = folder / f"{name}.gguf"
        options = lib.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize = kind, True
        if lib.llama_model_quantize(str(source).encode(), str(found[name]).encode(), ctypes.byref(options)):
            raise SystemExit(f"llama.cpp could not write {name}")
    found["q4_1"] = source
    checkpoint = load_decoder(MODEL)
    found["hf"] = folder / "hf"
    save_decoder_hf(found["hf"], checkpoint.config, checkpoint.params, checkpoint.tokenizer)
    return found


def measure(systems: dict[str, Served], transcripts: list[Any], rounds: int, quick: bool) -> dict[str, list[float]]:
    """Every figure of every engine, a list over the rounds; higher is better but for ms and MiB."""
    figures: dict[str, list[float]] = defaultdict(list)
    rng = random.Random(0)

    def prompt(length: int) -> list[int]:
        return [rng.randrange(100, VOCAB) for _ in range(length)]

    for turn in range(rounds + 1):
        small = quick or turn == 0  # the first warms up
        steps, batches, lengths = (8, (1, 8), (256,)) if small else (48, (1, 8, 32), (256, 1024))
        for name, system in systems.items():
            ours, slow = name.startswith("restill"), name.startswith("transformers")
            new = {}
            for length in lengths:
                seconds = system.ask("prefill", prompt=prompt(length))["seconds"]
                new[f"prefill {length}, tok/s"] = length / seconds
            new["first token after 64, ms"] = 1e3 * system.ask("prefill", prompt=prompt(64))["seconds"]
            for batch in batches:
                seconds = system.ask("decode", prompts=[prompt(64) for _ in range(batch)], count=steps)["seconds"]
                new[f"decode {batch}, tok/s"] = batch * steps / seconds
                if ours:
                    prompts = [prompt(64) for _ in range(batch)]
                    seconds = system.ask("decode", prompts=prompts, count=steps, grammar=GRAMMAR)["seconds"]
                    new[f"decode {batch} with a grammar, tok/s"] = batch * steps / seconds
            for together in (1, 8):
                some = transcripts[: 4 if slow else 8 if small else None]
                for label, options in replays(name):
                    answer = system.ask("replay", transcripts=some, together=together, **options)
                    new[f"replay {together}{label}, questions/min"] = 60 * len(some) / answer["seconds"]
                    if "computed" in answer:
                        new[f"replay {together}{label}, prompt tokens computed"] = answer["computed"]
            new["memory, MiB"] = system.ask("memory")["mib"]
            if turn:
                for figure, value in new.items():
                    figures[f"{name}: {figure}"].append(value)
        print(f"round {turn} of {rounds} done", file=sys.stderr)
    return figures


def replays(name: str) -> list[tuple[str, dict[str, bool]]]:
    """Ours is replayed with and without speculation."""
    return [("", {}), (" plain", {"speculate": False})] if name.startswith("restill") else [("", {})]


def transcripts_of(path: Path) -> list[list[tuple[list[int], list[int]]]]:
    """Prompt and output of every step."""
    found = []
    for line in path.read_text().splitlines():
        before: list[int] = []
        steps = []
        for step in json.loads(line):
            prompt = before[: step["shared"]] + step["suffix"]
            steps.append((prompt, step["tokens"]))
            before = prompt + step["tokens"]
        found.append(steps)
    return found


def record(run: Path) -> None:
    """Write ``replay.jsonl`` from a logged run."""
    logged = [
        Trajectory.model_validate_json(line) for path in sorted(run.glob("trajectories*.jsonl")) for line in path.open()
    ]
    keep = sorted((t for t in logged if t.steps), key=lambda t: t.question_key)[:32]
    lines = [
        [{"shared": s.prompt.shared, "suffix": s.prompt.suffix, "tokens": s.sample.tokens} for s in t.steps]
        for t in keep
    ]
    REPLAY.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def cold_start() -> dict[str, list[float]]:
    """Seconds of a whole process that loads the model and draws a first token, compile cache empty and warm."""
    figures: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as cache:
        for label in ("empty", "warm", "warm"):
            began = time.perf_counter()
            ask = json.dumps({"what": "prefill", "prompt": list(range(100, 164))})
            subprocess.run(
                [sys.executable, str(HERE / "systems.py"), "ours", MODEL, "f32", ""], input=ask + "\n", text=True,
                stdout=subprocess.DEVNULL, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}, check=True,
            )  # fmt: skip
            figures[f"restill f32: cold start, compile cache {label}, s"].append(time.perf_counter() - began)
    return figures


def show(figures: dict[str, float]) -> None:
    """The table, and the ratios."""
    names = list(dict.fromkeys(key.split(": ")[0] for key in figures))
    table = Table(title=f"{MODEL}, {platform.machine()}, {date.today()}: medians")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for row in dict.fromkeys(key.split(": ", 1)[1] for key in figures):
        cells = [figures.get(f"{name}: {row}") for name in names]
        table.add_row(row, *("" if value is None else f"{value:,.1f}" for value in cells))
    Console(width=150).print(table)
    for figure, ratio in ratios(figures).items():
        Console().print(f"{figure}: {ratio:.2f}")


def ratios(figures: dict[str, float]) -> dict[str, float]:
    """Best of restill over each rival, for every figure that is a speed."""
    speeds = {tuple(key.split(": ", 1)): value for key, value in figures.items() if key.endswith(("tok/s", "/min"))}
    found = {}
    for (name, what), rival in speeds.items():
        ours = [value for (other, same), value in speeds.items() if same == what and other.startswith("restill")]
        if ours and not name.startswith("restill"):
            found[f"{what.rpartition(',')[0]}, restill over {name}"] = max(ours) / rival
    return found


def main(
    rounds: Annotated[int, typer.Option(help="Measured rounds, after one that warms up.")] = 3,
    only: Annotated[str, typer.Option(help="Only engines whose name has one of these in it, with commas.")] = "",
    adapter: Annotated[Path, typer.Option(help="The adapter that wrote replay.jsonl.")] = ADAPTER,
    run: Annotated[Path | None, typer.Option("--record", help="Make replay.jsonl of this run, and stop.")] = None,
    steady: Annotated[bool, typer.Option("--deterministic", help="Also restill's deterministic engine.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One round of small measures.")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Measure, and print the table."""
    if run is not None:
        record(run)
        return
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        files = weights(Path(scratch))
        where = {
            "restill f32": ("ours", MODEL, "f32", str(adapter), "warm"),
            "restill bf16": ("ours", MODEL, "bf16", str(adapter), "warm"),
            "restill w8a8": ("ours", MODEL, "w8a8", str(adapter), "warm"),
            "llama.cpp f32": ("llama", str(files["f32"])),
            "llama.cpp Q8_0": ("llama", str(files["q8_0"])),
            "llama.cpp Q4_1": ("llama", str(files["q4_1"])),
            "transformers f32": ("torch", str(files["hf"]), "float32"),
            "transformers bf16": ("torch", str(files["hf"]), "bfloat16"),
        }
        if steady:
            where["restill f32 deterministic"] = (*where["restill f32"], "deterministic")
        systems = {name: Served(*args) for name, args in where.items() if any(part in name for part in only.split(","))}
        figures |= measure(systems, transcripts_of(REPLAY), 1 if quick else rounds, quick)
        for system in systems.values():
            system.close()
    if not quick:
        figures |= cold_start()
    medians = {figure: statistics.median(values) for figure, values in figures.items()}
    show(medians)
    if json_out:
        json_out.write_text(json.dumps(medians | ratios(medians), indent=1))


if __name__ == "__main__":
    typer.run(main)
