"""Random policies for the search agent: token models that write valid and broken steps, by their seed alone."""

from __future__ import annotations

import random
import re
from typing import Any

from restill.agents.search.agent import FORMATS
from restill.agents.search.code import _INSTRUCTIONS
from restill.agents.search.state import (
    Answer,
    CheckAnswer,
    ResultItem,
    ReviseAnswer,
    Search,
    SearchState,
    SelectLink,
    Terminate,
)
from restill.agents.testing import ByteTokenizer, ScriptedModel
from restill.agents.trajectory import StepKind
from restill.models.engine.request import Request

_REQUESTS = {"Summarise": "summarise", "Answer": "answer", "Relevance": "relevance", "Grounding": "grounding"}
_BROKEN = [
    "",
    "yes",
    "Thought: a",
    "Links: 1",
    "Answer: [1]",
    " f(x=1)",
    " Answer(thoughts='a')",
    "# x\nACTION_SELECTED",
]


def kind_of(prompt: str, format: str) -> StepKind:
    """What a prompt asks for."""
    if format == "code":
        return next(kind for kind, line in _INSTRUCTIONS.items() if prompt.startswith(f'"""{line}"""'))  # type: ignore[return-value]
    last = prompt.removesuffix("<|im_end|>\n<|im_start|>assistant\n").rsplit("\n", 1)[-1]
    return _REQUESTS.get(last, "decide")  # type: ignore[return-value]


def random_policy(format: str, *, valid: float, going_on: float, seed: int = 0, tokenizer: Any = None) -> ScriptedModel:
    """A model whose steps are well-formed with probability ``valid`` and that searches on with ``going_on``."""
    writer = FORMATS[format]

    def reply(prompt: str, request: Request) -> str:
        rng = random.Random(f"{seed} {request.seed} {len(prompt)}")
        kind = kind_of(prompt, format)
        if rng.random() > valid:
            return rng.choice(_BROKEN)
        results = prompt.rsplit("CURRENT_SEARCH_RESULTS" if format == "code" else "Observation: ", 1)[-1]
        found = re.findall(r"link_id=(\d+), link" if format == "code" else r"\[(\d+)\] ", results)
        shown = sorted({int(n) for n in found})
        invented = [40] if rng.random() > valid else []
        picked = [*(n for n in shown if rng.random() < 0.6), *invented]
        items = [ResultItem(link_id=n, link_text="t", snippet="s") for n in picked]
        state = SearchState(question="q", searches_left=1, results=tuple(items))
        text = writer.cite(rng.choice(["Oslo", "it's", 'a "b"', "é"]), rng.sample(range(1, 9), rng.randrange(3)))
        thoughts = rng.choice(["I see.", "It's \\ so", "no"])
        if kind == "decide":
            on = rng.random() < going_on
            return writer.write(
                kind, Search(query="Rome", thoughts=thoughts) if on else Terminate(thoughts=thoughts), state
            )
        if kind == "summarise":
            return writer.write(
                kind, SelectLink(selected_links=tuple(items), grounded_summarization="So.", thoughts=thoughts), state
            )
        if kind == "answer":
            return writer.write(kind, Answer(answer=text, thoughts=thoughts), state)
        passed = rng.random() < 0.5
        done = CheckAnswer(thoughts=thoughts) if passed else ReviseAnswer(revised_answer=text, thoughts=thoughts)
        return writer.write(kind, done, state)

    return StoppingModel(reply, tokenizer=tokenizer or ByteTokenizer())


class StoppingModel(ScriptedModel):
    """Also ends at a stop string, as the engine does: the text is cut before it, the tokens after it."""

    async def agenerate_tokens(self, request: Request):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        done = await super().agenerate_tokens(request)
        for stop in request.stop:
            if stop in done.text:
                keep = len(done.tokens) - (done.finish_reason == "stop")
                text = done.text.split(stop)[0]
                logprobs = done.logprobs[:keep]
                return replace(
                    done,
                    tokens=done.tokens[:keep],
                    text=text,
                    logprobs=logprobs,
                    sampled_logprobs=logprobs,
                    finish_reason="stop",
                )
        return done
