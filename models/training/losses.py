"""The losses of a retriever: functions of vectors or of cosines, in float32 whatever comes in.

Two queries, [1, 0] and [0, 1], with their positives [1, 0] and [0.6, 0.8], at temperature 0.5:

    cosines [[1.0, 0.6], [0.0, 0.8]]    InfoNCE  (ln(1 + e^-0.8) + ln(1 + e^-1.6)) / 2 = 0.2775

Formulas and constants are those of U-MARVEL's released code (chaxjli/U-MARVEL, models/), which computes
them in bfloat16; float64 stays float64. N queries, K hard negatives a query, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

EPS = 1e-8
"""What the released code adds within its logarithms."""

Objective = Callable[["Tensor", "Tensor", "Tensor | None", "Tensor | float"], "Tensor"]
"""The mean loss of rows of cosines [R, C]: each row's positive is the column that `positive` [R] names,
the others are negatives, but for those that `left_out` [R, C] marks; last the temperature."""


def cross_entropy(
    cosines: Tensor, positive: Tensor, left_out: Tensor | None = None, temperature: Tensor | float = 0.05
) -> Tensor:
    """−log(e^(p/τ) / (e^(p/τ) + Σ e^(n/τ))): p the positive's cosine, n those of the negatives."""
    from torch.nn.functional import cross_entropy

    logits = _exact(cosines) / temperature
    return cross_entropy(logits if left_out is None else logits.masked_fill(left_out, -math.inf), positive)


def focal(
    cosines: Tensor, positive: Tensor, left_out: Tensor | None = None, temperature: Tensor | float = 0.05
) -> Tensor:
    """log(e^φ + Σ e^θ + ε) − φ with φ = p²/τ, θ = n(n + 0.2)/τ.

    Focal-InfoNCE (Hou & Li 2023, arXiv 2310.06918); FocalInfoNCELoss.py, whose τ is 0.05.
    """
    p, n, kept = _split(cosines, positive, left_out)
    return _contrast(p.square() / temperature, n * (n + 0.2) / temperature, kept)


def focal_abs(
    cosines: Tensor, positive: Tensor, left_out: Tensor | None = None, temperature: Tensor | float = 0.05
) -> Tensor:
    """log(e^φ + Σ e^θ + ε) − φ with φ = p|p|/τ, θ = n(|n| + 0.3)/τ.

    FocalInfoNCELoss.py (FocalInfoNCEABSLoss), whose τ is 0.05.
    """
    p, n, kept = _split(cosines, positive, left_out)
    return _contrast(p * p.abs() / temperature, n * (n.abs() + 0.3) / temperature, kept)


def diht(
    cosines: Tensor, positive: Tensor, left_out: Tensor | None = None, temperature: Tensor | float = 0.05
) -> Tensor:
    """log(0.95·e^(p/τ) + Σ (ψ + ε) e^(n/τ) + ε) − p/τ with ψ = (C − 1) e^(0.1·n) / (Σ' e^(0.1·c) + ε).

    Σ' goes over all C candidates but n, the positive among them. Hard-negative NCE of DiHT (Radenovic et
    al. 2023, arXiv 2301.02280); DiHTLoss.py, whose τ is 0.05.
    """
    p, n, kept = _split(cosines, positive, left_out)
    weights = (0.1 * n).exp()
    others = (0.1 * p).exp() + (weights * kept).sum(1, keepdim=True) - weights * kept
    psi = kept.sum(1, keepdim=True) * weights / (others + EPS)
    return _contrast(p / temperature, n / temperature + (psi + EPS).log(), kept, share=0.95)


def llave(
    cosines: Tensor, positive: Tensor, left_out: Tensor | None = None, temperature: Tensor | float = 0.05
) -> Tensor:
    """log(e^(p/τ) + Σ (e^(9n) + ε) e^(n/τ) + ε) − p/τ, the weights e^(9n) without gradient.

    Hardness-weighted loss of LLaVE (Lan et al. 2025, arXiv 2503.04812); LLaVELoss.py, whose τ is 0.05.
    """
    p, n, kept = _split(cosines, positive, left_out)
    return _contrast(p / temperature, n / temperature + ((9 * n.detach()).exp() + EPS).log(), kept)


def softcse_w(
    cosines: Tensor, positive: Tensor, left_out: Tensor | None = None, temperature: Tensor | float = 0.1
) -> Tensor:
    """log(e^(p/τ) + Σ (ψ + ε) e^(n/τ) + ε) − p/τ with ψ = (1 − n) / (1 − 1/(C − 1) + ε), C candidates.

    SoftCSE (Zhuang et al., CIKM 2024); SoftCSELoss.py (SoftCSELoss_Weight), whose τ is 0.1 and which is not
    a number where a cosine is rounded up beyond 1; here ψ is never less than 0.
    """
    p, n, kept = _split(cosines, positive, left_out)
    psi = (1 - n).clamp(min=0) / (1 - 1 / kept.sum(1, keepdim=True).clamp(min=1) + EPS)
    return _contrast(p / temperature, n / temperature + (psi + EPS).log(), kept)


def softcse_t(
    cosines: Tensor, positive: Tensor, left_out: Tensor | None = None, temperature: Tensor | float = 0.1
) -> Tensor:
    """log(e^(p/τ) + Σ e^θ + ε) − p/τ with θ = n(1 − n)(C − 1) / ((C − 2)τ), C candidates.

    SoftCSE as above; SoftCSELoss.py (SoftCSELoss_Temperature), whose τ is 0.1 and which is not finite where
    C is 2; here C − 2 is never less than 1.
    """
    p, n, kept = _split(cosines, positive, left_out)
    count = kept.sum(1, keepdim=True)
    return _contrast(p / temperature, n * (1 - n) * count / ((count - 1).clamp(min=1) * temperature), kept)


OBJECTIVES: Mapping[str, Objective] = {
    "cross-entropy": cross_entropy,
    "focal": focal,
    "focal-abs": focal_abs,
    "diht": diht,
    "llave": llave,
    "softcse-w": softcse_w,
    "softcse-t": softcse_t,
}
"""By the names of recipes. As released, all but the first keep to the temperature of their defaults,
whatever is learned."""


def infonce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    temperature: Tensor | float,
    *,
    two_way: bool = False,
    weights: tuple[float, float] = (1.0, 1.0),
    in_batch: bool = True,
    negatives_of_all: bool = True,
    same: Tensor | None = None,
    objective: Objective = cross_entropy,
) -> Tensor:
    """InfoNCE with in-batch and hard negatives: the mean over i of −log softmax(cos(q_i, ·) / τ)[p_i].

    van den Oord et al. 2018 (arXiv 1807.03748), as in U-MARVEL's qwen2_vl_finetune.py and, with hard
    negatives, qwen2_vl_finetune_with_hard_neg.py. The candidates of a query are

        all N positives and all N·K negatives, whosever they are      as released
        all N positives and its own K negatives                       negatives_of_all=False
        its own positive and its own K negatives                      in_batch=False ("only hard negatives")

    queries, positives [N, D], negatives [N, K, D]: brought to unit length here.
    two_way: w_0 · (query → candidate) + w_1 · (candidate → query), the latter with the positives in the
    place of the queries and the queries in the place of the positives. Released weights: 1 and 1 in
    qwen2_vl_finetune.py, 0.5 and 0.5 in all other classes.
    same [N, N(K + 1)] bool: candidates that are no negatives of a query, such as `duplicates` finds;
    column N(1 + k) + j is negative k of query j. Left in as released.
    objective: cross entropy, or another of OBJECTIVES.
    """
    import torch

    n = _unit(queries.new_zeros(len(queries), 0, queries.shape[1]) if negatives is None else negatives)
    count, hard = len(queries), n.shape[1]
    _require_shape("positives", positives, queries.shape)
    _require_shape("negatives", n, (count, hard, queries.shape[1]))
    if not (in_batch or hard):
        raise ValueError("in_batch=False leaves nothing to tell a positive from: give hard negatives")
    if same is None:
        same = torch.zeros(count, count * (hard + 1), dtype=torch.bool, device=queries.device)
    _require_shape("same", same, (count, count * (hard + 1)))
    q, p = _unit(queries), _unit(positives)

    def one_way(rows: Tensor, others: Tensor, left_out: Tensor) -> Tensor:
        cosines, left_out = _layout(rows, others, n, left_out, in_batch, negatives_of_all)
        at = torch.arange(count, device=q.device) if in_batch else left_out.new_zeros(count, dtype=torch.long)
        return objective(cosines, at, left_out.scatter(1, at[:, None], False), temperature)

    if not two_way:
        return one_way(q, p, same)
    back = torch.cat([same[:, :count].T, same[:, count:]], 1)
    return weights[0] * one_way(q, p, same) + weights[1] * one_way(p, q, back)


def _layout(
    rows: Tensor, others: Tensor, negatives: Tensor, same: Tensor, in_batch: bool, negatives_of_all: bool
) -> tuple[Tensor, Tensor]:
    """Cosines [N, C] of the rows with their candidates, and which of those are left out."""
    import torch

    count, hard, _ = negatives.shape
    if in_batch and negatives_of_all:
        every = torch.cat([others, negatives.transpose(0, 1).flatten(0, 1)])
        return _dot("nd,md->nm", rows, every), same
    own = _dot("nd,nkd->nk", rows, negatives)
    own_same = same[:, count:].view(count, hard, count).diagonal(dim1=0, dim2=2).T
    if in_batch:
        first, first_same = _dot("nd,md->nm", rows, others), same[:, :count]
    else:
        first, first_same = _dot("nd,nd->n", rows, others)[:, None], same.diagonal()[:, None]
    return torch.cat([first, own], 1), torch.cat([first_same, own_same], 1)


def duplicates(positive_ids: Tensor, negative_ids: Tensor | None = None) -> Tensor:
    """[N, N(K + 1)] bool: where the batch holds a query's positive, by its id, as `infonce` takes it.

    positive_ids [N], negative_ids [N, K]: whole numbers.
    """
    import torch

    every = positive_ids if negative_ids is None else torch.cat([positive_ids, negative_ids.T.flatten()])
    return positive_ids[:, None] == every


def own_cosines(queries: Tensor, candidates: Tensor) -> Tensor:
    """[B, K] cosines of each query, [B, D], with its own candidates, [B, K, D]."""
    return _dot("nd,nkd->nk", _unit(queries), _unit(candidates))


def distill_kl(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, divide: float = 2.0, eps: float = 0.0
) -> Tensor:
    """KL(t ‖ s) = Σ t·(log t − log(s + ε)), the mean over the B queries (`batchmean`), with
    t = softmax(teacher / divide / τ), τ without gradient, and s = softmax(student / τ).

    student [B, K]: cosines of each query with its K candidates; teacher [B, K]: their fused scores,
    cosine + w·P(Yes), of which `divide` makes a mean where w is 1. U-MARVEL's
    qwen2_vl_finetune_with_distillrerank.py and distill_rerank_loss_function.py, where ε is 1e-8.
    """
    import torch
    from torch.nn.functional import kl_div

    t, s = _log_shares(student, teacher, temperature, divide)
    if eps:
        s = torch.logaddexp(s, s.new_tensor(math.log(eps)))
    return kl_div(s, t, reduction="batchmean", log_target=True)


def distill_js(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, divide: float = 2.0
) -> Tensor:
    """Jensen–Shannon: ½KL(t ‖ m) + ½KL(s ‖ m), m = ½(t + s), at most ln 2; t, s and shapes as `distill_kl`.

    The released compute_js_divergence has the arguments of both turned round, ½KL(m ‖ t) + ½KL(m ‖ s),
    which has no bound.
    """
    import torch
    from torch.nn.functional import kl_div

    t, s = _log_shares(student, teacher, temperature, divide)
    m = torch.logaddexp(t, s) - math.log(2)
    return torch.stack([kl_div(m, each, reduction="batchmean", log_target=True) for each in (t, s)]).mean()


def distill_tv(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, divide: float = 2.0
) -> Tensor:
    """Total variation: ½ Σ |t − s|, the mean over the queries, at most 1; t, s and shapes as `distill_kl`.

    The released compute_f_divergence compares a shape with a number and always raises.
    """
    t, s = _log_shares(student, teacher, temperature, divide)
    return 0.5 * (t.exp() - s.exp()).abs().sum(1).mean()


def ranking_hinge(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, *, margin: float = 0.1
) -> Tensor:
    """The mean over all K(K − 1) ordered pairs i ≠ j of max(0, γ − sign(t_i − t_j)·(s_i − s_j)/τ).

    Added to a divergence with weight 1; shapes as `distill_kl`. Candidates of equal teacher scores count
    γ and pull nowhere. compute_ranking_loss of U-MARVEL's distill_rerank_loss_function.py.
    """
    import torch

    _require_shape("teacher", teacher, student.shape)
    s, t = _exact(student) / temperature, _exact(teacher)
    order = (t[:, :, None] - t[:, None, :]).sign()
    pairs = ~torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    return (margin - order * (s[:, :, None] - s[:, None, :])).clamp(min=0)[:, pairs].mean()


def list_infonce(student: Tensor, positive: Tensor, temperature: Tensor | float) -> Tensor:
    """−log softmax(student / τ), the mean over a query's positives and then over the queries that have
    any; 0 where none has. Added to a divergence with weight 0.2 as released.

    student, positive (bool) [B, K]. Khosla et al. 2020 (arXiv 2004.11362), eq. 2. The released
    compute_infonce_loss multiplies the cosines by 0 or 1 in place of choosing, and so adds up all columns.
    """
    _require_shape("positive", positive, student.shape)
    shares = (_exact(student) / temperature).log_softmax(1)
    counts = positive.sum(1)
    losses = -(shares * positive).sum(1) / counts.clamp(min=1)
    return losses.sum() / (counts > 0).sum().clamp(min=1)


def learned_temperature(
    init: float = 0.05,
    *,
    form: Literal["raw", "log"] = "raw",
    within: tuple[float, float] | None = None,
) -> Module:
    """A module without arguments whose value is τ, a float32 scalar; its one parameter, [1], is τ itself,
    as released (Similarity.temp, init 0.05, unbounded), or ln τ, which cannot become negative.

    within: bounds in which the parameter is put back before it is used, as CLIP does; a bound on the value
    alone would leave it no gradient to come back by.

    Across ranks: where every rank computes the loss of all gathered rows, each has the whole gradient of τ
    (also with the released gather, whose other gradients are 1/W of theirs), and the mean over ranks
    changes nothing. Where each computes the loss of rows of its own, as in distillation, the mean over
    ranks is the gradient: let DDP take it, or all-reduce it.
    """
    import torch

    class Temperature(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = torch.nn.Parameter(torch.tensor([math.log(init) if form == "log" else init]))

        def forward(self) -> Tensor:
            if within is not None:
                low, high = map(math.log, within) if form == "log" else within
                self.raw.data.clamp_(low, high)
            value = _exact(self.raw)[0]
            return value.exp() if form == "log" else value

    return Temperature()


def _require_shape(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """What broadcasts is not what was meant."""
    if values.shape != shape:
        raise ValueError(f"{name} is {list(values.shape)}, not {list(shape)}")


def _exact(values: Tensor) -> Tensor:
    """In float32, or float64 as it comes."""
    import torch

    return values if values.dtype == torch.float64 else values.float()


def _unit(rows: Tensor) -> Tensor:
    from torch.nn.functional import normalize

    return normalize(_exact(rows), dim=-1)


def _dot(form: str, left: Tensor, right: Tensor) -> Tensor:
    """Autocast would bring the product down to bfloat16, float32 rows or not."""
    import torch

    with torch.autocast(left.device.type, enabled=False):
        return torch.einsum(form, left, right)


def _split(cosines: Tensor, positive: Tensor, left_out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The positives' cosines [R, 1], all cosines [R, C], and which of those are negatives."""
    import torch

    cosines, at = _exact(cosines), positive[:, None]
    kept = torch.ones_like(cosines, dtype=torch.bool) if left_out is None else ~left_out
    return cosines.gather(1, at), cosines, kept.scatter(1, at, False)


def _contrast(phi: Tensor, theta: Tensor, kept: Tensor, share: float = 1.0) -> Tensor:
    """The mean of log(share·e^φ + Σ e^θ + ε) − φ: FusedLoss of the released loss_function.py, which takes
    the exponentials as they are and overflows. phi [R, 1], theta [R, C]."""
    import torch

    terms = [phi + math.log(share), theta.masked_fill(~kept, -math.inf), torch.full_like(phi, math.log(EPS))]
    return (torch.cat(terms, 1).logsumexp(1) - phi[:, 0]).mean()


def _log_shares(
    student: Tensor, teacher: Tensor, temperature: Tensor | float, divide: float
) -> tuple[Tensor, Tensor]:
    """Logarithms [B, K] of the teacher's and the student's shares of the candidates."""
    import torch

    _require_shape("teacher", teacher, student.shape)
    fixed = temperature.detach() if isinstance(temperature, torch.Tensor) else temperature
    t = _exact(teacher.detach()) / divide / fixed
    return t.log_softmax(1), (_exact(student) / temperature).log_softmax(1)
