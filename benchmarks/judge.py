"""How good are the judge and the rankers? Trains both adapters on one World, measures them on others.

Judge: its floor is chosen on a third World; then balanced accuracy on unseen entities and wordings, correct
paraphrases accepted, attacks accepted (two draws, on two Worlds, with the guard and without), and how it follows exact
labels over agents of different quality. Ranker: how often its first choice is one of the best by gold.
The 0-shot judge and ranker of the same base model stand beside them. Killed at any time, the same command goes on
with the trained adapters and the rankings that are there.

    python benchmarks/judge.py --out runs/judge
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from restill import JaxChatModel, Question, ReActAgent, Run, World, rollout
from restill.agents.testing import make_hit
from restill.models.home import enable_compile_cache
from restill.selftrain.attacks import attacks
from restill.selftrain.choice import Choice, choices
from restill.selftrain.expert import ExpertModel
from restill.selftrain.files import read_json
from restill.selftrain.guard import Case, guard
from restill.selftrain.judge import FLOOR, Judge
from restill.selftrain.judge_adapter import JUDGE_TRAIN, calibrate, train_judge
from restill.selftrain.judge_data import Answers, judge_data, paraphrases
from restill.selftrain.ranker_adapter import RANKER_TRAIN, AdapterStepRanker, train_ranker
from restill.selftrain.ranker_prompt import PromptStepRanker
from restill.selftrain.rerank import rerank
from restill.selftrain.scripted import noisy_script, with_samples
from restill.selftrain.step_rankers import (
    GoldStepRanker,
    InvertedStepRanker,
    RandomStepRanker,
    StepRanker,
)

MODEL = "smollm2-135m"
TRAINED, MEASURED, CALIBRATED = 101, 202, 303
"""Seeds of the Worlds; they share no entity."""
ATTACKED = {9: MEASURED, 10: 404}
"""Seed of a draw of attacks -> seed of its World."""

Measures = dict[str, float]


def pearson(a: list[float] | np.ndarray, b: list[float] | np.ndarray) -> float:
    """Correlation; 0 where one side does not vary."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation; ties share their mean rank."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: list[float]) -> np.ndarray:
    found, positions, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[positions] if len(found) else np.zeros(0)


def measure_judge(judge: Judge, world: World, *, cases: int, positives: int, label: str) -> Measures:
    """Balanced accuracy and acceptance of paraphrases."""
    rows = judge_data(world, cases, seed=7, training=False)
    right, wrong = [r for r in rows if r.right], [r for r in rows if not r.right]
    good = paraphrases(world, positives, seed=8)
    listed = [[row.case for row in part] for part in (right, wrong, good)]
    started = time.monotonic()
    verdicts = iter(judge.judge([case for part in listed for case in part]))
    seconds = time.monotonic() - started
    found = [[next(verdicts) for _ in part] for part in listed]
    hit, false, accepted = (np.mean([v.accepted for v in part]) for part in found)
    measures = {
        f"{label}: balanced accuracy": float(hit + 1 - false) / 2,
        f"{label}: right accepted": float(hit),
        f"{label}: wrong accepted": float(false),
        f"{label}: paraphrases accepted": float(accepted),
        f"{label}: right answers that the guard refused": float(sum(bool(v.guard) for v in [*found[0], *found[2]])),
        f"{label}: unreadable": float(sum(v.unreadable for part in found for v in part)),
        f"{label}: judgements a second": sum(map(len, listed)) * judge.repetitions / seconds,
    }
    for kind in sorted({r.kind for r in [*wrong, *good]}):
        part = [*zip(wrong, found[1], strict=True), *zip(good, found[2], strict=True)]
        share = [v.accepted == r.right for r, v in part if r.kind == kind]
        if np.mean(share) < 0.9:
            measures[f"{label}: accuracy on {kind}"] = float(np.mean(share))
    return measures


def measure_attacks(judge: Judge, world: World, count: int, *, seed: int, label: str) -> Measures:
    """Attacks accepted, with the mechanical guard and without, and by which family; those accepted are printed."""
    bad = attacks(world.heldout, Answers(world, training=False).others, count, seed=seed)
    bare = replace(judge, guarded=False).judge([attack.case for attack in bad])
    # What the guard lets through is asked just as without it, so nothing need be judged twice.
    passed = [(attack, guard(attack.case)) for attack, v in zip(bad, bare, strict=True) if v.accepted]
    fooled = [attack for attack, why in passed if not why]
    measures = {
        f"{label}: attacks of draw {seed}": float(len(bad)),
        f"{label}: attacks of draw {seed} accepted": float(len(fooled)),
        f"{label}: attacks of draw {seed} accepted without the guard": float(len(passed)),
        f"{label}: attacks of draw {seed} stopped by the guard": float(sum(bool(guard(a.case)) for a in bad)),
    }
    for attack, why in passed:
        Console().print(f"accepted ({why or 'not guarded'}), {attack.family}: {attack.case.answer!r}", markup=False)
        name = f"{label}: attacks of draw {seed} accepted{' without the guard' * bool(why)}, {attack.family}"
        measures[name] = measures.get(name, 0.0) + 1
    return measures


def follow_agents(judge: Judge, world: World, *, agents: int, questions: int, label: str) -> Measures:
    """Pearson and Spearman between the judge's score of an agent and its exact one.

    Agents answer the same questions, each right with a probability of its own, in held-out wordings; what they say
    otherwise is another entity, a near miss, or nothing useful.
    """
    answers, asked = Answers(world, training=False), world.heldout[:questions]
    exact, cases = list[float](), list[Case]()
    for number in range(agents):
        rng = random.Random(f"agent {number}")
        share = (number + 0.5) / agents
        rows = [answers.right(q, rng) if rng.random() < share else answers.wrong(q, rng) for q in asked]
        exact.append(float(np.mean([row.right for row in rows])))
        cases += [row.case for row in rows]
    verdicts = judge.judge(cases)
    judged = [float(np.mean([v.share for v in verdicts[i : i + questions]])) for i in range(0, len(cases), questions)]
    return {
        f"{label}: Pearson over {agents} agents": pearson(exact, judged),
        f"{label}: Spearman over {agents} agents": spearman(exact, judged),
        f"{label}: mean distance to exact": float(np.mean(np.abs(np.array(exact) - judged))),
    }


def scripted_run(world: World, questions: list[Question], folder: Path, tokenizer: Any, *, noise: float) -> Run:
    """A run of a scripted agent that strays, with 4 samples a step."""
    if (folder / "run.json").is_file():
        return Run.open(folder)
    titles = {document.title: document for document in world.documents}

    def search(query: str) -> list[Any]:
        """Find passages."""
        named = [d for title, d in titles.items() if title in query]
        rng = random.Random(query)
        found = [*named[:2], *rng.sample(world.documents, 2)][:2]
        return [make_hit(d.id, d.title, d.text) for d in found]

    answers = Answers(world, training=True)
    model = ExpertModel(tokenizer, questions, noisy_script(answers, noise))
    agent = ReActAgent(model, [search], few_shot=0)
    source = rollout(agent, questions, out=folder.with_name(folder.name + "-source"))
    by_key = {q.key: q for q in questions}
    part = folder.with_name(folder.name + ".part")
    with Run.create(part) as run:
        for t in source.filter(status="answered"):
            if run.needs(t.key):
                run.append(with_samples(t, by_key[t.question_key], answers, tokenizer, count=4, seed=1))
    part.rename(folder)
    return Run.open(folder)


def labelled_choices(run: Run, questions: list[Question]) -> list[Choice]:
    """Every step of a run, with the labels of its question."""
    by_key = {q.key: q for q in questions}
    return [choice for t in run for choice in choices(t, by_key[t.question_key])]


def measure_rankers(rankers: dict[str, StepRanker], run: Run, questions: list[Question], tokenizer: Any) -> Measures:
    """Agreement with gold of each ranker's first choice, over steps whose samples differ in quality."""
    measures: Measures = {}
    for name, ranker in rankers.items():
        model = getattr(ranker, "model", None)
        adapter = getattr(model, "adapter", None)
        settings = {"ranker": repr(ranker), "adapter": None if adapter is None else adapter.hash}
        stats = rerank(run, ranker, questions, name=name, settings=settings, tokenizer=tokenizer).stats
        measures[f"ranker {name}: agreement with gold"] = stats["gold_agreement"]
        measures[f"ranker {name}: first choice changed"] = stats["changed"]
        measures[f"ranker {name}: unread"] = stats["unread"]
        measures["no ranker: agreement with gold"] = stats["base_gold_agreement"]
        measures["ranker: steps with samples of different quality"] = stats["gold_steps"]
    return measures


def main(
    out: Annotated[Path, typer.Option(help="Folder of adapters and runs.")] = Path("runs/judge"),
    quick: Annotated[bool, typer.Option("--quick", help="Little data: does it run? The numbers mean nothing.")] = False,
    part: Annotated[str, typer.Option(help="judge, ranker or both.")] = "both",
    answers: Annotated[int, typer.Option(help="Answers that the judge adapter learns from.")] = 1500,
    steps: Annotated[int, typer.Option(help="Steps that the ranker adapter learns from.")] = 300,
    scale: Annotated[float, typer.Option(help="Share of the cases to measure the judges on.")] = 1.0,
    repetitions: Annotated[int, typer.Option(help="Judgements of each answer.")] = 1,
    zero_shot: Annotated[bool, typer.Option(help="Measure the base model as a judge too.")] = True,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write the measures here, flat.")] = None,
) -> None:
    """Train what is missing, measure, print the table."""
    enable_compile_cache()
    out = out.with_name(out.name + "-quick") if quick else out
    full = {"cases": 300, "positives": 200, "hostile": 240, "agents": 12, "asked": 40}
    size = {name: max(4, round(scale * count)) for name, count in full.items()}
    if quick:
        answers, steps = 48, 8
        size = {"cases": 16, "positives": 8, "hostile": 24, "agents": 3, "asked": 4}
    world = World.generate(entities=300, seed=TRAINED, train=300, heldout=100)
    other = World.generate(entities=300, seed=MEASURED, train=100, heldout=100)
    model = JaxChatModel.from_pretrained(MODEL, slots=16, max_context=2048)
    measures: Measures = {}
    if part in ("judge", "both"):
        rows = judge_data(world, answers, seed=1, training=True)
        started = time.monotonic()
        adapter = train_judge(model.checkpoint, rows, out=out / "judge-adapter", train=JUDGE_TRAIN, progress=True)
        measures["judge: training minutes (of this call)"] = (time.monotonic() - started) / 60
        if FLOOR not in (read_json(adapter / "manifest.json") or {}):
            third = World.generate(entities=300, seed=CALIBRATED, train=100, heldout=100)
            calibrate(model, adapter, third, count=size["positives"])
        manifest = read_json(adapter / "manifest.json")
        measures["judge adapter: floor"] = manifest[FLOOR]
        for name, part_accepted in manifest["floor_chosen"]["accepted"].items():
            measures[f"judge adapter: calibration, {name} accepted"] = part_accepted
        judges = {"judge adapter": model.with_adapter(adapter), **({"0-shot judge": model} if zero_shot else {})}
        for label, chat in judges.items():
            judge = Judge(model=chat, repetitions=repetitions)
            share = 1 if chat is not model else 4
            measures |= measure_judge(
                judge, other, cases=size["cases"] // share, positives=size["positives"] // share, label=label
            )
            for seed, attacked in ATTACKED.items():
                place = World.generate(entities=300, seed=attacked, train=100, heldout=100)
                measures |= measure_attacks(judge, place, size["hostile"] // share, seed=seed, label=label)
            if chat is not model:
                measures |= follow_agents(judge, other, agents=size["agents"], questions=size["asked"], label=label)
            chat.close()
            _show(measures)
    if part in ("ranker", "both"):
        tokenizer, asked = model.tokenizer, other.heldout[: max(3, steps // 5)]
        few = asked[: max(2, len(asked) // 6)]
        small = scripted_run(other, few, out / "ranker-test-few", tokenizer, noise=0.25)
        measures |= measure_rankers({"0-shot": PromptStepRanker(model=model), "random-few": RandomStepRanker()},
                                    small, few, tokenizer)  # fmt: skip
        _show(measures)
        train_run = scripted_run(world, world.train, out / "ranker-train", tokenizer, noise=0.25)
        listed = labelled_choices(train_run, world.train)
        chosen = random.Random(3).sample(listed, min(steps, len(listed)))
        started = time.monotonic()
        adapter = train_ranker(model.checkpoint, chosen, out=out / "ranker-adapter", train=RANKER_TRAIN, progress=True)
        measures["ranker: training minutes (of this call)"] = (time.monotonic() - started) / 60
        run = scripted_run(other, asked, out / "ranker-test", tokenizer, noise=0.25)
        trained = model.with_adapter(adapter)
        rankers: dict[str, StepRanker] = {
            "gold": GoldStepRanker(),
            "inverted": InvertedStepRanker(GoldStepRanker()),
            "random": RandomStepRanker(),
            "adapter": AdapterStepRanker(model=trained, margin=0.0),
        }
        measures |= measure_rankers(rankers, run, asked, tokenizer)
        trained.close()
        model.close()
        _show(measures)
    if json_out:
        json_out.write_text(json.dumps(measures, indent=1))


def _show(measures: Measures) -> None:
    table = Table("measure", "value", title=f"{MODEL}, World {TRAINED} -> World {MEASURED}")
    for name, value in measures.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
