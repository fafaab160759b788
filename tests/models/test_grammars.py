"""Whatever a constrained model finishes is valid: random schemas and patterns, a random model, high temperature."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jax
import jsonschema
import pytest

from restill.models.config import DecoderConfig
from restill.models.engine.engine import Engine
from restill.models.engine.request import Request, Sampling
from restill.models.grammars import json_grammar, regex_grammar
from restill.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engine(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> Iterator[Engine]:
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=16, max_context=512)
    yield engine
    engine.close()


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random bounded JSON schema."""
    kinds = ["integer", "boolean", "enum", "string", "null", "number"] + (["object", "array"] * 3 if depth < 2 else [])
    kind = rng.choice(kinds)
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)}
    if kind == "enum":
        return {"enum": rng.sample(["a/b", 'quote"', "é", 7, None, True, "line\nbreak", "plain"], rng.randint(1, 4))}
    if kind == "string":
        low = rng.randint(0, 3)
        bounds = {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 4)}
        return rng.choice([bounds, {"type": "string", "pattern": "^[a-c]{2,4}$"}])
    if kind == "object":
        names = rng.sample(["name", "age", "tags", "näme", "x y"], rng.randint(0, 3))
        return {
            "type": "object",
            "properties": {name: schema(rng, depth + 1) for name in names},
            "required": [name for name in names if rng.random() < 0.7],
            "additionalProperties": False,
        }
    if kind == "array":
        low = rng.randint(0, 2)
        return {"type": "array", "items": schema(rng, depth + 1), "minItems": low, "maxItems": low + 1}
    return {"type": kind}


def pattern(rng: random.Random, depth: int = 0) -> str:
    """A random bounded regular expression, slashes and quotes included."""
    parts = ["[a-f]{1,3}", "x/y", "[0-9]{2,4}", r"\/", '"q"', "(ja|nein)?", r"[^a-z\n]{2}", "é+?z", r"\.", r"a\sb"]
    if depth < 2:
        parts += [f"({pattern(rng, depth + 1)}|{pattern(rng, depth + 1)})", f"(?:{pattern(rng, depth + 1)}){{1,2}}"]
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 3)))


def finished(engine: Engine, grammars: list[str]) -> list[tuple[int, str]]:
    """Index and text of every output that came to its end."""
    requests = [
        Request(prompt=(1, 2, 3), grammar=grammar, seed=i, sampling=Sampling(temperature=1 + i % 3, max_tokens=200))
        for i, grammar in enumerate(grammars)
    ]
    return [(i, c.text) for i, c in enumerate(engine.generate(requests)) if c.finish_reason == "stop"]


def test_the_json_of_a_thousand_random_schemas_validates(engine: Engine) -> None:
    rng = random.Random(0)
    schemas = [schema(rng) for _ in range(1000)]
    texts = finished(engine, [json_grammar(s) for s in schemas])
    assert len(texts) > 900
    for i, text in texts:
        jsonschema.validate(json.loads(text), schemas[i], cls=jsonschema.Draft202012Validator)


def test_the_text_of_two_hundred_random_patterns_matches(engine: Engine) -> None:
    rng = random.Random(0)
    patterns = [pattern(rng) for _ in range(200)]
    texts = finished(engine, [regex_grammar(p) for p in patterns])
    assert len(texts) > 180
    for i, text in texts:
        assert re.fullmatch(patterns[i], text), (patterns[i], text)
