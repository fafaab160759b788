"""Search agents on a JAX runtime that log what they do and train themselves on it.

Every public name loads on first use (PEP 562): ``import restill`` itself imports neither JAX nor FAISS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .agents.agent import Agent as Agent
    from .agents.agent import AgentResult as AgentResult
    from .agents.budget import Budget as Budget
    from .agents.evaluate import EvalReport as EvalReport
    from .agents.evaluate import evaluate as evaluate
    from .agents.question import Question as Question
    from .agents.question import read_questions as read_questions
    from .agents.react import ReActAgent as ReActAgent
    from .agents.reason import ReasoningAgent as ReasoningAgent
    from .agents.rollout import rollout as rollout
    from .agents.run import Run as Run
    from .agents.search.agent import SearchAgent as SearchAgent
    from .agents.tools import Tool as Tool
    from .agents.tools import ToolResult as ToolResult
    from .agents.trajectory import Step as Step
    from .agents.trajectory import Trajectory as Trajectory
    from .models.chat import JaxChatModel as JaxChatModel
    from .models.checkpoint.pull import pull as pull
    from .models.encoder import TextEncoder as TextEncoder
    from .models.engine.engine import Engine as Engine
    from .models.engine.request import Completion as Completion
    from .models.engine.request import Request as Request
    from .models.engine.request import Sampling as Sampling
    from .models.errors import RestillError as RestillError
    from .models.remote import RemoteChatModel as RemoteChatModel
    from .models.tokenizer import Tokenizer as Tokenizer
    from .retrieval.retriever import Retriever as Retriever
    from .retrieval.types import Chunk as Chunk
    from .retrieval.types import Citation as Citation
    from .retrieval.types import Document as Document
    from .retrieval.types import Hit as Hit
    from .selftrain.distill import distill as distill
    from .selftrain.improve import improve as improve
    from .selftrain.rest import ReST as ReST
    from .selftrain.trice import TRICE as TRICE
    from .selftrain.world import World as World

_HOMES = {
    "agents.agent": ["Agent", "AgentResult"],
    "agents.budget": ["Budget"],
    "agents.evaluate": ["EvalReport", "evaluate"],
    "agents.question": ["Question", "read_questions"],
    "agents.react": ["ReActAgent"],
    "agents.reason": ["ReasoningAgent"],
    "agents.rollout": ["rollout"],
    "agents.run": ["Run"],
    "agents.search.agent": ["SearchAgent"],
    "agents.tools": ["Tool", "ToolResult"],
    "agents.trajectory": ["Step", "Trajectory"],
    "models.chat": ["JaxChatModel"],
    "models.checkpoint.pull": ["pull"],
    "models.encoder": ["TextEncoder"],
    "models.engine.engine": ["Engine"],
    "models.engine.request": ["Completion", "Request", "Sampling"],
    "models.errors": ["RestillError"],
    "models.remote": ["RemoteChatModel"],
    "models.tokenizer": ["Tokenizer"],
    "retrieval.retriever": ["Retriever"],
    "retrieval.types": ["Chunk", "Citation", "Document", "Hit"],
    "selftrain.distill": ["distill"],
    "selftrain.improve": ["improve"],
    "selftrain.rest": ["ReST"],
    "selftrain.trice": ["TRICE"],
    "selftrain.world": ["World"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'restill' has no attribute {name!r}")
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
