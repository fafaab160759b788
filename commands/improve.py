"""The command that lets an agent train itself; it resumes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import (
    DEFAULT_MODEL,
    AdapterOption,
    AgentOption,
    Bf16Option,
    ConcurrencyOption,
    DemonstrationsOption,
    DeterministicOption,
    DocsOption,
    FewShotOption,
    FollowOption,
    FormatOption,
    IndexOption,
    JsonOption,
    KOption,
    LimitOption,
    ModelOption,
    ModeOption,
    PrecisionOption,
    SecondsOption,
    SeedOption,
    StepsOption,
    TemperatureOption,
    print_json,
)
from .jobs import QuestionsArgument
from .making import make_agent, open_search, opened_model
from .methods import REST, make_latent, make_pilot, make_rest, make_step_ranker, refuse_foreign, with_guide_room
from .report import page_of
from .workers import RayOption, ShardOption, WorkersOption, spread, to_shard

_L = "Method trice and its baselines"


def improve(
    context: typer.Context,
    questions: QuestionsArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder of the job; running again goes on.")],
    eval: Annotated[
        Path | None,
        typer.Option("--eval", help="Held-out questions with answers; without, nothing is scored."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="rest: keep the best of several trajectories, train, repeat. trice: train while drawing; a question "
            "holds one right trajectory, which moves as a Markov chain. Its baselines: star, rejection, filtered; for "
            "--agent reason also reference (the questions' own rationales) and direct (the answer alone)."
        ),
    ] = REST,
    generations: Annotated[int, typer.Option(min=0, help="Rounds of rollout and training.")] = 1,
    pilot: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Questions that a guide shows how to answer before all else; by default 100 with --teacher, --noise "
            "or, of --method rest, an agent that searches; else none.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Let this model show it instead, a local one or http://HOST:PORT/v1#NAME."),
    ] = None,
    ranker: Annotated[
        str,
        typer.Option(
            help="What is kept. gold: right answers; likelihood: by the model's own scores, no answers needed; "
            "completed: every completed trajectory."
        ),
    ] = "gold",
    step_ranker: Annotated[
        str | None,
        typer.Option(help="Let each step teach its best sample: a ranker adapter, gold or random (--agent search)."),
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Share of the pilot's steps that are mistakes (--agent search).")
    ] = 0.0,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Runs over each question: 2, of rejection 4, of filtered 8.")
    ] = None,
    temperature: TemperatureOption = 0.7,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the kept, or the pilot's, trajectories.")] = 2,
    frozen_layers: Annotated[int, typer.Option(min=0, help="Lower layers that are not trained.")] = 0,
    row_length: Annotated[
        int,
        typer.Option(
            min=8,
            help="Most tokens of an example; memory grows with it. What is longer is cut, of trice and its baselines "
            "left out; report and page say it.",
        ),
    ] = 1024,
    start: Annotated[
        str, typer.Option(help="What a generation trains: previous (what the one before it made) or base.")
    ] = "previous",
    replay: Annotated[
        bool, typer.Option("--replay", help="Teach the pilot's examples in each generation too.")
    ] = False,
    per_step: Annotated[
        bool, typer.Option("--per-step", help="Make each step an example, with its prompt, instead of each trajectory.")
    ] = False,
    bf16: Bf16Option = False,
    full: Annotated[bool, typer.Option("--full", help="Train all weights but the embedding, no LoRA.")] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0.0, help="How often an unfinished training is saved; 0: after each step.")
    ] = 60.0,
    control: Annotated[
        bool, typer.Option("--control", help="Also train on equally many trajectories drawn at random.")
    ] = False,
    baseline: Annotated[bool, typer.Option(help="Also score the model as it is.")] = True,
    updates: Annotated[int, typer.Option(min=1, help="Optimiser steps.", rich_help_panel=_L)] = 60,
    minibatch: Annotated[int, typer.Option(min=1, help="Questions drawn for at a step.", rich_help_panel=_L)] = 32,
    resampled: Annotated[int, typer.Option(min=1, help="Trajectories trained on at a step.", rich_help_panel=_L)] = 16,
    estimator: Annotated[
        str, typer.Option(help="Of trice's gradient: control, basic or per-question.", rich_help_panel=_L)
    ] = "control",
    guide: Annotated[
        str | None,
        typer.Option(
            help="What writes trice's first memories: expert (scripted; agents that search), answer (the model, shown "
            "what is right or what to search) or none.",
            rich_help_panel=_L,
        ),
    ] = None,
    eval_every: Annotated[
        int, typer.Option(min=0, help="Steps between points of a learning curve; 0: none.", rich_help_panel=_L)
    ] = 0,
    model: ModelOption = DEFAULT_MODEL,
    adapter: AdapterOption = None,
    precision: PrecisionOption = "auto",
    deterministic: DeterministicOption = False,
    index: IndexOption = None,
    docs: DocsOption = None,
    k: KOption = 3,
    mode: ModeOption = "dense",
    follow: FollowOption = False,
    agent: AgentOption = "react",
    format: FormatOption = "compact",
    steps: StepsOption = None,
    seconds: SecondsOption = 60.0,
    few_shot: FewShotOption = None,
    demonstrations: DemonstrationsOption = None,
    concurrency: ConcurrencyOption = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    shard: ShardOption = None,
    workers: WorkersOption = 1,
    ray: RayOption = False,
    json: JsonOption = False,
) -> None:
    """Let the agent train itself on its own trajectories, and score it before and after.

    Killed at any time, the same command goes on. Several workers share rollouts, rankings and evaluations; one trains
    while the others wait. The adapter in the job's folder goes to the other commands with --adapter, the model that
    --full leaves there with --model and --few-shot 0. --limit cuts the training questions only.
    """
    from ..agents.question import read_questions
    from ..console import stderr, stdout
    from ..selftrain.improve import improve as run_improve
    from ..selftrain.report import Report
    from ..selftrain.trainer import TrainConfig

    refuse_foreign(context, method)
    part = to_shard(shard)
    if spread(context, shard, workers, ray):
        report = Report.load(out)
    else:
        slots = min(16, concurrency or 16)
        with nullcontext() if teacher is None else opened_model(teacher, None, precision, slots) as shown:
            shared: dict[str, Any] = {
                "start": start,
                "samples": samples,
                "pilot": make_pilot(method, agent, pilot, noise, shown),
                "train": TrainConfig(
                    epochs=epochs,
                    row_length=row_length,
                    frozen_layers=frozen_layers,
                    method="full" if full else "lora",
                    precision="bf16" if bf16 else "f32",
                    checkpoint_seconds=checkpoint_seconds,
                ),
            }
            if method == REST:
                recipe = make_rest(
                    generations=generations, ranker=ranker, temperature=temperature, replay=replay,
                    step_ranker=make_step_ranker(step_ranker, agent, model, deterministic),
                    mode="step" if per_step else "trajectory", **shared,
                )  # fmt: skip
            else:
                recipe = make_latent(
                    context, method, agent, guide=guide, estimator=estimator, steps=updates,
                    minibatch=minibatch, resampled=resampled, eval_every=eval_every, **shared,
                )  # fmt: skip
            asked = read_questions(questions, limit=limit)
            held_out = read_questions(eval) if eval is not None else None
            retriever = open_search(context, agent, index, docs, k, mode, progress=not json)
            with opened_model(model, adapter, precision, slots, deterministic) as chat:
                chosen = make_agent(
                    chat, retriever, agent=agent, format=format, steps=steps, seconds=seconds, follow=follow,
                    few_shot=few_shot, seed=seed, demonstrations=demonstrations,
                )  # fmt: skip
                report = run_improve(
                    chosen,
                    asked,
                    out=out,
                    method=with_guide_room(recipe, chosen),
                    eval=held_out,
                    seed=seed,
                    control=control,
                    baseline=baseline,
                    concurrency=concurrency,
                    deadline=2 * seconds,
                    shard=part,
                    progress=True,
                )
    if part is not None and part[0]:
        stderr().print(f"worker {shard} is done; worker 0 shows the scores", markup=False)
        return
    page = page_of(out)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    if report.arms:
        stdout().print(report.table())
    made = "model:  " if full else "adapter:"
    where = f"{made} {report.adapter}\nreport:  {out / 'report.json'}\npage:    {page}"
    stdout().print(where, markup=False, soft_wrap=True)
