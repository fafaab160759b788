"""Trajectories: everything that happened in one run, so that it can be shown, ranked and trained on.

The token transcript is append-only: ``prompt0``, the sampled turn, what the template and the observation
add, the next sampled turn, and so on. Sampled ids are never re-tokenised; the loss mask follows from the
structure. (A search agent's code prompts are written anew at each step instead: see ``append_only``.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..retrieval.types import Citation
from .tool_results import Status as ToolStatus

SCHEMA_VERSION = 1

RunStatus = Literal["answered", "budget", "invalid", "error", "cancelled"]
StepKind = Literal["", "decide", "summarise", "answer", "relevance", "grounding"]
"""What a step of a search agent is for; a ReAct turn has none."""
ObservationStatus = ToolStatus | Literal["invalid"]


def _rounded(values: list[float]) -> list[float]:
    return [round(v, 5) for v in values]


Logprobs = Annotated[list[float], AfterValidator(_rounded)]
Seconds = Annotated[float, AfterValidator(lambda s: round(s, 4))]


class _Record(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants", extra="ignore")


class Sample(_Record):
    """One turn that the model wrote.

    Attributes:
        tokens: sampled ids, the end-of-turn token included when it was sampled; empty for text-only models.
        logprobs: per token, log p of the model itself (temperature 1, untruncated, no grammar).
        sampled_logprobs: per token, log p under the distribution it was drawn from.
        seed: of this request alone.
        cached: prompt tokens whose keys and values were reused.
        error: why it cannot be read as the step that was asked for; ``None``: it can (or it is a ReAct turn,
            whose observation says so).
    """

    text: str
    tokens: list[int] = []
    logprobs: Logprobs = []
    sampled_logprobs: Logprobs = []
    finish_reason: str = "stop"
    seed: int = 0
    cached: int = 0
    seconds: Seconds = 0.0
    error: str | None = None

    @property
    def perplexity(self) -> float:
        """exp of the mean -log p per token, of the model itself; infinite when unreadable or without tokens."""
        if self.error is not None or not self.logprobs:
            return math.inf
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


class Action(_Record):
    """A parsed action: the tool's name (``finish`` ends the run) and its arguments."""

    tool: str
    arguments: dict[str, Any] = {}


class Passage(_Record):
    """A retrieved passage as the model saw it: its handle ``[n]`` and where it comes from.

    Attributes:
        text: as shown, where the prompt is built from it anew (search-code-1); else it stands in the
            observation.
    """

    handle: int
    doc_id: str
    chunk_id: str
    title: str = ""
    start: int
    end: int
    score: float = 0.0
    text: str = ""

    def citation(self) -> Citation:
        """The passage as a citation."""
        return Citation(doc_id=self.doc_id, chunk_id=self.chunk_id, start=self.start, end=self.end)


class Observation(_Record):
    """What came back after a turn: the one result of its tool call, or why the turn was no valid action.

    Attributes:
        status: of the tool call; "invalid" when there was no call because the turn could not be read.
        text: the observation turn as the model saw it.
    """

    status: ObservationStatus
    text: str
    passages: list[Passage] = []
    seconds: Seconds = 0.0
    error: str | None = None


class Prompt(_Record):
    """Ids before a turn: ``shared`` tokens of (previous prompt + previous turn), then ``suffix``."""

    shared: int = 0
    suffix: list[int] = []


class Step(_Record):
    """One model turn and what followed it.

    Attributes:
        kind: what the step is for, in a search agent.
        samples: all turns that were drawn here; ``samples[chosen]`` went on.
        ranking: the order a ranker gave the samples, best first; empty when there was none.
        action: ``None`` when the turn could not be read (then ``observation.status`` is "invalid").
        observation: ``None`` after ``finish``, and when the run ended before the call was made.
        forced: drawn under the grammar that only allows ``finish``.
    """

    kind: StepKind = ""
    prompt: Prompt = Prompt()
    samples: list[Sample]
    chosen: int = 0
    ranking: list[int] = []
    thought: str = ""
    action: Action | None = None
    observation: Observation | None = None
    forced: bool = False

    @property
    def sample(self) -> Sample:
        """The turn that went on."""
        return self.samples[self.chosen]


class Usage(_Record):
    """Tokens of a run: prompts added up over its calls, generated, and prompt tokens found in the cache."""

    prompt: int = 0
    generated: int = 0
    cached: int = 0


class Seen(_Record):
    """What stood before the first turn when the model ran: SHA-256 of the ids, and their number."""

    hash: str = ""
    length: int = 0


class Key(NamedTuple):
    """What a trajectory is known by: the question's key, which sample of it, the agent's hash."""

    question: str
    sample: int
    agent: str

    @property
    def id(self) -> str:
        """A short name."""
        return f"{self.question[:8]}-{self.sample}-{self.agent[:8]}"


class Trajectory(_Record):
    """One run over one question.

    Attributes:
        sample: index among the runs over the same question.
        agent: agent hash: model, adapter, index, protocol, tools, budget and sampling.
        seen: the first prompt as the model saw it, with few-shot examples and hint. The stored prompt
            (``steps[0].prompt``) has neither: it is what training uses.
        guide: a hint was shown to the model (it is not stored).
        text_only: the model gave no token ids; the trajectory can be read and distilled from, not weighted.
        forced: the answer was drawn under the grammar that only allows ``finish``, after the budget had run
            out.
        dropped_citations: handles that the answer cited and that never existed (or were never selected).
        draft: the answer before a search agent's self-checks, and ``draft_citations`` its citations; ``None``
            when nothing was checked.
        created: seconds since the epoch at the start.
    """

    schema_version: int = SCHEMA_VERSION
    protocol: str
    question_key: str
    sample: int = 0
    agent: str
    question_id: str
    question: str
    status: RunStatus
    answer: str | None = None
    citations: list[Citation] = []
    dropped_citations: list[int] = []
    draft: str | None = None
    draft_citations: list[Citation] = []
    forced: bool = False
    error: str | None = None
    model: str = ""
    model_fingerprint: str = ""
    adapter: str | None = None
    few_shot: int = 0
    guide: bool = False
    text_only: bool = False
    temperature: float = 0.0
    seed: int = 0
    seen: Seen = Seen()
    usage: Usage = Usage()
    seconds: Seconds = 0.0
    created: float = 0.0
    steps: list[Step] = Field(default_factory=list)

    @property
    def key(self) -> Key:
        """What a run directory knows it by."""
        return Key(self.question_key, self.sample, self.agent)

    @property
    def id(self) -> str:
        """A short name, made from the key."""
        return self.key.id

    @property
    def prompt0(self) -> list[int]:
        """The first prompt without few-shot examples and hint; empty for text-only trajectories."""
        return self.steps[0].prompt.suffix if self.steps else []

    def prompts(self) -> Iterator[list[int]]:
        """The prompt ids of each step, rebuilt (without few-shot examples and hint)."""
        before: list[int] = []
        for step in self.steps:
            prompt = before[: step.prompt.shared] + step.prompt.suffix
            yield prompt
            before = prompt + step.sample.tokens

    @property
    def append_only(self) -> bool:
        """Whether each prompt goes on from the one before, so that `token_ids` holds every turn; if not, each
        (prompt, turn) is a sequence of its own.
        """
        length = 0
        for step in self.steps:
            if step.prompt.shared != length:
                return False
            length += len(step.prompt.suffix) + len(step.sample.tokens)
        return True

    def token_ids(self) -> list[int]:
        """The whole transcript, from ``prompt0`` to the last sampled token."""
        ids: list[int] = []
        for step in self.steps:
            ids = ids[: step.prompt.shared] + step.prompt.suffix + step.sample.tokens
        return ids

    def loss_mask(self) -> list[bool]:
        """Along `token_ids`: True exactly on what the model emitted, its end-of-turn tokens included."""
        mask: list[bool] = []
        for step in self.steps:
            mask = mask[: step.prompt.shared] + [False] * len(step.prompt.suffix) + [True] * len(step.sample.tokens)
        return mask

    def calls(self, tool: str | None = None) -> list[Step]:
        """Steps that called a tool (a named one, or any), whatever came of it."""
        called = [s for s in self.steps if s.action is not None and s.action.tool != "finish" and s.observation]
        return [s for s in called if tool is None or (s.action is not None and s.action.tool == tool)]

    def passages(self) -> list[Passage]:
        """Every passage the model was shown, in the order of the handles."""
        return [p for s in self.steps if s.observation for p in s.observation.passages]

    def doc_ids(self) -> list[str]:
        """Ids of the retrieved documents, each once, in order of first appearance."""
        return list(dict.fromkeys(p.doc_id for p in self.passages()))

    def to_json(self) -> str:
        """One line of JSON; fields that are ``None`` are left out."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def from_json(cls, line: str | bytes) -> Trajectory:
        """Read what :meth:`to_json` wrote; raises ``ValueError`` for anything else."""
        return cls.model_validate_json(line)
