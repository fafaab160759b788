"""What one model did, as the model that is to learn from it would have written it: in its prompts and token ids.

A teacher behind an API speaks text only, and one of another family has another vocabulary. Its turns are written anew
as the agent's own format has them, so that the learner is taught no manners of its teacher's; what the tools
returned stays as the teacher saw it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..agents.agent import Agent
from ..agents.model import ChatTokenizer
from ..agents.prompt import opening
from ..agents.protocol import write_turn
from ..agents.question import Question
from ..agents.reason import ReasoningAgent
from ..agents.search.agent import SearchAgent
from ..agents.search.replay import walk
from ..agents.search.state import from_record
from ..agents.trajectory import Sample, Step, Trajectory
from ..agents.transcript import TokenTranscript
from ..models.errors import RestillError


def retold(agent: Agent, trajectory: Trajectory) -> Trajectory:
    """A trajectory in the token ids of ``agent``'s model, to be learnt from.

    Of each step the sample that went on is left. A forced last turn ends it: models without grammars are asked for it
    in other words. Log-probabilities are 0, as an expert's: nothing was drawn from the learner.

    Args:
        agent: which is to learn: of the same protocol, on a model with token ids.

    Raises:
        RestillError: the trajectory is of another protocol.
    """
    if trajectory.protocol != agent.plan.protocol:
        raise RestillError(
            f"trajectory {trajectory.id} is of {trajectory.protocol}, the agent that is to learn from it speaks "
            f"{agent.plan.protocol}; let the same kind of agent make both"
        )
    if isinstance(agent, SearchAgent):
        steps = _search(agent, trajectory)
    else:
        steps = _thought(agent, trajectory) if isinstance(agent, ReasoningAgent) else _chat(agent, trajectory)
    return trajectory.model_copy(update={"steps": list(steps), "text_only": False})


def _chat(agent: Agent, trajectory: Trajectory) -> Iterator[Step]:
    messages = opening(list(agent.plan.tools.values()), trajectory.question)
    transcript = TokenTranscript(agent.model, messages, messages)
    for step in trajectory.steps:
        if step.forced:
            return
        prompt, action = transcript.take_prompt(), step.action
        text = step.sample.text if action is None else write_turn(step.thought, action.tool, action.arguments)
        sample = _said(agent.model.tokenizer, step.sample, text)
        transcript.keep(sample)
        yield step.model_copy(update={"prompt": prompt, "samples": [sample]})
        if step.observation is not None and step.observation.text:
            transcript.observe(step.observation.text)


def _thought(agent: ReasoningAgent, trajectory: Trajectory) -> Iterator[Step]:
    messages = agent.messages(Question(id=trajectory.question_id, question=trajectory.question))
    transcript = TokenTranscript(agent.model, messages, messages)
    for step in trajectory.steps:
        prompt, sample = transcript.take_prompt(), _said(agent.model.tokenizer, step.sample, step.sample.text)
        transcript.keep(sample)
        yield step.model_copy(update={"prompt": prompt, "samples": [sample]})


def _search(agent: SearchAgent, trajectory: Trajectory) -> Iterator[Step]:
    format, transcript = agent.plan.format, None
    for step, state in walk(agent.plan, trajectory):
        if step.forced:
            return
        if transcript is None:
            transcript = format.open(agent.model, state, few_shot=0, hint=None)
        format.ask(transcript, step.kind, state)
        prompt, text = transcript.take_prompt(), step.sample.text
        if step.action is not None:
            text = format.write(step.kind, from_record(step.kind, step.action, step.thought, state), state)
        sample = _said(agent.model.tokenizer, step.sample, text, format.stop)
        transcript.keep(sample)
        yield step.model_copy(update={"prompt": prompt, "samples": [sample], "chosen": 0, "ranking": []})


def _said(tokenizer: ChatTokenizer, sample: Sample, text: str, stop: tuple[str, ...] = ()) -> Sample:
    tokens = [*tokenizer.encode(text), *(() if stop else tokenizer.eos_ids[:1])]
    for end in stop:
        text = text.split(end)[0]
    zeros = [0.0] * len(tokens)
    return sample.model_copy(update={"text": text, "tokens": tokens, "logprobs": zeros, "sampled_logprobs": zeros})
