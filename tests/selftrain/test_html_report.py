"""The page of a job: its numbers are those of the runs, nothing in it can act, and it needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import lxml.html
import pytest

from restill.agents.evaluate import EvalReport
from restill.agents.question import Question
from restill.agents.run import Run
from restill.agents.scores import exact_match
from restill.agents.search.agent import SearchAgent
from restill.agents.testing import ScriptedModel, make_hit
from restill.models.engine.request import Request
from restill.models.engine.stats import Stats
from restill.models.errors import RestillError
from restill.retrieval.intervals import bootstrap_interval, paired_interval
from restill.retrieval.types import Hit
from restill.selftrain.digests import digest
from restill.selftrain.files import read_json
from restill.selftrain.html_report import cases, write_html
from restill.selftrain.job import Job
from restill.selftrain.job_folder import JobFolder
from restill.selftrain.loss_log import LossLog
from restill.selftrain.mixture import Mixture
from restill.selftrain.mixture_phases import MixturePhases
from restill.selftrain.rest import ReST
from restill.selftrain.selection import Kept
from restill.selftrain.step_rankers import RandomStepRanker

ATTACK = '<script>alert("1")</script><img src=x onerror=alert(2)>'
NOISE = "</pre></details><script src='http://evil.example/x.js'></script>"
LOOK, NOTE, STOP = "Thought: I look.\nSearch: Rome", "Summary: A city.\nLinks: 1", "Thought: I know.\nTerminate"
TALK = {  # per arm, what it answers to question 0, 1 and 2: its draft, and what the first self-check says
    "base": [("Answer: Oslo [1]", "Passed")] * 3,
    "pilot": [("Answer: Oslo [1]", "Revise: Rome [1]")] + [("Answer: Oslo [1]", "Passed")] * 2,
    "gen1": [(f"Answer: {ATTACK} [1]", "Passed"), ("Answer: Rome [1]", "Passed"), ("Answer: Rome [1]", "Revise: Oslo")],
    "control": [("Answer: Rome [1]", "Passed")] + [("Answer: Oslo [1]", "Passed")] * 2,
}
METHOD = ReST(step_ranker=RandomStepRanker(1))
SCORES = {"base": [0, 0, 0], "pilot": [1, 0, 0], "gen1": [0, 1, 0], "control": [1, 0, 0]}
QUESTIONS = [Question(id=f"q{n}", question=f"Capital {n} {ATTACK}?", answers=["Rome"]) for n in range(3)]
TRAIN = [
    Question(id=f"t{n}", question=f"Capital {n} of old?", answers=["Rome"], gold_titles=["Rome"]) for n in range(2)
]


def search(query: str) -> list[Hit]:
    """Search the documents."""
    return [make_hit("d1", "Rome", f"Rome is a city. {NOISE}")]


def agent(arm: str) -> SearchAgent:
    """Every third sample cannot be read; half of the searches look for the wrong city."""

    def reply(prompt: str, request: Request) -> str:
        asked = prompt[prompt.rindex("Question: ") :]
        draft, check = TALK[arm][int(asked.split("Capital ")[1][0])]
        turns = [LOOK, NOTE, STOP, draft, check, "Passed"]
        turn = turns[min(asked.count("<|im_start|>assistant\n") - 1, 5)]
        return (
            NOISE
            if request.seed % 3 == 0
            else turn.replace("Search: Rome", f"Search: {['Rome', 'Oslo'][request.seed % 2]}")
        )

    model: Any = ScriptedModel(reply, fingerprint=arm)
    model.checkpoint = None  # nothing is trained here
    model.engine = SimpleNamespace(
        stats=lambda: Stats(steps=1, rows=3 * len(model.requests), places=4 * len(model.requests))
    )
    return SearchAgent(model, [search], few_shot=0, samples=3, temperature=0.5, step_tokens=300)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of real rollouts, rankings, mixtures and evaluations; only the training is a log of losses."""
    out = tmp_path_factory.mktemp("report") / "job <b>"
    settings = {"method": METHOD.knobs(), "seed": 7, "eval_samples": 1, "control": True, "note": ATTACK}
    settings |= {"agent": agent("base").config, "train_questions": digest(TRAIN), "eval_questions": digest(QUESTIONS)}
    options = {"concurrency": 4, "deadline": 60.0, "progress": False}
    phases = MixturePhases(Job(out, settings), agent("base"), TRAIN, QUESTIONS, METHOD, 7, 1, options)
    phases.score("base", "base", agent("base"))
    grown: tuple[Run, str] | None = None
    for place, arm in enumerate(("pilot", "gen1", "control"), 1):
        if arm != "control":
            grown = phases.roll_out(arm, agent(arm), TRAIN, 2)
        assert grown is not None
        run, content = grown
        kept = phases.keep(arm, run, content, lambda run=run: [Kept(t.key, 1.0) for t in run])
        if arm == "gen1":
            phases.rank(arm, run, kept, agent(arm), RandomStepRanker(1))
        phases.mix(arm, run, kept, None)
        log = LossLog(out / arm / "adapter" / "train_log.jsonl")
        log.cut(0)
        for step in range(1, 4):
            log.append({"step": step, "epoch": 0, "loss": place / step, "grad_norm": 1.0})
        phases.job.phase(f"{arm}/train", {}, lambda cut=place: {"steps": 3, "truncated": cut})
        phases.score(arm, arm, agent(arm))
    return out


@pytest.fixture(scope="module")
def page(job: Path) -> Any:
    """The page, parsed."""
    return parse(write_html(job))


def parse(path: Path) -> Any:
    return lxml.html.fromstring(path.read_text(encoding="utf-8"))


def text(element: Any) -> str:
    return " ".join(element.text_content().split())


def tables(page: Any, section: str) -> list[dict[str, list[str]]]:
    """Each table of a section: first cell -> the other cells."""
    listed = page.get_element_by_id(section).iter("table")
    return [{text(r[0]): [text(c) for c in r[1:]] for r in table.iter("tr") if r[0].tag == "td"} for table in listed]


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def between(interval: tuple[float, float], scale: float = 100, form: str = ".1f") -> str:
    return " to ".join(f"{scale * end:{form}}" for end in interval)


def runs(job: Path) -> Mapping[str, list[Any]]:
    """Arm -> its trajectories on the held-out questions, in the order of the questions."""
    place = {q.key: n for n, q in enumerate(QUESTIONS)}
    names = {"base": "base", "pilot": "pilot", "generation 1": "gen1", "control": "control"}
    return {
        name: sorted(Run.open(job / folder / "eval"), key=lambda t: place[t.question_key])
        for name, folder in names.items()
    }


def test_accuracy_and_paired_differences_are_those_of_the_runs(job: Path, page: Any) -> None:
    scores, _ = tables(page, "accuracy")
    right = {}
    for name, found in runs(job).items():
        right[name] = [exact_match(t.answer, ["Rome"]) for t in found]
        assert scores[name][:2] == [share(mean(right[name])), between(bootstrap_interval(right[name]))]
    assert list(right.values()) == list(SCORES.values())
    rows = page.get_element_by_id("accuracy").findall(".//tr")
    listed = [[text(c) for c in row] for row in rows if len(row) == 4 and row[0].tag == "td"]
    pairs = [("pilot", "base"), ("generation 1", "base"), ("generation 1", "pilot"), ("generation 1", "control")]
    for row, (a, b) in zip(listed, pairs, strict=True):
        points = f"{100 * (mean(right[a]) - mean(right[b])):+.1f}"
        assert row == [a, b, points, between(paired_interval(right[a], right[b]), form="+.1f")]


def test_searches_tokens_and_parse_failures_are_those_of_the_runs(job: Path, page: Any) -> None:
    (rows,) = tables(page, "behaviour")
    for name, found in runs(job).items():
        calls = [float(len(t.calls())) for t in found]
        samples = [s for t in found for step in t.steps for s in step.samples]
        unread = [s for s in samples if s.error is not None]
        steps = [step for t in found for step in t.steps]
        lost = [s for s in steps if s.action is None]
        assert unread, "the script writes samples that nobody can read"
        assert rows[name] == [
            str(len(found)),
            f"{mean(calls):.2f}",
            between(bootstrap_interval(calls), 1, ".2f"),
            f"{mean(t.usage.generated for t in found):.1f}",
            f"{mean(t.usage.prompt for t in found):.1f}",
            f"{mean(t.usage.cached for t in found):.1f}",
            f"{mean(t.seconds for t in found):.2f}",
            f"{len(lost)} of {len(steps)} ({share(len(lost) / len(steps))})",
            f"{len(unread)} of {len(samples)} ({share(len(unread) / len(samples))})",
            "75.0 %",
            "3 answered",
        ]


def test_drafts_stand_beside_the_final_answers(job: Path, page: Any) -> None:
    (rows,) = tables(page, "checks")
    assert set(rows) == {"base", "pilot", "generation 1", "control"}
    for name, found in runs(job).items():
        drafts = [exact_match(t.draft, ["Rome"]) for t in found]
        finals = [exact_match(t.answer, ["Rome"]) for t in found]
        assert rows[name][:6] == [
            share(mean(drafts)),
            between(bootstrap_interval(drafts)),
            share(mean(finals)),
            between(bootstrap_interval(finals)),
            f"{100 * (mean(finals) - mean(drafts)):+.1f}",
            between(paired_interval(finals, drafts), form="+.1f"),
        ]
    assert rows["pilot"][6:] == ["3", "1", "1", "0"] and rows["generation 1"][6:] == ["3", "1", "0", "1"]


def test_rankers_mixtures_and_phases_are_listed(job: Path, page: Any) -> None:
    (rankers,) = tables(page, "rankings")
    stats = read_json(job / "gen1" / "rank.done.json")["result"]
    assert list(rankers) == ["gen1/rollout, steps"] and stats["gold_steps"] > 0
    assert rankers["gen1/rollout, steps"] == [
        *(str(stats[name]) for name in ("steps", "ranked", "unread")),
        *(share(stats[name]) for name in ("changed", "gold_agreement", "base_gold_agreement")),
        str(stats["gold_steps"]),
    ]
    (training,), (phases,) = tables(page, "training"), tables(page, "phases")
    for place, (arm, name) in enumerate((("pilot", "pilot"), ("gen1", "generation 1"), ("control", "control")), 1):
        mixture = Mixture.load(job / arm / "mixture.jsonl")
        assert training[name][3:6] == [str(len(mixture)), str(mixture.tokens), str(mixture.targets)]
        assert training[name][6:] == [str(place), "3", f"{place / 3:.4f}"]
    assert "occupancy 0.75" in phases["gen1/rollout"][1]
    seconds = {str(f.relative_to(job)).removesuffix(".done.json"): f for f in job.glob("*/*.done.json")}
    assert {name: row[0] for name, row in phases.items()} == {
        n: str(read_json(f)["seconds"]) for n, f in seconds.items()
    }


def test_every_setting_is_in_the_manifest(job: Path, page: Any) -> None:
    settings, listed = tables(page, "manifest")
    assert settings["seed"] == ["7"] and settings["method.generations"] == ["1"]
    assert settings["method.train.lr"] == [f"{ReST().train.lr:.6g}"] and settings["note"] == [ATTACK]
    assert set(listed) == {*(f"{a}/eval" for a in SCORES), "pilot/rollout", "gen1/rollout"}
    assert listed["base/eval"][0] == "7" and "missing" not in page.xpath("//section/@id")


def test_what_changed_comes_first_with_the_arms_side_by_side(job: Path, page: Any) -> None:
    arms = [arm for arm in JobFolder.open(job).arms if arm.folder != "control"]
    assert [(c.row.id, c.changed) for c in cases(arms, 9)] == [("q0", True), ("q1", True), ("q2", False)]
    same = [arms[0], arms[2]]
    assert [c.row.id for c in cases(same, 2)] == ["q1", "q0"]
    first = page.find_class("case")[0]
    assert text(first[0]).endswith("base ✗ pilot ✓ generation 1 ✗")
    columns = first.find_class("arms")[0]
    assert [text(column[0]) for column in columns] == ["base", "pilot", "generation 1"]
    pilot = runs(job)["pilot"][0]
    shown = text(columns[1])
    assert "draft: Oslo" in shown and "answer: Rome right" in shown and text(first[1]).startswith("gold: Rome")
    for step in pilot.steps:
        assert all(" ".join(sample.text.split()) in shown for sample in step.samples)
        assert f"chosen: sample {step.chosen + 1} of {len(step.samples)}" in shown
    folded = [text(d) for d in columns[1].iter("details") if "observation: ok" in text(d)]
    assert len(folded) == len(pilot.calls()) and all("Rome is a city." in o for o in folded)
    assert len(parse(write_html(job, out=job / "few.html", questions=1)).find_class("case")) == 1


def test_text_of_models_and_of_the_web_stays_text(job: Path, page: Any) -> None:
    assert not list(page.iter("script", "img", "iframe", "object", "link", "form"))
    assert not [name for element in page.iter() for name in element.attrib if name.startswith("on")]
    case = text(page.find_class("case")[0])
    assert ATTACK in text(page.find_class("case")[0][0]), "the question"
    assert f"answer: {ATTACK} wrong" in case and f"Rome is a city. {NOISE}" in case
    assert text(page.find(".//h1")) == job.name == "job <b>"


def test_the_page_needs_nothing_but_itself(job: Path, page: Any) -> None:
    source = (job / "report.html").read_text(encoding="utf-8")
    linked = page.xpath("//@src | //@href | //@*[contains(name(), 'href')] | //@srcset | //@data | //@action")
    assert linked and all(value.startswith("#") for value in linked)
    style = " ".join([*page.xpath("//style/text()"), *page.xpath("//@style"), *page.xpath("//@clip-path")])
    assert "@import" not in style and all(t.startswith("#") for t in re.findall(r"url\(['\"]?(.)", style))
    assert "default-src 'none'" in source and len(list(page.iter("svg"))) == 3
    ids = page.xpath("//@id")
    assert len(ids) == len(set(ids)) and {v[1:] for v in linked} <= set(ids)
    drawn = " ".join(t.text_content() for t in page.iter("text"))
    assert all(label in drawn for label in ("exact match, %", "generation 1", "tool calls a question", "training loss"))


def test_the_same_job_gives_the_same_bytes_wherever_the_page_lies(job: Path, tmp_path: Path) -> None:
    first = write_html(job)
    assert first == job / "report.html"
    assert write_html(job, out=tmp_path / "new" / "page.html").read_bytes() == first.read_bytes()


def test_a_job_that_was_stopped_says_what_is_missing(job: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(job, stopped)
    for name in ("gen1/eval.done.json", "gen1/train.done.json"):
        (stopped / name).unlink()
    shutil.rmtree(stopped / "control")
    (stopped / "gen1" / "adapter").rename(stopped / "gen1" / "adapter.training")
    page = parse(write_html(stopped))
    assert tables(page, "missing")[0] == {
        "gen1/train": ["3 steps so far"],
        "gen1/eval": ["3 trajectories so far"],
        "control/keep": ["not begun"],
        "control/mixture": ["not begun"],
        "control/train": ["not begun"],
        "control/eval": ["not begun"],
    }
    assert list(tables(page, "accuracy")[0]) == ["base", "pilot"]
    for part in stopped.iterdir():
        if part.is_dir():
            shutil.rmtree(part)
    assert "No arm is scored yet." in text(parse(write_html(stopped)))


def test_what_is_no_job_is_refused_by_name(job: Path, tmp_path: Path) -> None:
    with pytest.raises(RestillError, match="no job of `restill improve` at '.*nowhere'"):
        write_html(tmp_path / "nowhere")
    Job(tmp_path / "distil", {"teacher": "a", "student": {}})
    with pytest.raises(RestillError, match="no job of `restill improve`"):
        write_html(tmp_path / "distil")
    with pytest.raises(RestillError, match="questions=-1"):
        write_html(job, questions=-1)
    broken = tmp_path / "broken"
    shutil.copytree(job, broken)
    (broken / "base" / "eval.json").write_text("{}")
    with pytest.raises(RestillError, match="eval.json is no evaluation"):
        write_html(broken)
    assert not (broken / "report.html.tmp").exists()


def test_without_matplotlib_it_says_how_to_get_it(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RestillError, match=r"pip install 'restill\[report\]'"):
        write_html(job, out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_lost_a_trajectory_still_gives_a_page(job: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(job, torn)
    (shard,) = (torn / "pilot" / "eval").glob("trajectories-*.jsonl")
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:2]))
    page = parse(write_html(torn))
    assert tables(page, "behaviour")[0]["pilot"][0] == "2"
    scored = EvalReport.model_validate(json.loads((torn / "pilot" / "eval.json").read_text()))
    assert tables(page, "accuracy")[0]["pilot"][0] == share(scored.em), "scores are those of the evaluation"
