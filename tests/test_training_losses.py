"""Losses: numbers worked by hand, the released formulas written straight out, and no infinities."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax, normalize, softmax

from harness.models.training.losses import (
    EPS,
    OBJECTIVES,
    cross_entropy,
    distill_js,
    distill_kl,
    distill_tv,
    duplicates,
    infonce,
    learned_temperature,
    list_infonce,
    own_cosines,
    ranking_hinge,
)

# Two queries, their positives and a hard negative each: N = D = 2, K = 1; lengths differ from 1 on purpose.
Q = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
P = torch.tensor([[1.0, 0.0], [1.2, 1.6]])  # [1, 0] and [0.6, 0.8]
H = torch.tensor([[[0.8, 0.6]], [[-5.0, 0.0]]])  # [0.8, 0.6] and [-1, 0]
# cosines        positives     negatives               of positive 1      of positive 2
# of query 1     1.0   0.6     0.8  -1.0     queries   1.0   0.0          0.6   0.8
# of query 2     0.0   0.8     0.6   0.0     negatives 0.8  -1.0          0.96 -0.6     (0.6·0.8 + 0.8·0.6)
DISTILLED = {"kl": distill_kl, "js": distill_js, "tv": distill_tv, "hinge": ranking_hinge}


def nll(right: float, *wrong: float, at: float = 0.5) -> float:
    """−ln of the share of e^(right/τ)."""
    return math.log(sum(math.exp(each / at) for each in (right, *wrong))) - right / at


def drawn(*shape: int, seed: int = 0, **like) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **like)


def cosines(rows: int = 5, columns: int = 8, *, seed: int = 0, **like) -> torch.Tensor:
    return (2 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed), **like) - 1) * 0.9


def test_the_example_in_the_docstring():
    assert infonce(Q, P, None, 0.5).item() == pytest.approx(0.2775, abs=5e-5)
    assert infonce(Q, P, None, 0.5).item() == pytest.approx(
        (math.log(1 + math.exp(-0.8)) + math.log(1 + math.exp(-1.6))) / 2
    )


ONE_WAY = (nll(1.0, 0.6, 0.8, -1.0) + nll(0.8, 0.0, 0.6, 0.0)) / 2
BACK = (nll(1.0, 0.0, 0.8, -1.0) + nll(0.8, 0.6, 0.96, -0.6)) / 2


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, ONE_WAY),
        ({"two_way": True}, ONE_WAY + BACK),
        ({"two_way": True, "weights": (0.5, 0.5)}, 0.5 * ONE_WAY + 0.5 * BACK),
        ({"two_way": True, "weights": (0.3, 0.1)}, 0.3 * ONE_WAY + 0.1 * BACK),
        ({"negatives_of_all": False}, (nll(1.0, 0.6, 0.8) + nll(0.8, 0.0, 0.0)) / 2),
        ({"in_batch": False}, (nll(1.0, 0.8) + nll(0.8, 0.0)) / 2),
        (
            {"in_batch": False, "two_way": True},
            (nll(1.0, 0.8) + nll(0.8, 0.0)) / 2 + (nll(1.0, 0.8) + nll(0.8, -0.6)) / 2,
        ),
    ],
    ids=str,
)
def test_infonce_with_hard_negatives_worked_by_hand(options, by_hand):
    assert infonce(Q, P, H, 0.5, **options).item() == pytest.approx(by_hand, rel=1e-6)


def test_two_ways_without_hard_negatives_are_the_same_from_both_sides():
    q, p = drawn(6, 4), drawn(6, 4, seed=1)
    assert torch.allclose(infonce(q, p, None, 0.1, two_way=True), infonce(p, q, None, 0.1, two_way=True))


@pytest.mark.parametrize("options", [{}, {"negatives_of_all": False}, {"in_batch": False}], ids=str)
def test_the_order_of_the_batch_and_of_the_negatives_does_not_matter(options):
    q, p, h = drawn(6, 4), drawn(6, 4, seed=1), drawn(6, 3, 4, seed=2)
    turned = [3, 1, 5, 0, 2, 4]
    shuffled = infonce(q[turned], p[turned], h[turned][:, [2, 0, 1]], 0.1, two_way=True, **options)
    assert torch.allclose(shuffled, infonce(q, p, h, 0.1, two_way=True, **options))


def test_duplicates_name_the_columns_that_hold_a_querys_positive():
    """Columns: positives 7, 8, 7, then the first negatives 1, 7, 2, then the second ones 8, 3, 4."""
    found = duplicates(torch.tensor([7, 8, 7]), torch.tensor([[1, 8], [7, 3], [2, 4]]))
    assert found.int().tolist() == [
        [1, 0, 1, 0, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 1, 0, 0],
        [1, 0, 1, 0, 1, 0, 0, 0, 0],
    ]
    assert duplicates(torch.tensor([7, 8])).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        # Both queries have one positive, [1, 0], which is the hard negative of query 2 as well.
        ({}, (nll(1.0, 0.8) + nll(0.0, 0.6)) / 2),
        ({"negatives_of_all": False}, (nll(1.0, 0.8) + nll(0.0)) / 2),
        ({"in_batch": False}, (nll(1.0, 0.8) + nll(0.0)) / 2),
        ({"two_way": True}, (nll(1.0, 0.8) + nll(0.0, 0.6)) / 2 + (nll(1.0, 0.8) + nll(0.0, 0.8)) / 2),
    ],
    ids=str,
)
def test_a_duplicate_of_the_positive_is_no_negative(options, by_hand):
    p, h = Q[[0, 0]], torch.stack([H[0], Q[:1]])
    same = duplicates(torch.tensor([7, 7]), torch.tensor([[1], [7]]))
    assert infonce(Q, p, h, 0.5, same=same, **options).item() == pytest.approx(by_hand, rel=1e-6, abs=1e-7)
    assert infonce(Q, p, h, 0.5, **options) > infonce(Q, p, h, 0.5, same=same, **options)


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, lambda i, j, k: True),
        ({"negatives_of_all": False}, lambda i, j, k: k is None or i == j),
        ({"in_batch": False}, lambda i, j, k: i == j),
    ],
    ids=["all", "own negatives", "hard only"],
)
def test_duplicates_among_several_negatives_are_those_of_their_columns(options, seen):
    q, p, h = drawn(3, 4), drawn(3, 4, seed=1), drawn(3, 2, 4, seed=2)
    ids, hard_ids = torch.tensor([7, 8, 7]), torch.tensor([[1, 8], [7, 3], [2, 8]])
    every = [(j, None, ids[j], p[j]) for j in range(3)]
    every += [(j, k, hard_ids[j, k], h[j, k]) for j in range(3) for k in range(2)]

    def cosine(one, other):
        return torch.cosine_similarity(one, other, dim=0).item()

    rows = []
    for i in range(3):
        wrong = [v for j, k, id_, v in every if seen(i, j, k) and id_ != ids[i]]
        rows.append(nll(cosine(q[i], p[i]), *(cosine(q[i], each) for each in wrong)))
    loss = infonce(q, p, h, 0.5, same=duplicates(ids, hard_ids), **options)
    assert loss.item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_a_known_answer_of_one_query_is_left_out_for_that_query_alone():
    same = torch.zeros(2, 4, dtype=torch.bool)
    same[0, 1] = True  # positive 2 answers query 1 too
    one_way = (nll(1.0, 0.8, -1.0) + nll(0.8, 0.0, 0.6, 0.0)) / 2
    back = (nll(1.0, 0.0, 0.8, -1.0) + nll(0.8, 0.96, -0.6)) / 2
    assert infonce(Q, P, H, 0.5, same=same).item() == pytest.approx(one_way)
    assert infonce(Q, P, H, 0.5, same=same, two_way=True).item() == pytest.approx(one_way + back)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda: infonce(Q, P, None, 0.5, in_batch=False), "in_batch=False leaves .*: give hard negatives"),
        (lambda: infonce(Q, P, H, 0.5, same=torch.eye(2) > 0), r"same is \[2, 2\], not \[2, 4\]"),
        (lambda: infonce(Q, P[:1], None, 0.5), r"positives is \[1, 2\], not \[2, 2\]"),
        (lambda: infonce(Q, P, H[:1], 0.5), r"negatives is \[1, 1, 2\], not \[2, 1, 2\]"),
        (lambda: distill_kl(Q, P[:1], 0.5), r"teacher is \[1, 2\], not \[2, 2\]"),
        (lambda: ranking_hinge(Q, P[:1], 0.5), r"teacher is \[1, 2\], not \[2, 2\]"),
        (lambda: list_infonce(Q, P[:1] > 0, 0.5), r"positive is \[1, 2\], not \[2, 2\]"),
    ],
)
def test_shapes_that_would_merely_broadcast_and_positives_without_negatives_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        loss()


def released_infonce(q, p, blocks, tau, w_forth, w_back):
    """The matrix as the released classes build it: block after block, each of one negative of all."""
    q, p, *blocks = (normalize(each, dim=-1) for each in (q, p, *blocks))
    forth, back = q @ p.T, p @ q.T
    for block in blocks:
        forth, back = torch.cat([forth, q @ block.T], 1), torch.cat([back, p @ block.T], 1)
    at = torch.arange(len(q))
    ce = torch.nn.CrossEntropyLoss()
    return w_forth * ce(forth / tau, at) + w_back * ce(back / tau, at)


@pytest.mark.parametrize(("forth", "back"), [(1.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("hard", [0, 1, 5])
def test_infonce_and_its_gradients_are_those_of_the_released_code(forth, back, hard):
    def leaves():
        vectors = (drawn(7, 6), drawn(7, 6, seed=1), drawn(7, hard, 6, seed=2), torch.tensor(0.05))
        return [each.requires_grad_() for each in vectors]

    ours, theirs = leaves(), leaves()
    q, p, h, tau = ours
    options = {"two_way": back > 0, "weights": (forth, back)}
    loss = infonce(q, p, h, tau, **options)
    loss.backward()
    q, p, h, tau = theirs
    reference = released_infonce(q, p, h.unbind(1), tau, forth, back)
    reference.backward()
    assert torch.allclose(loss, reference, rtol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert not mine.numel() or torch.allclose(mine.grad, other.grad, atol=1e-5)


def released_fused(name: str, s: torch.Tensor, at: torch.Tensor, tau: float) -> torch.Tensor:
    """log(a·e^φ + Σ ψ·e^θ + ε) − φ with bare exponentials, as FusedLoss and its six children compute it."""
    columns = s.shape[1]
    p = s[torch.arange(len(s)), at]
    tilted = torch.exp(0.1 * s)
    phi = {"focal": p**2, "focal-abs": p * p.abs()}.get(name, p) / tau
    theta = {
        "focal": s * (s + 0.2),
        "focal-abs": s * (s.abs() + 0.3),
        "softcse-t": s * (1 - s) * (columns - 1) / (columns - 2),
    }.get(name, s) / tau
    psi = {
        "diht": tilted * (columns - 1) / (tilted.sum(1, keepdim=True) - tilted + EPS),
        "llave": torch.exp(9 * s.detach()),
        "softcse-w": (1 - s) / (1 - 1 / (columns - 1) + EPS),
    }.get(name, torch.ones_like(s))
    terms = (psi + EPS) * theta.exp()
    wrong = sum(terms[:, j] * (at != j) for j in range(columns))
    share = 0.95 if name == "diht" else 1.0
    return (torch.log(share * phi.exp() + wrong + EPS) - phi).mean()


FUSED = {name: (0.1 if name.startswith("soft") else 0.05) for name in OBJECTIVES if name != "cross-entropy"}


@pytest.mark.parametrize("low", [False, True], ids=["any cosines", "all below -0.8, where ε tells"])
@pytest.mark.parametrize(("name", "tau"), FUSED.items())
def test_the_alternatives_and_their_gradients_are_those_of_the_released_code(name, tau, low):
    at = torch.tensor([0, 3, 7, 1, 1])
    s = cosines(dtype=torch.float64)
    s = (-0.8 - 0.2 * s.abs() if low else s).requires_grad_()
    mine, reference = OBJECTIVES[name](s, at), released_fused(name, s, at, tau)
    assert mine.item() == pytest.approx(reference.item(), abs=1e-7)
    gradients = [torch.autograd.grad(each, s)[0] for each in (mine, reference)]
    assert torch.allclose(*gradients, atol=1e-6)
    single = OBJECTIVES[name](s.detach().float(), at)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(reference.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        # One row: the positive 0.5, the negatives 0.2 and 0.1; τ as in the formulas; ε is not seen.
        # (0.25, 0.04 + 0.04, 0.01 + 0.02) / 0.05 = 5, 1.6, 0.6
        ("focal", math.log(math.exp(5) + math.exp(1.6) + math.exp(0.6)) - 5),
        # (0.25, 0.2 · 0.5, 0.1 · 0.4) / 0.05 = 5, 2, 0.8
        ("focal-abs", math.log(math.exp(5) + math.exp(2) + math.exp(0.8)) - 5),
        # weights 2·e^0.02 / (e^0.05 + e^0.01) and 2·e^0.01 / (e^0.05 + e^0.02)
        (
            "diht",
            math.log(
                0.95 * math.exp(10)
                + 2 * math.exp(0.02) / (math.exp(0.05) + math.exp(0.01)) * math.exp(4)
                + 2 * math.exp(0.01) / (math.exp(0.05) + math.exp(0.02)) * math.exp(2)
            )
            - 10,
        ),
        # 0.5 / 0.05 = 10, 9 · 0.2 + 0.2 / 0.05 = 5.8, 9 · 0.1 + 0.1 / 0.05 = 2.9
        ("llave", math.log(math.exp(10) + math.exp(5.8) + math.exp(2.9)) - 10),
        # 1 − 1/(3 − 1) = 0.5: weights 0.8 / 0.5 and 0.9 / 0.5; 0.5, 0.2, 0.1 / 0.1
        ("softcse-w", math.log(math.exp(5) + 1.6 * math.exp(2) + 1.8 * math.exp(1)) - 5),
        # (3 − 1)/(3 − 2) = 2: 2 · 0.2 · 0.8 / 0.1 = 3.2, 2 · 0.1 · 0.9 / 0.1 = 1.8
        ("softcse-t", math.log(math.exp(5) + math.exp(3.2) + math.exp(1.8)) - 5),
        ("cross-entropy", nll(0.5, 0.2, 0.1, at=0.05)),
    ],
)
def test_the_alternatives_worked_by_hand(name, by_hand):
    row = torch.tensor([[0.2, 0.5, 0.1]], dtype=torch.float64)
    assert OBJECTIVES[name](row, torch.tensor([1])).item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_left_out_is_as_if_it_were_not_there(name):
    s, at = cosines(), torch.tensor([0, 3, 4, 1, 1])
    left_out = torch.zeros_like(s, dtype=torch.bool)
    left_out[:, [2, 6]] = True
    rest = [0, 1, 3, 4, 5, 7]
    short = OBJECTIVES[name](s[:, rest], torch.tensor([rest.index(each) for each in at]))
    assert torch.allclose(OBJECTIVES[name](s, at, left_out), short, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_serves_in_infonce(name):
    q, p, h = drawn(5, 6), drawn(5, 6, seed=1), drawn(5, 2, 6, seed=2)
    every = torch.cat([p, h[:, 0], h[:, 1]])
    s = normalize(q, dim=-1) @ normalize(every, dim=-1).T
    objective = OBJECTIVES[name]
    here = infonce(q, p, h, 0.07, objective=objective)
    assert torch.allclose(here, objective(s, torch.arange(5), None, 0.07), atol=1e-6)


@pytest.mark.parametrize("tau", [1e-4, 0.05, 1e4])
@pytest.mark.parametrize("columns", [1, 2, 3, 9])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_and_gradients_are_finite_at_extreme_temperatures_and_cosines(name, columns, tau):
    """All signs of ±1, twice of 0, and a cosine that rounding brought beyond 1."""
    s = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0], [0.0, 0.0], [0.5, 1.0000001]])
    s = torch.cat([s[:, :1], s[:, 1:].expand(-1, columns - 1)], 1).requires_grad_()
    temperature = torch.tensor(tau, requires_grad=True)
    loss = OBJECTIVES[name](s, torch.zeros(6, dtype=torch.long), None, temperature)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert temperature.grad is None or temperature.grad.isfinite()


# Distillation: one query, two candidates.
# student cosines 0.5, 0.25 at τ = 0.25: logits 2, 1, shares e/(1 + e) and 1/(1 + e)
# teacher scores 1, 2, halved and by τ: logits 2, 4, shares 1/(1 + e²) and e²/(1 + e²)
STUDENT, TEACHER = torch.tensor([[0.5, 0.25]]), torch.tensor([[1.0, 2.0]])
S = (math.e / (1 + math.e), 1 / (1 + math.e))
T = (1 / (1 + math.e**2), math.e**2 / (1 + math.e**2))
M = ((S[0] + T[0]) / 2, (S[1] + T[1]) / 2)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (distill_kl, kl(T, S)),
        (distill_js, (kl(T, M) + kl(S, M)) / 2),
        (distill_tv, S[0] - T[0]),
        # (1, 2): the teacher has 2 ahead, the student 1, by 2 − 1 = 1: max(0, 0.1 + 1) both ways round
        (ranking_hinge, 1.1),
        (lambda s, t, tau: distill_kl(s, t / 2, tau, divide=1.0), kl(T, S)),
        (lambda s, t, tau: list_infonce(s, t > 1, tau), -math.log(S[1])),
        (lambda s, t, tau: list_infonce(s, t > 0, tau), -math.log(S[0] * S[1]) / 2),
        (lambda s, t, tau: list_infonce(s, t > 2, tau), 0.0),
    ],
)  # fmt: skip
def test_distillation_worked_by_hand(loss, by_hand):
    assert loss(STUDENT, TEACHER, 0.25).item() == pytest.approx(by_hand, rel=1e-6)
    rows = loss(STUDENT.repeat(3, 1), TEACHER.repeat(3, 1), torch.tensor(0.25))
    assert rows.item() == pytest.approx(by_hand, rel=1e-6), "a mean over the queries"


def test_a_hinge_of_equals_costs_its_margin_and_pulls_nowhere():
    """Teacher 2, 1, 1: four ordered pairs are told apart, rightly and by more than γ; two cost 0.1."""
    s = torch.tensor([[0.9, 0.1, 0.5]], requires_grad=True)
    loss = ranking_hinge(s, torch.tensor([[2.0, 1.0, 1.0]]), 0.05)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.1 / 6)
    assert not s.grad.any()


def test_queries_without_a_positive_do_not_count_in_the_list_infonce():
    s = cosines(3, 4)
    positive = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.bool)
    assert torch.allclose(list_infonce(s, positive, 0.1), list_infonce(s[[0, 2]], positive[[0, 2]], 0.1))


@pytest.mark.parametrize("seed", range(3))
def test_distillation_and_its_gradients_are_those_of_the_released_code(seed):
    """A divergence of shares with ε in the logarithm; a hinge of all pairs of scaled logits."""
    s = cosines(4, 9, seed=seed).requires_grad_()
    fused = cosines(4, 9, seed=seed + 10) + torch.rand(4, 9)
    tau = torch.tensor(0.05, requires_grad=True)
    shares, wanted = softmax(s / tau, -1), softmax(fused / 2 / tau.detach(), -1)
    reference = kl_div(torch.log(shares + 1e-8), wanted, reduction="batchmean")
    mine = distill_kl(s, fused, tau, eps=1e-8)
    assert mine.item() == pytest.approx(reference.item(), rel=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(e, [s, tau]) for e in (mine, reference)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    logits = s.detach() / 0.05
    pairs = [
        max(0.0, 0.1 - math.copysign(1, fused[b, i] - fused[b, j]) * float(logits[b, i] - logits[b, j]))
        for b in range(4) for i in range(9) for j in range(9) if i != j
    ]  # fmt: skip
    assert ranking_hinge(s, fused, tau).item() == pytest.approx(sum(pairs) / (4 * 9 * 8), rel=1e-5)


def test_the_divergence_of_jensen_and_shannon_is_bounded_and_symmetric_and_the_released_one_is_not():
    s, t = cosines(6, 5), cosines(6, 5, seed=1)
    assert torch.allclose(distill_js(s, t, 0.1, divide=1.0), distill_js(t, s, 0.1, divide=1.0))
    s, t = torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])  # shares of nothing in common
    p, q = softmax(s / 0.05, -1), softmax(t / 0.05, -1)
    released = sum(0.5 * kl_div(torch.log(e + 1e-8), (p + q) / 2, reduction="batchmean") for e in (p, q))
    assert distill_js(s, t, 0.05, divide=1.0).item() == pytest.approx(math.log(2))
    assert released > 5
    assert distill_tv(s, t, 0.05, divide=1.0).item() == pytest.approx(1)


@pytest.mark.parametrize("loss", [distill_kl, distill_js, distill_tv])
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(loss):
    s = cosines()
    assert loss(s, 2 * s, 0.05).item() == pytest.approx(0, abs=1e-6)


def test_the_teacher_and_its_temperature_have_no_gradient():
    s, t, tau = (
        cosines().requires_grad_(),
        cosines(seed=1).requires_grad_(),
        torch.tensor(0.05).requires_grad_(),
    )
    distill_kl(s, t, tau).backward()
    wanted = softmax(t.detach() / 2 / 0.05, -1)
    (by_student,) = torch.autograd.grad(-(wanted * log_softmax(s / tau, -1)).sum(1).mean(), tau)
    assert t.grad is None
    assert torch.allclose(tau.grad, by_student, rtol=1e-4)


@pytest.mark.parametrize("tau", [1e-5, 1e5])
@pytest.mark.parametrize("name", DISTILLED)
def test_distillation_is_finite_at_extreme_temperatures(name, tau):
    s = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 1.0]], requires_grad=True)
    temperature = torch.tensor(tau, requires_grad=True)
    loss = DISTILLED[name](s, torch.tensor([[-1.0, 2.0, 0.3], [-1.0, 2.0, 2.0]]), temperature)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all()
    assert temperature.grad.isfinite()


CHECKED = {
    **{name: lambda q, p, h, tau, o=o: infonce(q, p, h, tau, objective=o) for name, o in OBJECTIVES.items()},
    "two-way": partial(infonce, two_way=True),
    "own": partial(infonce, two_way=True, negatives_of_all=False),
    "hard only": partial(infonce, two_way=True, in_batch=False),
    **{
        name: lambda q, p, h, tau, loss=loss: loss(own_cosines(q, h), h.detach()[..., 0], tau)
        for name, loss in DISTILLED.items()
    },
}


@pytest.mark.parametrize("name", [name for name in CHECKED if name not in ("llave", *DISTILLED)])
def test_gradients_are_those_of_the_values(name):
    """But for LLaVE's weights and the teacher's temperature, which are held fixed."""
    inputs = (drawn(4, 3, dtype=torch.float64), drawn(4, 3, seed=1, dtype=torch.float64))
    inputs += (drawn(4, 2, 3, seed=2, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))
    assert torch.autograd.gradcheck(CHECKED[name], [each.requires_grad_() for each in inputs])


@pytest.mark.parametrize("name", DISTILLED)
def test_gradients_of_the_student_are_those_of_the_values(name):
    teacher = cosines(3, 4, seed=1, dtype=torch.float64)
    loss = partial(DISTILLED[name], teacher=teacher, temperature=0.3)
    assert torch.autograd.gradcheck(loss, [cosines(3, 4, dtype=torch.float64).requires_grad_()])


@pytest.mark.parametrize("name", CHECKED)
def test_whatever_comes_in_and_whatever_autocast_says_the_loss_is_computed_in_float32(name):
    vectors = [drawn(6, 8, seed=3), drawn(6, 8, seed=4), drawn(6, 3, 8, seed=5)]
    tau = torch.tensor(0.05)
    plain = CHECKED[name](*vectors, tau)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = CHECKED[name](*vectors, tau)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)
    low = [each.bfloat16() for each in vectors]
    assert torch.equal(CHECKED[name](*low, tau), CHECKED[name](*(each.float() for each in low), tau))


def test_own_cosines_are_those_of_a_query_with_its_own_candidates():
    found = own_cosines(Q, torch.stack([torch.cat([P[:1], H[0]]), torch.cat([P[1:], H[1]])]))
    assert torch.allclose(found, torch.tensor([[1.0, 0.8], [0.8, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("form", ["raw", "log"])
def test_a_temperature_begins_where_it_is_told_and_learns(form):
    tau = learned_temperature(form=form)
    assert tau().item() == pytest.approx(0.05)
    assert tau().shape == ()
    (parameter,) = tau.parameters()
    optimiser = torch.optim.SGD([parameter], lr=1e-3)
    before = infonce(Q, P, H, tau())
    before.backward()
    scale = 1.0 if form == "raw" else 0.05  # d/d(ln τ) = τ · d/dτ
    value = torch.tensor(0.05, requires_grad=True)
    infonce(Q, P, H, value).backward()
    assert parameter.grad.item() == pytest.approx(scale * value.grad.item(), rel=1e-5)
    optimiser.step()
    assert infonce(Q, P, H, tau()) < before


@pytest.mark.parametrize("form", ["raw", "log"])
def test_a_temperature_out_of_bounds_is_put_back_and_can_leave_the_bound_again(form):
    tau = learned_temperature(0.5, form=form, within=(0.01, 0.1))
    assert tau().item() == pytest.approx(0.1)
    first, second = tau(), tau()
    (first + second).backward()
    (parameter,) = tau.parameters()
    assert parameter.grad > 0, "a bound on the value alone would leave none"
    with torch.no_grad():
        parameter -= 100
    assert tau().item() == pytest.approx(0.01)


def test_an_unbounded_raw_temperature_is_the_released_one_and_a_logarithm_stays_positive():
    raw, log = learned_temperature(), learned_temperature(form="log")
    for module in (raw, log):
        with torch.no_grad():
            next(module.parameters()).sub_(1)
    assert raw().item() == pytest.approx(-0.95)
    assert log().item() == pytest.approx(0.05 / math.e)


def test_a_temperature_is_restored_from_its_state():
    one, other = learned_temperature(0.07), learned_temperature()
    other.load_state_dict(one.state_dict())
    assert other().item() == pytest.approx(0.07)
    assert list(one.state_dict()) == ["raw"]


def test_the_default_temperatures_are_those_of_the_release():
    s, at = cosines(), torch.tensor([0, 3, 7, 1, 1])
    for name, tau in {**FUSED, "cross-entropy": 0.05}.items():
        assert torch.equal(OBJECTIVES[name](s, at), OBJECTIVES[name](s, at, None, tau))
    assert OBJECTIVES["cross-entropy"] is cross_entropy
