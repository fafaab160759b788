"""The cells of ``benchmarks/trice.py``: one method at one seed, from the same model and questions."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from restill import TRICE, JaxChatModel, Question, ReasoningAgent, evaluate, improve
from restill.agents.evaluate import EvalReport
from restill.agents.reason import answer_hint
from restill.models.checkpoint.load import Checkpoint, load_decoder
from restill.models.student import Nano, make_student
from restill.selftrain.baselines import FilteredSFT, RejectionSampling, STaR
from restill.selftrain.latent_method import LatentMethod
from restill.selftrain.loss_log import LossLog
from restill.selftrain.mixture import Example, Mixture
from restill.selftrain.tasks import arithmetic_chains, read_bbh, read_bbh_prompt, read_gsm8k, split
from restill.selftrain.trainer import TrainConfig, Trainer
from restill.selftrain.voting import Marks, marks, voted
from restill.selftrain.written import DirectAnswer, ReferenceSFT

PARENT = "smollm2-135m"
"""Its tokenizer, pruned, is the nano model's."""
METHODS = ("trice", "per-question", "basic", "star", "rejection", "filtered", "reference", "direct")
VOTES = 40
SLIPS = 0.7
"""Share of the carries that the teachers forget: what they do most often is wrong."""


@dataclass(frozen=True)
class Setting:
    """What all cells of a run share.

    Attributes:
        task: its name in the cells.
        votes: samples a held-out question for self-consistency.
        chains: how hard they are; also the ``taught`` rationales that all methods start
            from. Empty: another task, and the model as it is.
        parameters: of a nano model.
    """

    model: str
    task: str
    train: list[Question]
    held_out: list[Question]
    demonstrations: list[tuple[str, str]]
    steps: int
    minibatch: int
    resampled: int
    slots: int
    votes: int
    recipe: TrainConfig
    step_tokens: int
    max_context: int
    eval_every: int
    chains: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    taught: int = 0


def build(setting: Setting, name: str, caps: tuple[int, int] | None) -> LatentMethod:
    """A method by its short name; ``caps`` are the tokens that it may draw and train on."""
    drawn, trained = caps or (0, 0)
    shared: dict[str, Any] = {
        "minibatch": setting.minibatch,
        "resampled": setting.resampled,
        "train": setting.recipe,
        "slots": setting.slots,
        "max_context": setting.max_context,
        "eval_every": setting.eval_every,
        "sampled_tokens": drawn,
        "trained_tokens": trained,
    }
    draws = max(1, -(-setting.steps * setting.minibatch // len(setting.train)))
    long = 20 * setting.steps  # until the tokens are spent
    made = {
        "trice": lambda: TRICE(steps=setting.steps, **shared),
        "per-question": lambda: TRICE(steps=long, estimator="per-question", **shared),
        "basic": lambda: TRICE(steps=long, estimator="basic", **shared),
        "star": lambda: STaR(steps=setting.steps, rounds=min(3, setting.steps), **shared),
        "rejection": lambda: RejectionSampling(
            steps=long, samples=4, **{**shared, "minibatch": max(1, setting.minibatch // 4)}
        ),
        "filtered": lambda: FilteredSFT(steps=long, samples=4 * draws, **shared),
        "reference": lambda: ReferenceSFT(steps=long, **shared),
        "direct": lambda: DirectAnswer(steps=long, **shared),
    }
    return made[name]()


def slip(rationale: str, rng: random.Random, share: float) -> str:
    """A rationale in which so many carries are forgotten, and what follows goes on from the wrong result."""
    sums, _, _ = rationale.rpartition(" The answer is")
    steps = [part.rstrip(".").split() for part in sums.split(". ")]
    total, written = int(steps[0][0]), []
    for _, sign, number, _, _ in steps:
        after = total + int(number) if sign == "+" else max(0, total - int(number))
        if after // 10 != total // 10 and rng.random() < share:
            after += 10 if after < total else -10
        written.append(f"{total} {sign} {number} = {after}.")
        total = after
    return " ".join([*written, f"The answer is {total}."])


def start(setting: Setting, folder: Path, seed: int) -> Checkpoint | Path | None:
    """What all methods start from: on chains, a model that has seen rationales of forgetful teachers.

    A nano model knows nothing before, and SmolLM2-135M gets no chain right zero-shot; after it, both are right now and
    then. Every third teacher is shown the answer and forgets nothing, so that the model can guide itself (TRICE's
    first memory, STaR's rationalisation). ``None``: the model as it is.
    """
    if not setting.chains:
        return None
    nano, rng = setting.model == "nano", random.Random(f"teachers {seed}")
    if not (folder / "manifest.json").is_file():
        base = load_decoder(PARENT if nano else setting.model)
        messages = ReasoningAgent(JaxChatModel.from_checkpoint(base)).messages
        known = [*setting.train, *setting.held_out]
        asked = arithmetic_chains(setting.taught, seed=1000 + seed, avoid=known, **setting.chains)
        told = [slip(q.metadata["rationale"], rng, SLIPS if n % 3 else 0.0) for n, q in enumerate(asked)]
        prompts = [messages(q, hint=None if n % 3 else answer_hint(q)) for n, q in enumerate(asked)]
        if nano:
            texts = [base.tokenizer.chat(prompt) for prompt in (*prompts, *map(messages, known))]
            seen = {t for text in (*texts, *map(base.tokenizer.encode, told)) for t in text}
            base, _ = make_student(base, Nano(parameters=setting.parameters), seen, seed=seed)
        examples = []
        for prompt, rationale in zip(prompts, told, strict=True):
            read = base.tokenizer.chat(prompt)
            own = [*base.tokenizer.encode(rationale), base.tokenizer.eos_ids[0]]
            examples.append(Example(tokens=(*read, *own), weights=(*[0.0] * len(read), *[1.0] * len(own))))
        train = replace(setting.recipe, lr=2e-3, epochs=1 if nano else 2, rows=1, row_length=512, seed=seed)
        trainer = Trainer(base.config, base.params, train, tokenizer=base.tokenizer)
        trainer.fit(Mixture.of(examples), out=folder, manifest={"few_shot": 0}, progress=True)
    return load_decoder(folder) if nano else folder


def run_cell(setting: Setting, out: Path, seed: int, name: str, caps: tuple[int, int] | None) -> dict[str, Any]:
    """One method at one seed, trained and scored."""
    started = time.monotonic()
    begin = start(setting, out / f"start-{seed}", seed)
    serving: dict[str, Any] = {"slots": setting.slots, "max_context": setting.max_context, "precision": "f32"}
    checkpoint = begin if isinstance(begin, Checkpoint) else load_decoder(setting.model)
    model = JaxChatModel.from_checkpoint(checkpoint, adapter=begin if isinstance(begin, Path) else None, **serving)
    agent = ReasoningAgent(model, setting.demonstrations, step_tokens=setting.step_tokens)
    method = replace(build(setting, name, caps), train=replace(setting.recipe, seed=seed))
    folder = out / name / str(seed)
    report = improve(
        agent, setting.train, out=folder, method=method, eval=setting.held_out, seed=seed, deadline=None, progress=True
    )
    trained = Path(str(report.adapter))
    low_rank = (trained / "adapter_config.json").is_file()
    serving["slots"] = 32  # votes are many
    after = (
        JaxChatModel.from_checkpoint(checkpoint, adapter=trained, **serving)
        if low_rank
        else JaxChatModel.from_pretrained(trained, **serving)
    )
    greedy = {arm: _marks(folder / arm / "eval.json") for arm in ("base", method.arm)}
    votes = evaluate(
        agent.replace(model=after, temperature=0.7, few_shot=0), setting.held_out, out=folder / "votes",
        samples=setting.votes, seed=seed, deadline=None,
    )  # fmt: skip
    after.close()
    rows, made = LossLog(trained / "train_log.jsonl").rows(), report.phases[f"{method.arm}/train"]
    return {
        "model": setting.model, "task": setting.task, "seed": seed, "method": name,
        "base": greedy["base"].of, "greedy": greedy[method.arm].of, "vote": voted(votes).of,
        "samples": marks(votes).mean, "sampled": made["sampled_tokens"], "trained": made["trained_tokens"],
        "steps": made["steps"], "shares": made["shares"], "seconds": round(time.monotonic() - started),
        "curve": [[r["sampled"], r["trained"], r["accuracy"]] for r in LossLog(trained / "curve.jsonl").rows()],
        "log": [[r["step"], r.get("right"), r.get("accepted"), r.get("grad_variance"), r.get("grad_norm"),
                 r.get("turnover")] for r in rows],
    }  # fmt: skip


def _marks(file: Path) -> Marks:
    return marks(EvalReport.model_validate_json(file.read_bytes()))


def make_setting(model: str, quick: bool, steps: int, bbh: Path | None, gsm8k: Path | None) -> Setting:
    """Sizes and data of a run."""
    nano = model == "nano"
    recipe = TrainConfig(
        method="full" if nano else "lora", embeddings=nano, lr=3e-4 if nano else 1e-3, rows=2 if nano else 1,
        row_length=512 if nano else 256, warmup=0.1, checkpoint_seconds=120.0,
    )  # fmt: skip
    chains: dict[str, Any] = {"steps": (1, 1), "largest": 2} if quick else {"steps": (2, 4), "largest": 5}
    train = arithmetic_chains(16 if quick else 600 if nano else 300, seed=1, **chains)
    held_out = arithmetic_chains(8 if quick else 200, seed=2, avoid=train, **chains)
    task, demonstrations, longest, context = "chains", [], 96, 320
    if bbh is not None:
        train, held_out = split(read_bbh(bbh), *((16, 8) if quick else (150, 100)))
        demonstrations = read_bbh_prompt(bbh.with_name(f"{bbh.stem}.cot_prompt.txt"))
        chains = {}
        task, longest, context = bbh.stem, 64 if quick else 256, 2048
        recipe = replace(recipe, row_length=1024)
    elif gsm8k is not None:
        train, held_out = split(read_gsm8k(gsm8k), *((16, 8) if quick else (1000, 300)))
        chains = {}
        task, longest, context = "gsm8k", 64 if quick else 256, 768
        recipe = replace(recipe, row_length=768)
    return Setting(
        model=model, task=task, train=train, held_out=held_out, demonstrations=demonstrations,
        steps=steps or (3 if quick else 150 if nano else 60), minibatch=8 if quick else 32,
        resampled=4 if quick else 16, slots=8 if quick or not (nano or chains) else 32, votes=4 if quick else VOTES,
        recipe=recipe, step_tokens=longest, max_context=context,
        eval_every=2 if quick else 25 if nano else 10, parameters=200_000 if quick else 2_000_000,
        taught=400 if quick else 12_000 if nano else 150, chains=chains,
    )  # fmt: skip
