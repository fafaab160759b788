"""The command line, on a random model and a random encoder: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from restill import Run, read_questions
from restill.cli import app
from restill.commands.making import open_retriever
from restill.commands.methods import LATENT
from restill.models.errors import RestillError
from restill.models.testing import save_tiny, save_tiny_encoder

COMMANDS = [
    "pull",
    "index",
    "ask",
    "questions",
    "rollout",
    "improve",
    "report",
    "distill",
    "eval",
    "eval-retrieval",
    "show",
    "world",
    "task",
]
QUICK = ["--few-shot", "0", "--steps", "1", "--seconds", "60"]
STEADY = [*QUICK, "--deterministic"]  # few programs to compile


def run(*args, code=0, env=None):
    """Run a command, check its exit code, return the result."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env=env)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, an index and questions; ``$RESTILL_HOME`` is inside."""
    folder = tmp_path_factory.mktemp("cli")
    save_tiny(folder / "model", layers=1)
    save_tiny_encoder(folder / "encoder")
    (folder / "docs").mkdir()
    (folder / "docs" / "kestrel.md").write_text("# Kestrel\nThe Kestrel was built by Hallow Works.\n")
    (folder / "docs" / "hallow.txt").write_text("Hallow Works was founded by Ada Brann.\n")
    rows = [{"id": f"q{i}", "question": f"Who built engine {i}?", "answer": "Ada Brann"} for i in range(4)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTILL_HOME", str(folder / "home"))
        patch.setenv("RESTILL_MODEL", str(folder / "model"))
        patch.setenv("RESTILL_INDEX", str(folder / "index"))
        run("index", folder / "docs", "--out", folder / "index", "--encoder", folder / "encoder")
        yield folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(command):
    text = run(command, "--help").stdout
    assert len(text.splitlines()) > 8 and "--" in text


def test_the_root_lists_all_commands_and_the_version():
    text = run("--help").stdout
    assert all(command in text for command in COMMANDS)
    assert run("--version").stdout.startswith("restill ")


def test_index_reports_as_json(place):
    args = ["index", place / "docs", "--out", place / "again", "--encoder", place / "encoder", "--json"]
    report = json.loads(run(*args).stdout)
    assert report["documents"] == 2 and report["passages"] == 2


def test_index_follows_its_files_and_checks_itself(place, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Hallow Works was founded by Ada Brann.")
    args = ["index", tmp_path / "docs", "--out", tmp_path / "index", "--encoder", place / "encoder"]
    assert "1 documents, 1 passages" in run(*args).stdout
    (tmp_path / "docs" / "b.txt").write_text("The Kestrel flies.")
    (tmp_path / "docs" / "a.txt").rename(tmp_path / "a.txt")
    again = run(*args)
    assert "(1 added)" in again.stdout and "--prune would delete a.txt" in again.stderr
    report = json.loads(run("index", "--out", tmp_path / "index", "--delete", "a.txt", "--json").stdout)
    assert (report["documents"], report["deleted"]) == (1, 1)
    assert "agree" in run("index", "--out", tmp_path / "index", "--check").stdout
    for file in (tmp_path / "index").glob("*.faiss"):
        file.unlink()
    assert "is missing" in run("index", "--out", tmp_path / "index", "--check", code=1).stdout
    assert "agree" in run("index", "--out", tmp_path / "index", "--repair").stdout
    assert "give PATHs to index" in run("index", "--out", tmp_path / "index", code=1).stderr


def test_several_indexes_are_searched_as_one(place, tmp_path):
    (tmp_path / "c.txt").write_text("The sea is deep.")
    run("index", tmp_path / "c.txt", "--out", tmp_path / "more", "--encoder", place / "encoder")
    retriever = open_retriever([place / "index", tmp_path / "more"], None, k=3)
    assert {hit.chunk.doc_id for hit in retriever.search(["sea"])[0]} == {"kestrel.md", "hallow.txt", "c.txt"}


def test_ask_shows_every_step_and_the_status(place):
    result = CliRunner().invoke(app, ["ask", "Who built it?", *QUICK])
    assert "step 1" in result.stdout and "steps" in result.stdout
    assert result.exit_code in (0, 1)


def test_ask_as_json_is_one_object_and_repeats(place):
    first, second = (CliRunner().invoke(app, ["ask", "Who built it?", *QUICK, "--json"]) for _ in range(2))
    one, two = json.loads(first.stdout), json.loads(second.stdout)
    assert one["status"] in ("answered", "budget")
    assert one.get("answer") == two.get("answer")
    assert (first.exit_code == 0) == ("answer" in one)


def test_follow_gives_the_agent_a_second_tool(place):
    asked = [CliRunner().invoke(app, ["ask", "Who?", *QUICK, "--json", *more]) for more in ([], ["--follow"])]
    plain, follow = (json.loads(result.stdout)["trajectory"]["agent"] for result in asked)
    assert plain != follow
    for command in ("ask", "rollout", "eval", "improve"):
        assert "--follow" in run(command, "--help", env={"COLUMNS": "200"}).stdout


def test_ask_reads_documents_into_memory(place, monkeypatch):
    monkeypatch.setattr("restill.retrieval.retriever.DEFAULT_ENCODER", str(place / "encoder"))
    monkeypatch.setattr("restill.commands.making.fetch", lambda names: {})
    monkeypatch.delenv("RESTILL_INDEX")
    result = CliRunner().invoke(app, ["ask", "Who?", "--docs", str(place / "docs"), *QUICK, "--json"])
    assert json.loads(result.stdout)["trajectory"]["question"] == "Who?"


def test_rollout_resumes_and_show_tells(place):
    out = place / "run"
    args = [
        "rollout",
        place / "questions.jsonl",
        "--out",
        out,
        "--samples",
        2,
        "--temperature",
        1.0,
        *QUICK,
        "--json",
    ]
    rows = json.loads(run(*args).stdout)
    assert rows[0]["trajectories"] == 8
    before = [t.to_json() for t in Run.open(out)]
    run(*args)
    assert [t.to_json() for t in Run.open(out)] == before

    assert len(run("show", out, "--json").stdout.splitlines()) == 8
    listed = run("show", out, "--limit", 3).stdout
    name = next(iter(Run.open(out))).id
    assert name in listed and "8 trajectories" in listed
    assert "step 1" in run("show", out, name).stdout
    assert len(run("show", out, "q1", "--json").stdout.splitlines()) == 2


def test_shards_share_a_run(place):
    out = place / "shards"
    for shard in ("0/2", "1/2"):
        run("rollout", place / "questions.jsonl", "--out", out, "--shard", shard, *STEADY)
    assert len(Run.open(out)) == 4


@pytest.mark.slow
def test_workers_share_a_run_and_only_their_parent_prints(place):
    args = ["rollout", place / "questions.jsonl", "--out", place / "workers", "--deterministic", *QUICK]
    (row,) = json.loads(run(*args, "--workers", 2, "--json").stdout)
    assert row["trajectories"] == 4 and row["config"]["model"]["deterministic"]
    assert len(list((place / "workers").glob("trajectories-?-of-2.jsonl"))) == 2


def test_what_a_worker_cannot_do_is_said_once(place):
    args = ["rollout", place / "none.jsonl", "--out", place / "none", "--workers", 2]
    error = run(*args, code=1).stderr
    assert "of 2 failed: " in error and error.count("none.jsonl") == 1


def test_eval_scores_and_keeps_its_run_at_home(place):
    args = ["eval", place / "questions.jsonl", "--limit", 3, *STEADY]
    report = json.loads(run(*args, "--json").stdout)
    assert report["questions"] == 3 and 0 <= report["em"] <= 1
    assert report["run"].startswith(str(place / "home"))
    assert "exact match" in run(*args).stdout


def test_eval_also_asks_a_judge(place):
    import jax

    from restill.models.checkpoint.load import load_decoder
    from restill.models.lora import init_lora, save_peft
    from restill.selftrain.judge import JUDGE_FORMAT

    base = load_decoder(place / "model")
    leaves = init_lora(base.config, rank=2, key=jax.random.key(0))
    manifest = {"base": base.name, "format": JUDGE_FORMAT}
    save_peft(place / "judge", leaves, base.config, alpha=2, manifest=manifest)
    args = ["eval", place / "questions.jsonl", "--limit", 2, *STEADY, "--judge", place / "judge"]
    assert 0 <= json.loads(run(*args, "--json").stdout)["judged"] <= 1
    assert "accepted by the judge" in run(*args).stdout


def test_world_is_the_same_for_the_same_seed(tmp_path):
    args = ["--entities", 60, "--train", 20, "--heldout", 10, "--seed", 3]
    counts = json.loads(run("world", "--out", tmp_path / "a", *args, "--json").stdout)
    assert (counts["train"], counts["heldout"]) == (20, 10)
    run("world", "--out", tmp_path / "b", *args)
    for name in ("corpus.jsonl", "train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_improve_trains_a_pilot_and_resumes(place, tmp_path):
    run("world", "--out", tmp_path, "--entities", 60, "--train", 12, "--heldout", 2)
    run("index", tmp_path / "corpus.jsonl", "--out", tmp_path / "index", "--encoder", place / "encoder")
    args = [
        "improve",
        tmp_path / "train.jsonl",
        "--out",
        tmp_path / "job",
        "--eval",
        tmp_path / "heldout.jsonl",
    ]
    args += [
        "--index",
        tmp_path / "index",
        "--generations",
        0,
        "--pilot",
        6,
        "--epochs",
        1,
        "--row-length",
        768,
        "--start",
        "base",
        "--replay",
        "--per-step",
        "--bf16",
        "--steps",
        4,
        "--deterministic",
        "--json",
    ]
    report = json.loads(run(*args).stdout)
    assert [arm["name"] for arm in report["arms"]] == ["base", "pilot"]
    made = report["method"]
    assert (made["start"], made["replay"], made["mode"]) == ("base", True, "step")
    assert (made["train"]["row_length"], made["train"]["precision"]) == (768, "bf16")
    assert "truncated" in report["phases"]["pilot/train"]
    assert report["deltas"][0]["interval"] and json.loads(run(*args, "--no-baseline").stdout) == report  # it was scored
    result = CliRunner().invoke(app, ["ask", "Who?", "--adapter", report["adapter"], *QUICK, "--json"])
    assert json.loads(result.stdout)["trajectory"]["adapter"] == "adapter"
    assert (tmp_path / "job" / "report.html").read_text().count('class="case"') == 2
    told = run("report", tmp_path / "job", "--out", tmp_path / "page.html", "--questions", 1).stdout
    assert str(tmp_path / "page.html") in told and (tmp_path / "page.html").read_text().count('class="case"') == 1


def test_trice_trains_an_agent_that_only_thinks(place, tmp_path):
    told = json.loads(run("task", "chains", "--out", tmp_path, "--train", 6, "--heldout", 2, "--json").stdout)
    assert (told["train"], told["heldout"], told["demonstrations"]) == (6, 2, 3)
    thinks = ["--agent", "reason", "--demonstrations", tmp_path / "demonstrations.jsonl", "--seconds", 60]
    args = ["improve", tmp_path / "train.jsonl", "--out", tmp_path / "job", "--eval", tmp_path / "heldout.jsonl"]
    args += ["--method", "trice", "--updates", 2, "--minibatch", 3, "--estimator", "basic", "--row-length", 512]
    args += [*thinks, "--few-shot", 1, "--deterministic", "--json"]
    report = json.loads(run(*args).stdout)
    assert [arm["name"] for arm in report["arms"]] == ["base", "TRICE"]
    made = report["method"]
    assert (made["steps"], made["minibatch"], made["estimator"], made["guide"]) == (2, 3, "basic", "answer")
    assert made["pilot"] is None and made["train"]["row_length"] == 512 < made["max_context"]  # beside demonstrations
    assert (tmp_path / "job" / "TRICE" / "guide").is_dir() and json.loads(run(*args).stdout) == report
    trained = ["--adapter", report["adapter"], *thinks, "--deterministic"]
    scored = json.loads(run("eval", tmp_path / "heldout.jsonl", *trained, "--json").stdout)
    assert scored["questions"] == 2
    assert "method.steps: 2 there, 3 now" in run(*args, "--updates", 3, code=1).stderr


def test_every_method_has_a_name_on_the_command_line(monkeypatch, place):
    asked = []
    monkeypatch.setattr("restill.selftrain.improve.improve", lambda *_, method, **__: asked.append(method) or 1 / 0)
    for name, options in {**dict.fromkeys(LATENT, ["--updates", 2]), "rest": []}.items():
        args = ["improve", place / "questions.jsonl", "--out", place / "none", "--agent", "reason", "--method", name]
        result = CliRunner().invoke(app, [str(arg) for arg in (*args, *options)])
        assert isinstance(result.exception, ZeroDivisionError), result.stderr
    names = ["TRICE", "STaR", "RejectionSampling", "FilteredSFT", "ReferenceSFT", "DirectAnswer", "ReST"]
    assert [type(method).__name__ for method in asked] == names
    assert all(method.pilot is None for method in asked) and asked[0].steps == 2 and asked[1].rounds == 2


def test_passages_in_square_brackets_are_not_taken_for_markup(place):
    from rich.console import Console

    from restill.agents.trajectory import Observation, Passage, Sample, Step
    from restill.console import show_step

    passages = [Passage(handle=n, doc_id=f"d{n}", chunk_id=f"d{n}#0", start=0, end=9) for n in (1, 2)]
    text = "Observation: [1] A: see [2001] and [red]b[/red] [2] B: c"
    step = Step(samples=[Sample(text="")], observation=Observation(status="ok", text=text, passages=passages))
    screen = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    screen.print(show_step(step, 1))
    shown = screen.export_text()
    assert "[1] d1  A: see [2001] and [red]b[/red]" in shown and "[2] d2  B: c" in shown


TRAIN = ["improve", "{place}/questions.jsonl", "--out", "{empty}/j"]
BAD = [
    (["pull", "no-such-model"], "unknown model"),
    (["index", "missing"], "no such file"),
    (["index", "{empty}"], "no documents"),
    (["ask", " "], "question is empty"),
    (["ask", "Who?", "--model", "no-such-model"], "unknown model"),
    (["ask", "Who?", "--adapter", "no-such-adapter"], "unknown adapter"),
    (["ask", "Who?", "--precision", "int3"], "int3"),
    (["ask", "Who?", "--index", "missing"], "missing"),
    (["ask", "Who?", "--index", "{place}", "--docs", "{place}"], "exclude"),
    (["ask", "Who?", "--model", "http://127.0.0.1:1/v1"], "#MODEL"),
    (["ask", "Who?", "--model", "http://127.0.0.1:1/v1#m", "--adapter", "x"], "remote"),
    (["eval", "{place}/questions.jsonl", "--model", "http://127.0.0.1:1/v1#m", "--deterministic"], "remote"),
    (["rollout", "missing.jsonl", "--out", "{empty}/r"], "missing.jsonl"),
    (["rollout", "{place}/questions.jsonl", "--out", "{empty}/r", "--shard", "2/2"], "--shard"),
    (["rollout", "{place}/questions.jsonl", "--out", "{place}/questions.jsonl"], "is a file"),
    (["eval", "{place}/docs/kestrel.md"], "not JSON"),
    (["eval", "{place}/questions.jsonl", "--judge", "starter"], "no judge adapter"),
    (["improve", "missing.jsonl", "--out", "{empty}/j"], "missing.jsonl"),
    ([*TRAIN, "--step-ranker", "gold"], "add --agent search"),
    ([*TRAIN, "--method", "grpo"], "use rest, trice"),
    ([*TRAIN, "--updates", "3"], "--updates is an option of"),
    ([*TRAIN, "--method", "trice", "--replay"], "--replay is"),
    ([*TRAIN, "--pilot", "0", "--noise", "0.1"], "--noise"),
    ([*TRAIN, "--start", "x"], "start='x'"),
    ([*TRAIN, "--method", "trice"], "can guide none of the 4 questions"),
    ([*TRAIN, "--method", "trice", "--guide", "gold"], "use answer, expert or none"),
    ([*TRAIN, "--method", "trice", "--guide", "none", "--eval-every", "2"], "give eval"),
    ([*TRAIN, "--method", "trice", "--guide", "none", "--epochs", "2"], "--epochs is of the pilot"),
    ([*TRAIN, "--method", "trice", "--agent", "reason", "--guide", "expert"], "has no tools"),
    ([*TRAIN, "--agent", "reason", "--pilot", "2"], "has no tools"),
    ([*TRAIN, "--method", "direct"], "for a ReasoningAgent (--agent reason)"),
    ([*TRAIN, "--method", "reference", "--agent", "reason"], "has no `rationale`"),
    ([*TRAIN, "--agent", "reason", "--few-shot", "1"], "there are 0 demonstrations"),
    (
        ["ask", "Who?", "--agent", "reason", "--docs", "{place}"],
        "--docs is an option of --agent react or search, not of reason",
    ),
    (["ask", "Who?", "--agent", "reason", "--steps", "2"], "--steps is"),
    (["ask", "Who?", "--agent", "reason", "--demonstrations", "{place}/questions.jsonl"], "has no `rationale`"),
    (
        ["ask", "Who?", "--demonstrations", "{place}/questions.jsonl"],
        "--demonstrations is an option of --agent reason, not of react",
    ),
    (["ask", "Who?", "--agent", "other"], "use react, search or reason"),
    (["task", "sums", "--out", "{empty}"], "use chains, gsm8k or bbh"),
    (["task", "gsm8k", "--out", "{empty}"], "needs its file"),
    (["task", "chains", "{place}/questions.jsonl", "--out", "{empty}"], "needs no file"),
    (["task", "gsm8k", "{place}/questions.jsonl", "--out", "{empty}"], "line 1 is no GSM8K question"),
    (["show", "missing"], "no run"),
    (["world", "--out", "{empty}/w", "--entities", "10", "--train", "5000"], "entities"),
]


@pytest.mark.parametrize(("args", "message"), BAD, ids=[" ".join(args)[:40] for args, _ in BAD])
def test_bad_input_is_one_clear_line(place, tmp_path, args, message):
    args = [arg.format(place=place, empty=tmp_path) for arg in args]
    result = run(*args, code=1)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_documents_go_before_the_index_of_the_environment(place, monkeypatch):
    monkeypatch.setenv("RESTILL_INDEX", "no-such-folder")
    assert open_retriever(None, [str(place / "docs")], 3, progress=False).search(["Kestrel"])[0]
    with pytest.raises(RestillError, match="no-such-folder"):
        open_retriever(None, None, 3, progress=False)


def test_what_documents_and_models_wrote_steers_no_terminal(capsys):
    from restill.agents.react import ReActAgent
    from restill.agents.testing import ScriptedModel, answer, call, make_hit
    from restill.console import show_trajectory, stdout, warn

    evil = "\x1b]0;owned\x07\x9b2J\r"

    def search(query: str) -> list:
        """Find."""
        return [make_hit(f"id{evil}", f"title{evil}", f"text{evil}")]

    turns = [call("search", query=evil, thought=evil), answer(evil, 1)]
    stdout().print(show_trajectory(ReActAgent(ScriptedModel(turns), [search]).invoke(evil).trajectory))
    warn(evil)
    shown = "".join(capsys.readouterr())
    assert "owned" in shown and not any(ord(c) < 32 and c != "\n" or 126 < ord(c) < 160 for c in shown)


def test_wrong_usage_exits_with_2():
    run("ask", code=2)
    run("rollout", "q.jsonl", code=2)
    run("no-such-command", code=2)


def test_ctrl_c_says_how_to_go_on(monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "open", interrupted)
    assert "resume by running the same command" in run("show", "anything", code=130).stderr


def test_a_file_system_error_names_the_file(monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", "some/file")

    monkeypatch.setattr(Run, "open", full)
    assert "error: some/file: No space left on device" in run("show", "anything", code=1).stderr


class _Scripted(BaseHTTPRequestHandler):
    """Writes a question, or searches and then answers it."""

    turns = {
        "Write a question": "Answer: Hallow Works\nQuestion: Who built the Kestrel?",
        "Observation:": 'Thought: Found.\nAction: finish {"answer": "Hallow Works", "citations": [1]}',
        "": 'Thought: I search.\nAction: search {"query": "Kestrel"}',
    }

    def do_POST(self):
        messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
        seen = messages[0]["content"] + messages[-1]["content"]
        turn = next(turn for mark, turn in self.turns.items() if mark in seen)
        body = json.dumps({"choices": [{"message": {"content": turn}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def remote():
    """The name of a model behind an endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#scripted"
    server.shutdown()
    server.server_close()


def test_ask_works_with_a_remote_model(place, remote):
    result = json.loads(run("ask", "Who built the Kestrel?", "--model", remote, "--json").stdout)
    assert result["answer"] == "Hallow Works" and result["citations"]
    assert result["trajectory"]["text_only"]


def test_questions_about_documents_can_be_asked(place, remote, tmp_path):
    args = ["questions", "--model", remote, "--out", tmp_path / "q.jsonl", "--json"]
    assert json.loads(run(*args, "--count", 1).stdout)["count"] == 1
    [question] = read_questions(tmp_path / "q.jsonl")
    assert (question.question, question.answers) == ("Who built the Kestrel?", ["Hallow Works"])
    assert question.gold[0].endswith("kestrel.md")
    assert "1 fit questions of 2" in run(*args, "--count", 2, code=1).stderr


def test_distill_makes_a_model_folder_from_a_mixture(place, tmp_path):
    from restill.models.testing import tiny_checkpoint
    from restill.selftrain.mixture import Example, Mixture

    ids = tiny_checkpoint().tokenizer.encode("Thought: I need to find who built it.")
    Mixture.of([Example(tokens=tuple(ids), weights=(0.0, *[1.0] * (len(ids) - 1)))]).save(tmp_path / "mixture.jsonl")
    common = ["distill", tmp_path / "mixture.jsonl", "--student", "nano:60k", "--epochs", 1, "--row-length", 32]
    report = json.loads(run(*common, "--out", tmp_path / "job", "--logits", "--docs", place / "docs", "--json").stdout)
    assert report["parameters"]["student"] <= 60_000 and report["train"]["steps"] == 1
    assert (tmp_path / "job" / "model" / "model.safetensors").is_file()
    assert "nano:1.3m" in run(*common[:3], "huge", "--out", tmp_path / "other", code=1).stderr
