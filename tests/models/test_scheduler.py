"""The scheduler: first come, first served; nobody starves; every prompt token is computed exactly once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from restill.models.engine.job import Job
from restill.models.engine.request import Request, Sampling
from restill.models.engine.scheduler import PREFILL_TOKENS, Chunk, Scheduler
from restill.models.engine.shapes import CHUNKS, Shapes
from restill.models.engine.slots import Fork, Swap


def job(prompt: list[int], max_tokens: int = 3) -> Job:
    return Job(Request(prompt=tuple(prompt), sampling=Sampling(max_tokens=max_tokens)), max_tokens, None)


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 700), st.integers(1, 6), st.booleans()), max_size=25
)
"""Per request: decode steps until it comes, family of its prompt, length, tokens to make, whether it is cancelled."""


@settings(deadline=None)
@given(ARRIVALS, st.integers(1, 5))
def test_every_request_is_served_in_order_and_no_running_one_misses_a_step(
    arrivals: list[tuple[int, int, int, int, bool]], slots: int
) -> None:
    scheduler, cache = Scheduler(Shapes(slots, 4096)), {i: list[int]() for i in range(slots)}
    pending, started, finished = list(arrivals), list[Job](), 0
    order: list[Job] = []
    while pending or not scheduler.idle:
        wait = pending[0][0] if pending else 0
        while pending and (wait == 0 or scheduler.idle):
            _, family, length, tokens, cancelled = pending.pop(0)
            new = job([family] * min(length, 300) + list(range(length)), tokens)
            if cancelled:
                new.future.cancel()
            else:
                order.append(new)
            scheduler.waiting.append(new)
            wait = pending[0][0] if pending else 1
        if pending:
            pending[0] = (pending[0][0] - 1, *pending[0][1:])
        for over, reason in scheduler.over():
            assert reason == "cancelled"
            scheduler.remove(over)
        running = {j for j in scheduler.running.values() if j.dispatched}
        computed = 0
        for item in scheduler.prefill():
            if isinstance(item, Fork):
                cache[item.target] = list(cache[item.source])
            elif isinstance(item, Swap):
                assert not {item.a, item.b} & {slot for slot, j in scheduler.running.items() if j.dispatched}
                cache[item.a], cache[item.b] = cache[item.b], cache[item.a]
            else:
                assert isinstance(item, Chunk) and len(item.tokens) <= item.width
                cache[item.slot][item.start :] = item.tokens
                computed += item.width
        assert computed < PREFILL_TOKENS + CHUNKS[-1]
        rows = scheduler.rows()
        assert running <= set(rows.values())
        for row, each in rows.items():
            if not each.dispatched:
                started.append(each)
                assert cache[row][: len(each.request.prompt) - 1] == list(each.request.prompt[:-1])
            each.dispatched += 1
            if each.dispatched == each.max_tokens:
                scheduler.remove(each)
                finished += 1
    assert started == order and finished == len(order)
    assert not any(slot.busy for slot in scheduler.table.slots)


def test_a_long_prompt_leaves_the_running_their_turns() -> None:
    scheduler = Scheduler(Shapes(2, 4096))
    short, long = job([1, 2, 3], 100), job(list(range(2000)))
    for new in (short, long):
        scheduler.waiting.append(new)
    turns = 0
    while long not in scheduler.rows().values():
        list(scheduler.prefill())
        turns += short in scheduler.rows().values()
    assert turns >= 2000 // (PREFILL_TOKENS + CHUNKS[-1])


def test_one_request_at_a_time_runs_in_the_first_row_and_every_transcript_is_kept() -> None:
    scheduler = Scheduler(Shapes(8, 4096))
    for turn in range(3):
        for family in range(8):
            new = job([family] * (100 + 20 * turn), 1)
            scheduler.waiting.append(new)
            while new not in scheduler.rows().values():
                list(scheduler.prefill())
            assert list(scheduler.rows()) == [0]
            assert new.cached >= (0 if turn == 0 else 100 + 20 * (turn - 1) - 1)
            scheduler.remove(new)
