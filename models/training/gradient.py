"""The gradient of one large batch, out of chunks that fit the memory and out of the ranks of a cluster.

    def loss(rows):                                                # [2n, D]: n queries and their positives
        return infonce(*map(gather_with_gradient, rows.split(n)), None, temperature())

    value = cached_step(embed, chunks, loss)

3,840 queries and their positives on one device, in chunks of 32: 240 passes without a graph, the loss of
all 7,680 vectors, then 240 passes with a graph, of which one at a time is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Chunk = TypeVar("Chunk")


def gather_with_gradient(rows: Tensor, *, released: bool = False) -> Tensor:
    """The rows [n, …] of all W ranks in the order of the ranks, [W·n, …]; as many on every rank.

    The objective is the mean over ranks of the ranks' losses, be that the same loss of all rows on each or
    one of its own rows against all. The gradient of a rank's rows is summed over ranks here; the mean over
    ranks of the parameters' gradients, as DDP takes it, is then that of one process with all rows.

    released: no gradient into the rows of other ranks (U-MARVEL's qwen2_vl_finetune.py and LamRA): with the
    same loss on every rank, 1/W of the gradient, but for a temperature's, which is whole.
    """
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    own = rows.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    parts[distributed.get_rank()] = rows
    every = torch.cat(parts)
    if every.requires_grad and not released:
        every.register_hook(_summed_over_ranks)  # type: ignore[no-untyped-call]
    return every


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of all ranks' scalars, without gradient."""
    from torch import distributed

    value = value.detach().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value


def _summed_over_ranks(gradient: Tensor) -> Tensor:
    from torch import distributed

    gradient = gradient.clone()
    distributed.all_reduce(gradient)
    return gradient


def _backward(scalar: Tensor) -> None:
    import torch

    torch.autograd.backward(scalar)


def cached_step(
    embed: Callable[[Chunk], Tensor],
    chunks: Sequence[Chunk],
    loss: Callable[[Tensor], Tensor],
    *,
    backward: Callable[[Tensor], None] = _backward,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Tensor:
    """The loss of all chunks together, a scalar; adds its gradient to that of the parameters.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): the vectors of all chunks without a graph, the
    gradient of the loss at those vectors, then each chunk again with a graph, in the same random state, to
    carry its part of that gradient on. Equal to `loss(cat(embed(chunk) for chunk in chunks)).backward()`
    at the memory of one chunk.

    embed: vectors [B, D] of a chunk, under the caller's autocast, if any.
    loss: of all vectors [ΣB, D] in the order of the chunks, in float32 (or 64) and without autocast. If it
    raises, no gradient has been added.
    backward: such as `accelerator.backward`; takes a scalar whose gradient is the chunk's. The loss's own
    parameters, a temperature, come with the last chunk.
    no_sync: around all chunks but the last, such as `model.no_sync` of DDP.
    """
    import torch

    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            parts.append(embed(chunk))
        rows = torch.cat(parts)
    rows = (rows if rows.dtype == torch.float64 else rows.float()).requires_grad_()
    exactly = partial(torch.autocast, rows.device.type, enabled=False)
    with torch.enable_grad(), exactly():
        value = loss(rows)
        own = [leaf for leaf in _leaves(value) if leaf is not rows]
        gradient, *of_own = torch.autograd.grad(value, [rows, *own])
    torch.clear_autocast_cache()  # before torch 2.11 it keeps the first pass's casts, which have no graph
    last = len(chunks) - 1
    sizes = [len(part) for part in parts]
    for at, (chunk, state, part) in enumerate(zip(chunks, states, torch.split(gradient, sizes), strict=True)):
        with nullcontext() if at == last else no_sync(), _random(state):
            carried = _product(embed(chunk), part)
            if at == last:
                carried = carried + sum(_product(*each) for each in zip(own, of_own, strict=True))
            with exactly():
                backward(carried)
    return value.detach()


def _product(values: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient at `values` is `gradient`."""
    return (values * gradient.to(values.dtype)).sum()


def _leaves(value: Tensor) -> list[Tensor]:
    """What the value was computed from that has a gradient."""
    ahead, seen, found = [value.grad_fn], set(), []
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [node.variable] if hasattr(node, "variable") else []
            ahead += [before for before, _ in node.next_functions]
    return found


def _random_state() -> list[Tensor]:
    """Of the CPU and, where one is in use, of this process's GPU."""
    import torch

    on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), torch.cuda.get_rng_state()] if on_gpu else [torch.get_rng_state()]


@contextmanager
def _random(state: Sequence[Tensor]) -> Iterator[None]:
    """In that random state; what is drawn within is not drawn without."""
    import torch

    of_cpu, *of_gpu = state
    with torch.random.fork_rng([torch.cuda.current_device()] if of_gpu else []):
        torch.set_rng_state(of_cpu)
        for each in of_gpu:
            torch.cuda.set_rng_state(each)
        yield
