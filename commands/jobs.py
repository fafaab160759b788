"""Commands over many questions: rollout, improve, evaluate. All of them resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.errors import RestillError
from .common import (
    DEFAULT_MODEL,
    AdapterOption,
    AgentOption,
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
    SamplesOption,
    SecondsOption,
    SeedOption,
    StepsOption,
    TemperatureOption,
    print_json,
)
from .making import make_agent, open_search, opened_model
from .workers import RayOption, ShardOption, WorkersOption, spread, to_shard

if TYPE_CHECKING:
    from ..agents.evaluate import EvalReport

QuestionsArgument = Annotated[
    Path,
    typer.Argument(metavar="QUESTIONS", help="JSONL: `question`, and `answer` or `answers` where scores are wanted."),
]


def rollout(
    context: typer.Context,
    questions: QuestionsArgument,
    out: Annotated[Path, typer.Option("--out", help="Run directory; running again does only what is missing.")],
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
    temperature: TemperatureOption = 0.0,
    samples: SamplesOption = 1,
    concurrency: ConcurrencyOption = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    shard: ShardOption = None,
    workers: WorkersOption = 1,
    ray: RayOption = False,
    json: JsonOption = False,
) -> None:
    """Let the agent answer many questions and log every trajectory.

    Samples of one question differ only when --temperature is above 0.
    """
    from ..agents.question import read_questions
    from ..agents.rollout import rollout as run_rollout
    from ..agents.run import Run
    from ..console import run_summary, stdout

    if spread(context, shard, workers, ray):
        run = Run.open(out)
    else:
        asked, part = read_questions(questions, limit=limit), to_shard(shard)
        retriever = open_search(context, agent, index, docs, k, mode, progress=not json)
        with opened_model(model, adapter, precision, min(16, concurrency or 16), deterministic) as chat:
            made = make_agent(
                chat,
                retriever,
                agent=agent,
                format=format,
                steps=steps,
                seconds=seconds,
                follow=follow,
                few_shot=few_shot,
                demonstrations=demonstrations,
                temperature=temperature,
                seed=seed,
            )
            run = run_rollout(
                made,
                asked,
                out=out,
                samples=samples,
                concurrency=concurrency,
                deadline=2 * seconds,
                seed=seed,
                shard=part,
                progress=True,
            )
    if json:
        print_json(run.summary())
    else:
        stdout().print(run_summary(run.summary()))
        stdout().print(f"trajectories in {out}; see them with: restill show {out}", markup=False, soft_wrap=True)


def evaluate(
    context: typer.Context,
    questions: QuestionsArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Run directory; by default one under $RESTILL_HOME, so that it resumes too."),
    ] = None,
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
    temperature: TemperatureOption = 0.0,
    samples: SamplesOption = 1,
    concurrency: ConcurrencyOption = None,
    seed: SeedOption = 0,
    limit: LimitOption = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="ADAPTER", help="Also judge every answer against the known ones with this judge adapter."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score the agent against known answers: exact match and F1 with 95 % intervals.

    Answers that were forced after the budget had run out are counted apart.
    """
    from ..agents.evaluate import evaluate as run_evaluate
    from ..agents.question import read_questions
    from ..console import stdout
    from ..models.home import home

    base = None if judge is None else _judge_base(judge)
    asked = read_questions(questions, limit=limit)
    retriever = open_search(context, agent, index, docs, k, mode, progress=not json)
    with opened_model(model, adapter, precision, min(16, concurrency or 16), deterministic) as chat:
        made = make_agent(
            chat,
            retriever,
            agent=agent,
            format=format,
            steps=steps,
            seconds=seconds,
            follow=follow,
            few_shot=few_shot,
            demonstrations=demonstrations,
            temperature=temperature,
            seed=seed,
        )
        report = run_evaluate(
            made,
            asked,
            out=out or home() / "runs" / f"eval-{questions.stem}-{made.fingerprint[:8]}-seed{seed}",
            samples=samples,
            seed=seed,
            concurrency=concurrency,
            deadline=2 * seconds,
            progress=True,
        )
    judged = None if judge is None or base is None else _judged(report, base, judge, precision)
    if json:
        print_json({**report.model_dump(mode="json"), **({} if judged is None else {"judged": judged})})
    else:
        stdout().print(report.table())
        if judged is not None:
            stdout().print(f"accepted by the judge {judge}: {100 * judged:.1f} %", markup=False, soft_wrap=True)
        stdout().print(f"trajectories in {report.run}", markup=False, soft_wrap=True)


def _judge_base(adapter: str) -> str:
    """The base model of a judge adapter, looked up before anything is run."""
    from ..models.lora import find_adapter, load_peft
    from ..selftrain.judge import JUDGE_FORMAT

    manifest = load_peft(find_adapter(adapter)).info.manifest
    if manifest.get("format") != JUDGE_FORMAT:
        raise RestillError(
            f"--judge {adapter!r} is no judge adapter; train one with restill.selftrain.judge_adapter.train_judge"
        )
    return str(manifest.get("base", DEFAULT_MODEL))


def _judged(report: EvalReport, base: str, adapter: str, precision: str) -> float:
    from ..selftrain.judge import Judge

    with opened_model(base, adapter, precision, slots=16) as chat:
        return Judge(model=chat).share_right(report)
