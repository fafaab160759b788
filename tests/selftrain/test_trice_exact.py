"""TRICE against exact enumeration: its gradients, its sampler, its variance, and the biases it does not have.

Every expectation is a sum over all states of a model with 40 rationales, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from restill.agents.question import Question
from restill.models.errors import RestillError
from restill.selftrain.lab import Scored
from restill.selftrain.latent import Latent
from restill.selftrain.mixture import Example
from restill.selftrain.trice import TRICE
from restill.selftrain.trice_gradient import (
    Estimator,
    Past,
    accept,
    acceptance_rates,
    basic,
    control_variate,
    estimator_weights,
    resample,
    resample_systematic,
)
from restill.selftrain.trice_memory import Memory

from .enumerable import RATIONALES, Enumerable, with_accuracies, with_accuracy

NOTHING: Past = (0, 0)
Draw = Callable[[np.ndarray, int, float], np.ndarray]
GRADED = np.array([{0: 0.0, 1: 0.3, 2: 1.0, 3: 0.7}[z.count(2)] for z in RATIONALES])


def posterior(model: Enumerable, question: int, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p(z), p(z | answer), and grad log p(z)."""
    p, gradients = model.table(question)
    return p, p * rewards / (p @ rewards), gradients


def exact_gradient(model: Enumerable, rewards: np.ndarray, questions: int) -> np.ndarray:
    """Mean over questions of grad log p(answer), by central differences of the logarithm of the sum."""
    theta, step = model.theta, 1e-5

    def value(theta: np.ndarray) -> float:
        return float(np.mean([model.log_marginal(theta, q, rewards) for q in range(questions)]))

    return np.array([(value(theta + step * e) - value(theta - step * e)) / (2 * step) for e in np.eye(len(theta))])


def acceptance(old: float, new: float) -> float:
    """The share of uniforms for which ``accept`` says yes: it says so up to one threshold, which is bisected."""
    low, high = 0.0, 1.0
    if bool(accept([old], [new], [1 - 2**-53])[0]):
        return 1.0
    if not bool(accept([old], [new], [0.0])[0]):
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if bool(accept([old], [new], [middle])[0]) else (low, middle)
    return low


def transition(p: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """T[z, z']: propose z' from p, accept it or stay."""
    levels = {(a, b): acceptance(a, b) for a in set(rewards.tolist()) for b in set(rewards.tolist())}
    moves = np.array([[p[j] * levels[a, b] for j, b in enumerate(rewards.tolist())] for a in rewards.tolist()])
    return moves + np.diag(1 - moves.sum(1))


def expected_gradient(
    kind: Estimator,
    model: Enumerable,
    rewards: np.ndarray,
    resampled: int | None = None,
    draw: Draw = resample,
    past: Past = NOTHING,
) -> np.ndarray:
    """The estimator's mean over memories from the posterior, all proposals and all acceptances, for two questions.

    Every pair of (memory, proposal, accepted or not) of each question is a state; both questions' states are combined.
    """
    states = []
    for question in (0, 1):
        p, after, gradients = posterior(model, question, rewards)
        listed = []
        for i, j in product(np.flatnonzero(after), range(len(p))):
            rate = acceptance(rewards[i], rewards[j])
            for accepted, share in ((True, rate), (False, 1 - rate)):
                if share > 0:
                    memory = j if accepted else i
                    listed.append((after[i] * p[j] * share, accepted, gradients[memory], gradients[j]))
        states.append(listed)
    # A question's terms enter linearly, and the weights see the other's acceptance alone: sum those states first.
    total = np.zeros_like(model.theta)
    for first, second in product((False, True), repeat=2):
        parts = []
        for listed, accepted in zip(states, (first, second), strict=True):
            chosen = [s for s in listed if s[1] == accepted]
            mass = sum(s[0] for s in chosen)
            parts.append((mass, sum((s[0] * s[2] for s in chosen), 0.0), sum((s[0] * s[3] for s in chosen), 0.0)))
        weights = estimator_weights(kind, [True, True], [first, second], past)
        if resampled is not None:
            weights = mean_over_uniforms(weights, resampled, draw)
        for own, (_, memory, proposal) in enumerate(parts):
            other = parts[1 - own][0]
            total = total + other * (weights[own] * memory + weights[2 + own] * proposal)
    return total


def mean_over_uniforms(weights: np.ndarray, count: int, draw: Draw = resample) -> np.ndarray:
    """The exact mean of a resampling over its uniform: it is constant between the places where an index changes."""
    likely = np.abs(weights) / max(np.abs(weights).sum(), 1e-300)
    ends = np.concatenate([np.cumsum(likely), np.cumsum(notebook_probabilities(weights))])
    cuts = np.unique(np.concatenate([[0.0, 1.0], (ends * count) % 1.0]))
    return sum(
        ((b - a) * draw(weights, count, (a + b) / 2) for a, b in zip(cuts[:-1], cuts[1:], strict=True)),
        np.zeros(len(weights)),
    )


def notebook_probabilities(weights: np.ndarray) -> np.ndarray:
    """The published notebook's error: ``log_softmax`` of the weights (before they are divided by M), not their log."""
    likely = np.exp(np.abs(weights) * len(weights) / 2)
    return likely / likely.sum()


def notebook_resample(weights: np.ndarray, count: int, uniform: float) -> np.ndarray:
    """Resampling with that error, for M solved questions."""
    drawn = np.bincount(resample_systematic(notebook_probabilities(weights), count, uniform), minlength=len(weights))
    signs = np.repeat([1.0, -1.0], len(weights) // 2)
    return signs * drawn * np.abs(weights).sum() / count


@pytest.mark.parametrize("kind", ["basic", "control"])
@pytest.mark.parametrize("accuracy", [0.15, 0.4, 0.75, 0.99])
def test_the_mean_gradient_is_that_of_the_marginal_likelihood(kind: Estimator, accuracy: float) -> None:
    model = with_accuracy(2, accuracy)
    rewards = model.right.astype(float)
    exact = exact_gradient(model, rewards, 2)
    assert np.abs(exact).max() > 1e-3
    np.testing.assert_allclose(expected_gradient(kind, model, rewards), exact, atol=1e-6)


@pytest.mark.parametrize("past", [(0, 0), ([5, 0], [1, 0]), ([3, 8], [3, 0])])
@pytest.mark.parametrize("resampled", [None, 2])
def test_rates_of_each_questions_own_past_leave_the_mean_gradient(past: Past, resampled: int | None) -> None:
    model = with_accuracies([0.9, 0.2])
    rewards = model.right.astype(float)
    found = expected_gradient("per-question", model, rewards, resampled, past=past)
    np.testing.assert_allclose(found, exact_gradient(model, rewards, 2), atol=1e-6)


@pytest.mark.parametrize("kind", ["basic", "control"])
def test_graded_rewards_have_the_exact_gradient_too(kind: Estimator) -> None:
    model = with_accuracy(2, 0.5, seed=3)
    exact = exact_gradient(model, GRADED, 2)
    np.testing.assert_allclose(expected_gradient(kind, model, GRADED), exact, atol=1e-6)
    hard = exact_gradient(model, (GRADED > 0).astype(float), 2)
    assert np.abs(exact - hard).max() > 1e-2  # grading matters


@pytest.mark.parametrize("count", [1, 2, 3])
def test_resampling_leaves_the_mean_gradient(count: int) -> None:
    model = with_accuracy(2, 0.4)
    rewards = model.right.astype(float)
    np.testing.assert_allclose(
        expected_gradient("control", model, rewards, count), exact_gradient(model, rewards, 2), atol=1e-6
    )


@pytest.mark.parametrize("graded", [False, True])
def test_the_posterior_is_stationary_and_the_chain_is_reversible(graded: bool) -> None:
    model = with_accuracy(1, 0.4, seed=5)
    rewards = GRADED if graded else model.right.astype(float)
    p, after, _ = posterior(model, 0, rewards)
    matrix = transition(p, rewards)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(after @ matrix, after, atol=1e-12)
    flow = after[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)


@pytest.mark.parametrize("accuracy", [0.1, 0.4, 0.9])
def test_memories_are_correlated_by_one_minus_the_accuracy_to_the_number_of_steps(accuracy: float) -> None:
    model = with_accuracy(1, accuracy)
    rewards = model.right.astype(float)
    p, after, gradients = posterior(model, 0, rewards)
    matrix, rate = transition(p, rewards), p @ rewards
    value = gradients @ np.arange(gradients.shape[1])
    value = value - after @ value
    for steps in range(6):
        later = np.linalg.matrix_power(matrix, steps) @ value
        assert after @ (value * later) / (after @ value**2) == pytest.approx((1 - rate) ** steps, abs=1e-10)


def enumerated_variance(kind: Estimator, model: Enumerable, batch: int) -> float:
    """Trace of the estimator's covariance over ``batch`` memories and proposals: a sum over all acceptances.

    Given who is accepted, the questions are independent: an accepted memory is the proposal, from the posterior; a
    rejected proposal is a wrong rationale, and its memory comes from the posterior.
    """
    rewards = model.right.astype(float)
    rows = []
    for question in range(batch):
        p, after, gradients = posterior(model, question, rewards)
        wrong = p * (1 - rewards) / (p @ (1 - rewards))
        rate = p @ rewards
        means = after @ gradients, wrong @ gradients
        squares = after @ (gradients**2).sum(1), wrong @ (gradients**2).sum(1)
        rows.append((rate, means, squares))
    mean, second = np.zeros_like(model.theta), 0.0
    for accepted in product((False, True), repeat=batch):
        mass = np.prod([r if a else 1 - r for (r, _, _), a in zip(rows, accepted, strict=True)])
        weights = estimator_weights(kind, np.ones(batch, bool), accepted, NOTHING)
        inner, square = np.zeros_like(model.theta), 0.0
        for m, (hit, (_, means, squares)) in enumerate(zip(accepted, rows, strict=True)):
            u, v = (weights[m] + weights[batch + m], 0.0) if hit else (weights[m], weights[batch + m])
            own = u * means[0] + v * means[1]
            inner += own
            square += u**2 * squares[0] + v**2 * squares[1] + 2 * u * v * (means[0] @ means[1]) - own @ own
        mean += mass * inner
        second += mass * (square + inner @ inner)
    return float(second - mean @ mean)


def sampled_variance(kind: Estimator, model: Enumerable, batch: int, draws: int, seed: int) -> tuple[float, float]:
    """The same, with its standard error, from minibatches as training makes them: ``accept``, then weights."""
    rng, rewards = np.random.default_rng(seed), model.right.astype(float)
    memories, proposals, gradients = [], [], []
    for question in range(batch):
        p, after, own = posterior(model, question, rewards)
        memories.append(rng.choice(len(p), draws, p=after))
        proposals.append(rng.choice(len(p), draws, p=p / p.sum()))
        gradients.append(own)
    memory, proposal = np.array(memories).T, np.array(proposals).T
    estimates = np.zeros((draws, len(model.theta)))
    for i in range(draws):
        hit = accept(rewards[memory[i]], rewards[proposal[i]], rng.random(batch))
        after = np.where(hit, proposal[i], memory[i])
        weights = estimator_weights(kind, rewards[after] > 0, hit, NOTHING)
        for m in range(batch):
            estimates[i] += weights[m] * gradients[m][after[m]] + weights[batch + m] * gradients[m][proposal[i, m]]
    squares = ((estimates - estimates.mean(0)) ** 2).sum(1)
    return float(squares.mean()), float(squares.std() / draws**0.5)


@pytest.mark.parametrize("accuracy", [0.4, 0.75, 0.95, 0.99])
def test_the_variance_of_minibatches_is_the_enumerated_one(accuracy: float) -> None:
    model = with_accuracy(4, accuracy)
    for kind in ("basic", "control"):
        sampled, error = sampled_variance(kind, model, 4, 12_000, 7)
        assert abs(sampled - enumerated_variance(kind, model, 4)) < 3.5 * error < 0.4 * sampled


@pytest.mark.parametrize("seed", range(3))
def test_the_control_variate_hurts_a_little_at_low_accuracy_and_wins_in_the_end(seed: int) -> None:
    models = [with_accuracy(4, accuracy, seed=seed) for accuracy in (0.4, 0.75, 0.95, 0.99, 0.999)]
    ratios = [enumerated_variance("control", m, 4) / enumerated_variance("basic", m, 4) for m in models]
    assert ratios[0] > 1 and ratios == sorted(ratios, reverse=True)
    assert ratios[0] < 1.15 and ratios[-2] < 0.1 and ratios[-1] < 0.01


def resampled_ratio(
    model: Enumerable, batch: int, count: int, draws: int, kind: Estimator = "control", visits: int = 0
) -> float:
    """Variance of the control variate's estimates over that of the basic ones, from the same draws, each resampled.

    Args:
        visits: earlier proposals of each question that "per-question" knows of.
    """
    rng = np.random.default_rng(0)
    rewards = model.right.astype(float)
    tables = [posterior(model, question, rewards) for question in range(4)]
    gradients = np.array([own for _, _, own in tables])
    accuracies = np.array([p @ rewards for p, _, _ in tables])
    estimates: dict[Estimator, list[np.ndarray]] = {"basic": [], kind: []}
    for _ in range(draws):
        asked = rng.permutation(batch) % 4  # in a minibatch's random order: the resampling is systematic
        memory = np.array([rng.choice(len(p), p=after) for p, after, _ in map(tables.__getitem__, asked)])
        proposal = np.array([rng.choice(len(p), p=p / p.sum()) for p, _, _ in map(tables.__getitem__, asked)])
        hit = accept(rewards[memory], rewards[proposal], rng.random(batch))
        chosen, uniform = np.where(hit, proposal, memory), rng.random()
        past = np.full(batch, visits), rng.binomial(visits, accuracies[asked])
        for each, found in estimates.items():
            weights = resample(estimator_weights(each, np.ones(batch, bool), hit, past), count, uniform)
            found.append(weights[:batch] @ gradients[asked, chosen] + weights[batch:] @ gradients[asked, proposal])
    basic, control = (np.var(np.array(found), axis=0).sum() for found in estimates.values())
    return float(control / basic)


@pytest.mark.parametrize(("accuracy", "low", "high"), [(0.3, 1.1, 1.6), (0.75, 0.35, 0.7), (0.95, 0.0, 0.15)])
def test_resampling_makes_the_control_variate_dearer_below_half(accuracy: float, low: float, high: float) -> None:
    """The sizes of its weights add up to (1 - a)(1 + 2 a) at accuracy a, those of the basic ones to 1."""
    model = with_accuracy(4, accuracy)
    assert low < resampled_ratio(model, 32, 16, 400) < high
    assert resampled_ratio(model, 32, 64, 400) < 1.02, "with all terms it does not"


def test_the_control_variate_is_dearer_where_some_questions_are_easy_and_some_hard() -> None:
    """One rate for them all pushes a hard question's proposals down as if they had been likely to be right."""
    alike, apart = with_accuracies([0.75] * 4), with_accuracies([0.99, 0.99, 0.99, 0.03])
    assert resampled_ratio(alike, 32, 64, 400) < 0.8 and resampled_ratio(apart, 32, 64, 400) > 1.3
    assert resampled_ratio(alike, 32, 16, 400) < 0.7 < 0.8 < resampled_ratio(apart, 32, 16, 400)


@pytest.mark.parametrize("count", [16, 64])
@pytest.mark.parametrize("accuracies", [[0.99, 0.99, 0.99, 0.03], [0.99, 0.9, 0.1, 0.01], [0.98, 0.9, 0.8, 0.3]])
def test_a_rate_for_each_question_is_cheaper_there(accuracies: list[float], count: int) -> None:
    model = with_accuracies(accuracies)
    own, shared = (resampled_ratio(model, 32, count, 400, kind, 6) for kind in ("per-question", "control"))
    assert own < 0.9 * shared and own < 1.05


def test_a_rate_for_each_question_costs_nothing_where_they_are_alike() -> None:
    model = with_accuracies([0.75] * 4)
    own, shared = (resampled_ratio(model, 32, 16, 400, kind, 6) for kind in ("per-question", "control"))
    assert own < 1.1 * shared


def test_training_on_accepted_proposals_alone_is_biased() -> None:
    model = Enumerable(2, seed=1)
    model.own[0, 2] += 2.0  # one easy question, one hard
    model.own[1, 2] -= 1.0
    rewards = model.right.astype(float)
    exact, right, filtered = exact_gradient(model, rewards, 2), [], np.zeros_like(model.theta)
    for question in (0, 1):
        p, after, gradients = posterior(model, question, rewards)
        right.append((p @ rewards, after @ gradients))
    for hits in product((0, 1), repeat=2):
        mass = np.prod([rate if hit else 1 - rate for (rate, _), hit in zip(right, hits, strict=True)])
        filtered += (
            mass * sum((hit * mean for hit, (_, mean) in zip(hits, right, strict=True)), 0.0) / max(1, sum(hits))
        )
    best = exact * (filtered @ exact) / (exact @ exact)  # its length does not count against it
    assert np.abs(filtered - best).max() > 0.03
    assert np.abs(expected_gradient("control", model, rewards) - exact).max() < 1e-6


def test_resampled_weights_of_the_papers_example_and_the_notebooks_error() -> None:
    weights = control_variate([True] * 4, [True, True, False, False])
    wanted = [1 / 6, 1 / 6, 1 / 4, 1 / 4, 0, 0, -1 / 6, -1 / 6]
    np.testing.assert_allclose(weights, wanted, atol=1e-12)
    np.testing.assert_allclose(mean_over_uniforms(weights, 4), wanted, atol=1e-12)
    wrong = mean_over_uniforms(weights, 4, notebook_resample)
    np.testing.assert_allclose(wrong, [0.149, 0.149, 0.208, 0.208, -0.077, -0.077, -0.149, -0.149], atol=1e-3)


def test_the_notebooks_resampling_fails_the_gradient_test() -> None:
    model = with_accuracy(2, 0.4)
    rewards = model.right.astype(float)
    exact = exact_gradient(model, rewards, 2)
    wrong = expected_gradient("control", model, rewards, 2, notebook_resample)
    assert np.abs(wrong - exact).max() > 1e-2
    assert np.abs(expected_gradient("control", model, rewards, 2) - exact).max() < 1e-6


SOLVED = st.lists(st.tuples(st.booleans(), st.booleans()).map(lambda x: (x[0] or x[1], x[1])), min_size=1, max_size=12)


@given(SOLVED, st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_resampling_keeps_signs_and_never_draws_a_term_of_weight_zero(batch: list, count: int, uniform: float) -> None:
    weights = control_variate(*zip(*batch, strict=True))
    drawn = resample(weights, count, uniform)
    assert (drawn * weights >= 0).all() and not drawn[weights == 0].any()
    assert np.count_nonzero(drawn) <= max(count, np.count_nonzero(weights))
    assert np.abs(drawn).sum() == pytest.approx(np.abs(weights).sum())


@given(SOLVED, st.data())
def test_a_questions_acceptance_rate_does_not_know_its_own_proposal(batch: list, data: st.DataObject) -> None:
    m = data.draw(st.integers(0, len(batch) - 1))
    other = [(True, not hit) if i == m else (solved, hit) for i, (solved, hit) in enumerate(batch)]
    rates = [acceptance_rates(*zip(*b, strict=True))[m] for b in (batch, other)]
    assert rates[0] == rates[1] and 0 <= rates[0] <= 1


@given(SOLVED)
def test_nothing_solved_has_no_weight_and_everything_accepted_neither(batch: list) -> None:
    size = len(batch)
    assert not basic([False] * size).any() and not control_variate([False] * size, [False] * size).any()
    if size > 1:
        assert not control_variate([True] * size, [True] * size).any()
    assert control_variate([True], [True]).tolist() == basic([True]).tolist()  # alone: nobody to learn a rate from


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(RestillError, match="estimator='reinforce'"):
        estimator_weights("reinforce", [True], [True], NOTHING)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RestillError, match="above 0"):
        resample_systematic([0.0, 0.0], 2, 0.5)


def test_a_step_of_the_job_has_algorithm_3s_terms() -> None:
    """Four questions: accepted, rejected, rejected with a memory of before, and never solved."""

    def latent(name: int, reward: float) -> Latent:
        return Latent(sequences=(Example(tokens=(name, 1), weights=(0.0, 1.0)),), answer=str(name), reward=reward)

    asked = [Question(id=str(n), question=f"{n}?", answers=["x"]) for n in range(4)]
    old = {q.key: latent(10 + n, 1.0) for n, q in enumerate(asked[:3])}
    new = [latent(20, 1.0), latent(21, 0.0), latent(22, 0.0), latent(23, 0.0)]
    lab: Any = SimpleNamespace(
        questions={q.key: q for q in asked},
        minibatch=lambda step, size: asked,
        propose=lambda batch, step: [Scored(q, None, z) for q, z in zip(batch, new, strict=True)],  # type: ignore[arg-type]
        uniforms=lambda step, purpose: np.random.default_rng(0),
    )
    source = TRICE(minibatch=4, resampled=8).source()
    source.memory = Memory(old)
    found = {term.latent.answer: term.weight for term in source.step(lab, 0).terms}
    # beta is the others' rate: 0 of 2 for the accepted one, 1 of 2 for each of the rejected.
    assert found == pytest.approx({"20": 1 / 3, "11": 1 / 3, "12": 1 / 3, "21": -1 / 6, "22": -1 / 6})
    assert source.memory.latents[asked[0].key] is new[0] and asked[3].key not in source.memory.latents
    source = TRICE(minibatch=4, resampled=8, estimator="per-question").source()
    source.memory = Memory(old, {asked[0].key: (3, 1), asked[1].key: (4, 3)})
    found = {term.latent.answer: term.weight for term in source.step(lab, 0).terms}
    # Those rates as one more visit: (1 + 0) / 4, (3 + 1/2) / 5 and, without a past, 1/2.
    assert found == pytest.approx({"20": 1 / 4, "11": 1 / 3, "12": 1 / 3, "21": -0.7 / 3, "22": -1 / 6})
    assert [source.memory.visits[q.key] for q in asked] == [(4, 2), (5, 3), (1, 0), (1, 0)]
