"""The engine: batching, prefix reuse and constraints change speed, never results."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from restill.models.config import DecoderConfig
from restill.models.engine.engine import Engine
from restill.models.engine.request import Completion, Request, Sampling
from restill.models.engine.shapes import CHUNKS, Shapes
from restill.models.engine.slots import SlotTable, Swap, common_prefix
from restill.models.engine.stats import Stats
from restill.models.errors import RestillError
from restill.models.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("short_segments")
FullPass = Callable[..., np.ndarray]
PROMPTS = [tuple(range(3, 3 + n)) for n in (1, 5, 17, 40, 90)]


@pytest.fixture(scope="module")
def engine(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> Iterator[Engine]:
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=4, max_context=512)
    yield engine
    engine.close()


def ask(engine: Engine, *requests: Request) -> list[Completion]:
    return engine.generate(requests)


def greedy(prompt: tuple[int, ...], tokens: int = 12, **rest: object) -> Request:
    return Request(prompt=prompt, sampling=Sampling(max_tokens=tokens), **rest)  # type: ignore[arg-type]


def test_a_batch_of_ragged_prompts_gives_what_each_prompt_gives_alone(engine: Engine) -> None:
    alone = [ask(engine, greedy(p))[0].tokens for p in PROMPTS]
    together = [c.tokens for c in ask(engine, *(greedy(p) for p in PROMPTS * 2))]
    assert together == alone * 2


short_prompts = st.lists(st.integers(97, 100), min_size=1, max_size=30).map(tuple)
few_requests = st.lists(st.tuples(short_prompts, st.sampled_from([1, 2, 5, 20])), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(rounds=st.lists(few_requests, min_size=2, max_size=4))
def test_what_the_cache_keeps_from_earlier_requests_changes_no_result(
    engine: Engine, full_pass: FullPass, rounds: list[list[tuple[tuple[int, ...], int]]]
) -> None:
    for asked in rounds:
        done = ask(engine, *(greedy(prompt, tokens) for prompt, tokens in asked))
        for (prompt, _), completion in zip(asked, done, strict=True):
            logits = full_pass(engine.config, engine.params, (*prompt, *completion.tokens))[len(prompt) - 1 : -1]
            chosen = logits[np.arange(len(logits)), list(completion.tokens)]
            assert (logits.max(-1) - chosen).max() < 1e-3


def test_a_continued_transcript_computes_only_what_is_new(engine: Engine) -> None:
    prompt = tuple(np.random.default_rng(0).integers(0, 200, 70).tolist())
    first = ask(engine, greedy(prompt, 6))[0]
    longer = (*prompt, *first.tokens, 9, 9, 9)
    reused = ask(engine, greedy(longer))[0]
    assert reused.cached >= len(prompt) + len(first.tokens) - 1
    engine.forget()
    assert ask(engine, greedy(longer))[0].cached == 0
    fresh = Engine(engine.config, engine.params, engine.tokenizer, slots=4, max_context=512)
    assert ask(fresh, greedy(longer))[0].tokens == reused.tokens
    fresh.close()


def test_a_common_prompt_is_computed_once_and_forked(engine: Engine) -> None:
    common = tuple(np.random.default_rng(1).integers(0, 200, 100).tolist())
    ask(engine, greedy(common, 1))
    before = engine.stats().prefilled
    done = ask(engine, *(greedy((*common, i, i), 4) for i in range(8)))
    assert all(c.cached >= len(common) - 1 for c in done)
    assert engine.stats().prefilled - before <= 8 * 3


def test_reported_log_probabilities_are_those_of_score(engine: Engine) -> None:
    request = Request(prompt=PROMPTS[2], sampling=Sampling(temperature=0.7, max_tokens=20), seed=5)
    done = ask(engine, request)[0]
    np.testing.assert_allclose(engine.score(request.prompt, done.tokens), done.logprobs, atol=1e-4)
    assert all(lp <= 0 for lp in done.sampled_logprobs)


def test_scores_of_many_continuations_share_their_prompt_and_equal_the_full_pass(
    engine: Engine, full_pass: FullPass
) -> None:
    rng = np.random.default_rng(4)
    prompt = rng.integers(0, 200, 300).tolist()
    pairs = [(prompt, rng.integers(0, 200, n).tolist()) for n in (1, 2, 40, 130)] + [(prompt[:1], [5]), (prompt, [])]
    before = engine.stats().prefilled
    together = engine.score_many(pairs)
    assert engine.stats().prefilled - before <= 300 + 2 * 173
    for (first, second), scores in zip(pairs, together, strict=True):
        logprobs = log_softmax(full_pass(engine.config, engine.params, (*first, *second)), axis=-1)
        logprobs = logprobs[np.arange(len(first) - 1, len(first) + len(second) - 1), second]
        np.testing.assert_allclose(scores, logprobs, atol=1e-4)
    with pytest.raises(RestillError, match="max_context=512"):
        engine.score(prompt, [1] * 300)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(engine: Engine) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return ask(engine, Request(prompt=PROMPTS[1], sampling=Sampling(temperature=1.0, max_tokens=16), seed=seed))[
            0
        ].tokens

    assert draw(1) == draw(1) != draw(2)


def test_a_stop_string_across_token_borders_ends_and_is_cut(engine: Engine) -> None:
    text = ask(engine, greedy(PROMPTS[3], 30))[0].text
    stop = text[9:12]  # three characters, one token per byte
    done = ask(engine, greedy(PROMPTS[3], 30, stop=(stop,)))[0]
    assert done.finish_reason == "stop" and done.text == text[: text.index(stop)]


def test_streamed_pieces_join_to_the_text_and_never_show_the_stop_string(engine: Engine) -> None:
    text = ask(engine, greedy(PROMPTS[3], 30))[0].text

    async def pieces() -> str:
        stream = engine.astream(greedy(PROMPTS[3], 30, stop=(text[9:12],)))
        return "".join([piece async for piece in stream if isinstance(piece, str)])

    assert asyncio.run(pieces()) == text[: text.index(text[9:12])]


def test_a_strong_repetition_penalty_never_repeats_a_token(engine: Engine) -> None:
    sampling = Sampling(max_tokens=40, repetition_penalty=1e6)
    plain, done = ask(engine, greedy(PROMPTS[2], 40), Request(prompt=PROMPTS[2], sampling=sampling))
    assert len(set(plain.tokens)) < len(plain.tokens)
    assert len(set(done.tokens)) == len(done.tokens) and not set(done.tokens) & set(PROMPTS[2])


def test_a_grammar_is_followed_at_any_temperature(engine: Engine) -> None:
    grammar = 'start: "Action: " /[a-z]{1,5}/ " {" /[0-9]{2}/ "}"'
    requests = [
        Request(prompt=PROMPTS[0], sampling=Sampling(temperature=t, max_tokens=40), seed=s, grammar=grammar)
        for s, t in enumerate((0.0, 1.0, 5.0, 5.0))
    ]
    for done in ask(engine, *requests):
        assert done.finish_reason == "stop"
        assert done.text.startswith("Action: ") and done.text.endswith("}")
        assert done.tokens[-1] == engine.tokenizer.eos_id
    with pytest.raises(RestillError, match="grammar"):
        ask(engine, greedy(PROMPTS[0], grammar="start: ("))


def test_cancelling_and_deadlines_free_the_slot(engine: Engine) -> None:
    endless = greedy(PROMPTS[1], 400, grammar="start: /[a-z]{390}/")  # a token per letter

    async def impatient() -> None:
        before, stream = engine.stats().decoded, engine.astream(endless)
        assert len(await anext(stream)) == 1
        await stream.aclose()
        async with asyncio.timeout(60):
            while engine.running:
                await asyncio.sleep(0)
        assert engine.stats().decoded - before < 300

    asyncio.run(impatient())
    late = ask(engine, greedy(PROMPTS[1], 400, deadline=time.monotonic() - 1))[0]
    assert late.finish_reason == "deadline" and late.tokens == ()
    assert len(ask(engine, *(greedy(p) for p in PROMPTS))) == len(PROMPTS)


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (greedy(()), "empty"),
        (greedy(tuple([1] * 600)), "600 tokens"),
        (greedy((10**6,)), "token id"),
        (greedy((1,), 0), "max_tokens"),
        (Request(prompt=(1,), sampling=Sampling(top_p=0.0)), "top_p=0.0 must be above 0"),
        (Request(prompt=(1,), sampling=Sampling(temperature=float("nan"))), "temperature=nan"),
        (Request(prompt=(1,), seed="x"), "seed=x must be a whole number"),  # type: ignore[arg-type]
        (Request(prompt=(1,), deadline="5"), "deadline=5 must be a number"),  # type: ignore[arg-type]
        (Request(prompt=(1,), stop=("a", "")), "stop=.* none empty"),
    ],
)
def test_an_unusable_request_is_refused_by_name_and_none_beside_it_runs_on(
    engine: Engine, request_: Request, names: str
) -> None:
    with pytest.raises(RestillError, match=names):
        ask(engine, greedy(PROMPTS[1], 400), request_)
    until = time.monotonic() + 30
    while engine.running and time.monotonic() < until:
        time.sleep(0.001)
    assert not engine.running


def test_a_top_k_beyond_the_vocabulary_keeps_all(engine: Engine) -> None:
    every, most = (Sampling(temperature=1.0, top_k=k, max_tokens=8) for k in (0, 2**40))
    drawn = ask(engine, Request(prompt=(5,), sampling=every), Request(prompt=(5,), sampling=most))
    assert drawn[0].tokens == drawn[1].tokens


def test_ids_that_the_tokenizer_does_not_know_are_no_text_and_no_harm(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer
) -> None:
    more = np.random.default_rng(0).normal(scale=0.2, size=(4000, tiny_config.hidden_size)).astype(np.float32)
    padded = {**tiny_params, "embed": jnp.concatenate([tiny_params["embed"], more])}
    if "lm_head" in padded:
        padded["lm_head"] = jnp.concatenate([tiny_params["lm_head"], more.T], axis=1)
    wide = replace(tiny_config, vocab_size=tiny_config.vocab_size + 4000)
    engine = Engine(wide, padded, tiny_tokenizer, slots=2, max_context=128)
    free = Sampling(temperature=1.0, max_tokens=40, ignore_eos=True)
    for done in engine.generate([Request(prompt=(5,), sampling=free, stop=("zzz",), seed=s) for s in range(3)]):
        assert max(done.tokens) >= tiny_config.vocab_size and done.finish_reason == "length"
        assert done.text == tiny_tokenizer.decode(
            [t for t in done.tokens if t < tiny_tokenizer.vocab_size], skip_special=True
        )
    engine.close()


def test_occupancy_is_that_of_a_known_schedule(tiny_config: Any, tiny_params: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=4, max_context=128, speculate=False)
    assert engine.stats().occupancy is None
    sampling = [Sampling(max_tokens=count, ignore_eos=True) for count in (6, 3, 1)]
    for together in (1, 3):
        before = engine.stats()
        with engine._wake:  # all are there when the first is placed
            jobs = [engine.submit(Request(prompt=(5,), sampling=each)) for each in sampling[:together]]
        for job in jobs:
            job.future.result()
        rows = 6 if together == 1 else 6 + 3 + 1
        assert engine.stats() - before == Stats(steps=6, rows=rows, places=24, decoded=rows)
        assert (engine.stats() - before).occupancy == rows / 24
    assert engine.stats().occupancy == 16 / 48
    engine.close()


@pytest.mark.parametrize("precision", ["f32", "w8a8"])
def test_other_parameters_come_in_place(
    tiny_config: DecoderConfig, tiny_params: Any, tiny_tokenizer: Tokenizer, precision: Any
) -> None:
    def engine(params: Any) -> Engine:
        return Engine(
            tiny_config, params, tiny_tokenizer, slots=1, max_context=40, precision=precision, speculate=False
        )

    def answers(engine: Engine) -> list[tuple[tuple[int, ...], Any]]:
        sampling = Sampling(temperature=1.0, max_tokens=12)
        done = [ask(engine, Request(prompt=prompt, sampling=sampling))[0] for prompt in (PROMPTS[2], PROMPTS[1])]
        assert not done[0].cached, "keys and values of other parameters"
        return [(c.tokens, c.logprobs) for c in done]

    def held() -> int:
        gc.collect()  # the worker may still hold its last step's tokens
        return sum(leaf.nbytes for leaf in jax.live_arrays() if leaf.nbytes > 64)

    trained = {name: 1.1 * leaf[..., ::-1] for name, leaf in tiny_params.items()}
    ours, fresh = engine(tiny_params), engine(trained)
    first, wanted = answers(ours), answers(fresh)
    fresh.close()
    del fresh
    assert first != wanted
    compilations, memory = ours.compilations, held()
    for params, expected in ((trained, wanted), (tiny_params, first)):
        ours.update(params)
        assert answers(ours) == expected
    assert ours.compilations == compilations and held() <= memory
    ours.close()


def test_an_engine_rests_until_it_is_given_parameters(
    tiny_config: DecoderConfig, tiny_params: Any, tiny_tokenizer: Tokenizer
) -> None:
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=1, max_context=40)
    endless = engine.submit(greedy(PROMPTS[1], 30, deadline=None))
    with pytest.raises(RestillError, match=r"update\(\) while 1 requests"):
        engine.update(tiny_params)
    engine.rest()
    assert endless.future.cancelled() and not engine.params
    assert not engine._worker._model.cache._grid
    for refused in (lambda: ask(engine, greedy(PROMPTS[1])), lambda: engine.score(PROMPTS[1], [1])):
        with pytest.raises(RestillError, match="rests"):
            refused()
    with pytest.raises(RestillError, match="rests"):
        engine.warmup()
    other = {**tiny_params, "norm": tiny_params["norm"][:-1]}
    with pytest.raises(RestillError, match=r"norm is \(\d+,\), in this model \(\d+,\)"):
        engine.update(other)
    with pytest.raises(RestillError, match="embed is missing"):
        engine.update({name: leaf for name, leaf in tiny_params.items() if name != "embed"})
    engine.update(tiny_params)
    assert len(ask(engine, greedy(PROMPTS[1]))[0].tokens) > 0
    engine.close()
    with pytest.raises(RestillError, match="closed"):
        engine.update(tiny_params)


def test_output_ends_where_the_context_ends(engine: Engine) -> None:
    done = ask(engine, greedy(tuple([1] * 490), 400))[0]
    assert done.finish_reason == "length" and len(done.tokens) == 512 - 490


def test_the_host_decides_while_the_device_computes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, order = engine._worker, list[str]()
    step, collect = worker._model.step, worker._collect

    def read() -> None:
        if worker._flight is not None:
            order.append("read")
        collect()

    monkeypatch.setattr(worker._model, "step", lambda *args: (order.append("send"), step(*args))[1])
    monkeypatch.setattr(worker, "_collect", read)
    monkeypatch.setattr(worker.guesser, "on", False)
    done = ask(engine, greedy(PROMPTS[0], 9, grammar="start: /[a-z]{30}/"))[0]
    assert len(done.tokens) == 9
    assert order == ["send", *["send", "read"] * 8, "read"]


@pytest.mark.parametrize("penalty", [1.0, 1.2])  # with a penalty the host reads in the middle of a step
def test_not_a_number_fails_one_request_and_no_other(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer, penalty: float
) -> None:
    def greedy(prompt: tuple[int, ...], **rest: Any) -> Request:
        return Request(prompt=prompt, sampling=Sampling(max_tokens=12, repetition_penalty=penalty), **rest)

    poison = 201
    params = dict(tiny_params, embed=tiny_params["embed"].at[poison].set(np.nan), lm_head=tiny_params["embed"].T)
    config = DecoderConfig(**{**vars(tiny_config), "tie_embeddings": False})
    engine = Engine(config, params, tiny_tokenizer, slots=2, max_context=512)
    before = [c.tokens for c in ask(engine, greedy(PROMPTS[1]), greedy(PROMPTS[2]))]
    jobs = [engine.submit(greedy(p)) for p in (PROMPTS[1], (7, poison, 8), PROMPTS[2])]
    with pytest.raises(RestillError, match="NaN"):
        jobs[1].future.result()
    assert [jobs[0].future.result().tokens, jobs[2].future.result().tokens] == before
    assert [c.tokens for c in ask(engine, greedy(PROMPTS[1]), greedy(PROMPTS[2]))] == before  # in the same slots
    with pytest.raises(RestillError, match="NaN"):
        engine.score([*PROMPTS[4], poison], [1, 2])
    late = engine.submit(greedy((7, poison, *range(30)), deadline=time.monotonic() - 1))
    late.future.result()
    for _ in range(2):
        assert [c.tokens for c in ask(engine, greedy(PROMPTS[1]), greedy(PROMPTS[2]))] == before
        assert np.isfinite(engine.score(PROMPTS[1], [5, 6])).all()
    engine.close()


def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on(
    tiny_config: DecoderConfig, tiny_params: dict[str, jax.Array], tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = Engine(tiny_config, tiny_params, tiny_tokenizer, slots=2, draft=(tiny_config, tiny_params))
    before = ask(engine, greedy(PROMPTS[1]))[0].tokens
    for model in (engine._worker._model, engine._worker.guesser.model._model):  # type: ignore[union-attr]
        with monkeypatch.context() as patch:
            patch.setattr(model, "step", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ask(engine, greedy(PROMPTS[3], 40))
        assert ask(engine, greedy(PROMPTS[1]))[0].tokens == before
    engine.close()


def test_a_reader_that_fails_ends_its_own_request_alone(engine: Engine) -> None:
    def broken(piece: str) -> None:
        raise ValueError("the reader's own fault")

    before = ask(engine, greedy(PROMPTS[1], 30))[0].tokens
    jobs = [engine.submit(greedy(PROMPTS[2], 30), broken), engine.submit(greedy(PROMPTS[1], 30))]
    with pytest.raises(ValueError, match="own fault"):
        jobs[0].future.result()
    assert jobs[1].future.result().tokens == before


def test_a_padded_chunk_never_reaches_past_the_cache(engine: Engine) -> None:
    prompt = tuple(np.random.default_rng(6).integers(0, 200, 490).tolist())
    ask(engine, greedy(prompt[:300], 1))
    done = ask(engine, greedy(prompt, 4))[0]  # 190 tokens from position 299 on; 256 would not fit in 528
    fresh = Engine(engine.config, engine.params, engine.tokenizer, slots=1, max_context=2048)
    assert done.cached >= 299 and done.tokens == ask(fresh, greedy(prompt, 4))[0].tokens
    np.testing.assert_allclose(done.logprobs, fresh.score(prompt, done.tokens), atol=1e-4)
    fresh.close()


def test_an_engine_that_nobody_holds_stops_its_thread(engine: Engine) -> None:
    dropped = Engine(engine.config, engine.params, engine.tokenizer, slots=1, max_context=512)
    ask(dropped, greedy(PROMPTS[0], 2))
    thread = dropped._thread
    del dropped
    gc.collect()
    assert thread is not None and not thread.is_alive()


@given(st.integers(1, 3000), st.integers(0, 2000))
def test_a_chunk_is_full_or_has_little_padding_and_its_tokens_stay_in_one_segment(count: int, start: int) -> None:
    grid = Shapes(1, 2048)
    width, rest = grid.chunk(count, start % 2048), grid.rest(start % 2048)
    tokens = min(count, rest, width)
    assert width in CHUNKS and width - tokens <= max(CHUNKS[0] - 1, tokens // 2)
    assert width <= rest + grid.margin


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90), st.integers(0, 3)), max_size=40), st.integers(1, 5))
def test_slots_only_claim_what_the_row_really_holds(requests: list[tuple[int, int, int]], rows: int) -> None:
    table = SlotTable(Shapes(rows, 4096))
    held: dict[int, list[int]] = {i: [] for i in range(rows)}
    for family, length, leave in requests:
        prompt = [family] * 40 + list(range(length))
        placement = table.place(prompt)
        assert placement is not None
        for move in placement.moves:
            if isinstance(move, Swap):
                held[move.a], held[move.b] = held[move.b], held[move.a]
            else:
                held[move.target] = held[move.target][: move.kept] + held[move.source][move.kept :]
        assert held[placement.slot.index][: placement.shared] == prompt[: placement.shared]
        assert all(held[s.index][: len(s.tokens)] == s.tokens for s in table.slots)
        assert placement.shared < len(prompt)
        placement.slot.tokens = prompt[:-1]
        held[placement.slot.index] = prompt[:-1]
        busy = [slot for slot in table.slots if slot.busy]
        for slot in busy if len(busy) == rows else busy[:leave]:
            table.release(slot)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_is_the_longest(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n] and (n == min(len(a), len(b)) or a[n] != b[n])
