"""A teacher that speaks text only is learnt from: its turns in the learner's own prompts and token ids."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda

from restill import JaxChatModel, Question, RemoteChatModel
from restill.agents.react import ReActAgent
from restill.agents.reason import ReasoningAgent
from restill.agents.run import Run
from restill.agents.search.agent import SearchAgent
from restill.agents.testing import ByteTokenizer, ScriptedModel, answer, call
from restill.models.engine.request import Request, Sampling
from restill.models.errors import RestillError
from restill.models.testing import tiny_checkpoint
from restill.retrieval.types import Chunk, Hit
from restill.selftrain.expert import ExpertModel
from restill.selftrain.improve import improve
from restill.selftrain.mixture import Mixture
from restill.selftrain.pilot import Pilot
from restill.selftrain.rest import ReST
from restill.selftrain.retold import retold
from restill.selftrain.search_expert import SearchExpertModel
from restill.selftrain.trainer import TrainConfig

ASKED = [
    Question(id=f"q{i}", question=f"Who made Ship {i}?", answers=[f"Ada {i}"], gold_titles=[f"Ship {i}"])
    for i in range(4)
]


def search(query: str) -> list[Hit]:
    """Find passages."""
    title = f"Ship {''.join(c for c in query if c.isdigit())}"
    text = f"{title} was made by Ada {title.split()[-1]}."
    return [
        Hit(chunk=Chunk(chunk_id=title, doc_id=title, title=title, text=text, start=0, end=len(text),
                        content_hash=title), score=1.0)
    ]  # fmt: skip


def speaking(expert: Any, manner: str = "{}") -> Any:
    """A chat model of LangChain's that says what a scripted expert would, in its own manner."""

    def reply(messages: Any, **_: Any) -> AIMessage:
        tokenizer = expert.tokenizer
        prompt = tuple(tokenizer.encode("\n".join(str(message.content) for message in messages)))
        request = Request(prompt=prompt, sampling=Sampling(max_tokens=10_000))
        text = asyncio.run(expert.agenerate_tokens(request)).text
        return AIMessage(manner.format(text.removesuffix("<|im_end|>")))

    return RunnableLambda(reply)


@pytest.mark.parametrize("kind", ["react", "compact", "code"])
def test_it_reads_as_if_the_learner_had_done_it(kind: str) -> None:
    options: dict[str, Any] = {"few_shot": 0, "observation_tokens": 4000, "step_tokens": 2000}
    if kind == "react":
        expert: Any = ExpertModel(ByteTokenizer(), ASKED)
        learner: Any = ReActAgent(expert, [search], **options)
    else:
        expert = SearchExpertModel(ByteTokenizer(), ASKED, format=kind)
        learner = SearchAgent(expert, [search], format=kind, samples=1, **options)
    manner = "{}" if kind == "code" else "\n {}\n"  # a parser lets this pass, and nobody is to learn it
    said = learner.replace(model=speaking(expert, manner)).invoke(ASKED[0]).trajectory
    own = learner.invoke(ASKED[0]).trajectory
    assert said.text_only and said.status == "answered", said.error
    told = retold(learner, said)
    assert list(told.prompts()) == list(own.prompts()) and told.token_ids() == own.token_ids()
    assert Mixture.from_trajectories([told]).examples[0].tokens == Mixture.from_trajectories([own]).examples[0].tokens


def test_a_rationale_is_learnt_as_it_was_thought() -> None:
    asked = Question(id="q", question="What is 2 + 2?", answers=["4"])
    own = ReasoningAgent(ScriptedModel(["It is 4. The answer is 4."])).invoke(asked).trajectory
    spoken = RunnableLambda(lambda *_, **__: AIMessage("It is 4. The answer is 4."))
    teacher = Pilot(teacher=spoken, samples=1)
    learner = ReasoningAgent(ScriptedModel([]))
    said = teacher.guided(learner, [asked]).invoke(asked).trajectory
    [kept] = teacher.keep(learner, [said], [asked])
    assert kept.key == said.key and said.text_only
    assert teacher.told(learner, said).token_ids() == own.token_ids()


def test_every_right_run_of_a_teacher_is_kept() -> None:
    learner = ReActAgent(ExpertModel(ByteTokenizer(), ASKED), [search], few_shot=0, step_tokens=2000)

    def run(sample: int, thought: str) -> Any:
        turns = iter([call("search", query="Ship 0", thought=thought), answer("Ada 0", 1)])
        teacher = RunnableLambda(lambda *_, **__: AIMessage(next(turns)))
        return learner.replace(model=teacher).invoke(ASKED[0]).trajectory.model_copy(update={"sample": sample})

    runs = [run(0, "I look."), run(1, "I search."), run(2, "I look.")]
    kept = Pilot(teacher=RunnableLambda(str), samples=3).keep(learner, runs, ASKED)
    assert [k.key.sample for k in kept] == [0, 1]


def test_an_agent_of_another_kind_is_refused() -> None:
    expert = SearchExpertModel(ByteTokenizer(), ASKED)
    own = SearchAgent(expert, [search], few_shot=0, samples=1).invoke(ASKED[0]).trajectory
    with pytest.raises(RestillError, match="is of search-compact-1, the agent"):
        retold(ReActAgent(ExpertModel(ByteTokenizer(), ASKED), [search]), own)


@pytest.fixture
def url() -> Iterator[str]:
    """An OpenAI-compatible server on this machine; of the four questions it gets the last wrong."""
    expert = ExpertModel(ByteTokenizer(), ASKED)
    model = speaking(expert)

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            messages = [AIMessage(message["content"]) for message in asked["messages"]]
            text = model.invoke(messages).content.replace("Ada 3", "Bob")
            body = {"model": "big", "choices": [{"message": {"role": "assistant", "content": text},
                                                 "finish_reason": "stop"}]}  # fmt: skip
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_model_behind_a_server_teaches_the_pilot(url: str, tmp_path: Path) -> None:
    learner = JaxChatModel.from_checkpoint(tiny_checkpoint(layers=1), slots=2, max_context=1024)
    agent = ReActAgent(learner, [search], few_shot=0)
    train = TrainConfig(rank=2, lr=0.01, epochs=1, rows=1, row_length=768, frozen_layers=0)

    def job(name: str) -> Any:
        pilot = Pilot(teacher=RemoteChatModel(base_url=url, model=name))
        return improve(agent, ASKED, out=tmp_path / "job", method=ReST(generations=0, pilot=pilot, train=train))

    report = job("big")
    learner.close()
    run = Run.open(tmp_path / "job" / "pilot" / "rollout")
    assert len(list(run)) == 4 and all(t.text_only for t in run)
    learnt = [learner.tokenizer.decode(e.tokens) for e in Mixture.load(tmp_path / "job" / "pilot" / "mixture.jsonl")]
    assert len(learnt) == 3 and all('"answer": "Ada' in text for text in learnt)
    assert (Path(report.adapter) / "adapter_model.safetensors").is_file()
    with pytest.raises(RestillError, match="models.pilot.teacher"):
        job("other")


def test_a_pilot_whose_teacher_was_away_is_made_when_it_is_back(tmp_path: Path) -> None:
    learner = ScriptedModel([])
    learner.checkpoint, learner.with_adapter, learner.adapter = tiny_checkpoint(layers=1), None, None
    agent, here = ReActAgent(learner, [search], few_shot=0), [False]
    spoken = speaking(ExpertModel(ByteTokenizer(), ASKED))

    def reply(messages: Any, **_: Any) -> AIMessage:
        if not here[0]:
            raise RestillError("the server is away")
        return spoken.invoke(messages)

    train = TrainConfig(rank=2, epochs=1, row_length=4096)
    method = ReST(generations=0, pilot=Pilot(teacher=RunnableLambda(reply)), train=train)
    for _ in range(3):
        with pytest.raises(RestillError, match="4 of 4 runs in .* failed, such as with: .*server is away"):
            improve(agent, ASKED, out=tmp_path / "job", method=method)
    here[0] = True
    with pytest.raises(TypeError):  # this learner cannot put on what it has learnt
        improve(agent, ASKED, out=tmp_path / "job", method=method)
    assert (tmp_path / "job" / "pilot" / "adapter" / "adapter_model.safetensors").is_file()


def test_an_expert_and_a_teacher_are_not_both() -> None:
    with pytest.raises(RestillError, match="give one of them"):
        Pilot(teacher=object(), noise=0.1)
