"""A batch in chunks, or on two ranks, has the gradient that it has in one piece."""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import distributed
from torch.multiprocessing import spawn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from harness.models.training.gradient import cached_step, gather_with_gradient, mean_over_ranks
from harness.models.training.losses import distill_kl, infonce, learned_temperature, own_cosines

N, K, WIDTH, DIM, RANKS = 8, 2, 12, 6, 2


class Tower(torch.nn.Module):
    """An embedder that draws random numbers, and a temperature that only the loss uses."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 16), torch.nn.Dropout(dropout), torch.nn.Tanh(), torch.nn.Linear(16, DIM)
        )
        self.exact = torch.nn.Linear(DIM, DIM)
        self.temperature = learned_temperature(0.1)

    def forward(self, inputs):
        states = self.net(inputs).float()
        with torch.autocast(states.device.type, enabled=False):  # as rotary positions are
            return normalize(self.exact(states), dim=-1)


def inputs(count: int = N * (2 + K)) -> torch.Tensor:
    """Of all queries, all positives, then the K negatives of each query."""
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(1))


def contrast(tower, rows, gather=lambda rows: rows):
    """InfoNCE of a batch of queries, positives and, where there are rows for them, negatives."""
    count = len(rows) // (2 + K) if len(rows) % (2 + K) == 0 else len(rows) // 2
    negatives = rows[2 * count :].view(count, -1, DIM)
    parts = [gather(rows[:count]), gather(rows[count : 2 * count]), gather(negatives)]
    return infonce(*parts, tower.temperature(), two_way=True)


def gradients(module) -> dict[str, torch.Tensor]:
    found = {name.removeprefix("module."): each.grad for name, each in module.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


def assert_close(ours, theirs, scale=1.0):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], scale * gradient, atol=1e-5), name


def plain_step(tower, chunks, loss):
    """The graphs of all chunks at once."""
    value = loss(torch.cat([tower(chunk) for chunk in chunks]).float())
    value.backward()
    return value.detach()


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = {
    "hard negatives": lambda tower, rows: contrast(tower, rows),
    "in-batch negatives": lambda tower, rows: contrast(tower, rows[: N * 2]),
    "fixed temperature": lambda tower, rows: (
        infonce(rows[:N], rows[N : 2 * N], None, 0.05) + 0 * tower.temperature()
    ),
    "lists of a teacher": lambda tower, rows: distill_kl(
        own_cosines(rows[:N], rows[N : 3 * N].view(N, 2, DIM)), rows.detach()[:N, :2], tower.temperature()
    ),
    "a loss that draws": lambda tower, rows: contrast(tower, rows * torch.rand_like(rows)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", [[32], [16, 16], [5, 1, 12, 7, 7], [1] * 32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_step_in_chunks_is_the_plain_step_dropout_included(case, sizes, device):
    cached, plain = Tower().to(device), Tower().to(device)
    chunks = inputs().to(device).split(sizes)
    torch.manual_seed(7)
    value = cached_step(cached, chunks, lambda rows: CASES[case](cached, rows))
    after = torch.rand(1, device=device)
    torch.manual_seed(7)
    reference = plain_step(plain, chunks, lambda rows: CASES[case](plain, rows))
    assert torch.allclose(value, reference, atol=1e-5)
    assert not value.requires_grad
    assert_close(gradients(cached), gradients(plain))
    assert torch.equal(after, torch.rand(1, device=device)), "the next step draws what it would have drawn"


def test_checkpointed_activations_are_drawn_as_in_both_passes():
    def embed(chunk):
        return checkpoint(cached, chunk, use_reentrant=False)

    cached, plain, chunks = Tower(), Tower(), inputs().split(8)
    torch.manual_seed(7)
    cached_step(embed, chunks, lambda rows: contrast(cached, rows))
    torch.manual_seed(7)
    plain_step(plain, chunks, lambda rows: contrast(plain, rows))
    assert_close(gradients(cached), gradients(plain))


def test_another_random_state_in_the_second_pass_would_be_seen():
    chunks, found = inputs().split(8), []
    for seed in (7, 8):
        tower = Tower()
        torch.manual_seed(seed)
        cached_step(tower, chunks, lambda rows, tower=tower: contrast(tower, rows))
        found.append(gradients(tower)["net.0.weight"])
    assert not torch.allclose(*found, atol=1e-3)


def test_gradients_are_added_to_those_that_there_are():
    tower, chunks = Tower(dropout=0.0), inputs().split(8)
    cached_step(tower, chunks, lambda rows: contrast(tower, rows))
    once = gradients(tower)
    cached_step(tower, chunks, lambda rows: contrast(tower, rows))
    assert_close(gradients(tower), once, scale=2.0)


@pytest.mark.parametrize("low", [False, True], ids=["float32 vectors", "bfloat16 vectors"])
def test_under_autocast_the_loss_is_float32_and_the_gradient_that_of_the_plain_step(low):
    """To the plain step every chunk is an autocast of its own: within one, which casts the weights but once,
    it sums up gradients in bfloat16."""
    cached, plain, seen = Tower(), Tower(), []
    chunks = inputs().split(8)

    def loss(rows):
        seen.extend([rows.dtype, (rows @ rows.T).dtype])
        return contrast(cached, rows)

    torch.manual_seed(7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = cached_step(cached.net if low else cached, chunks, loss)
    torch.manual_seed(7)
    alone = torch.autocast("cpu", dtype=torch.bfloat16)(plain.net if low else plain)
    reference = plain_step(alone, chunks, lambda rows: contrast(plain, rows))
    assert alone(chunks[0]).dtype == (torch.bfloat16 if low else torch.float32)
    assert seen == [torch.float32, torch.float32]
    assert torch.allclose(value, reference, atol=1e-5)
    assert_close(gradients(cached), gradients(plain))


def peak_of_saved_bytes(step) -> int:
    """The most that the graphs hold at any one time."""
    held = peak = 0

    class Saved:
        def __init__(self, tensor):
            nonlocal held, peak
            self.tensor = tensor
            size = tensor.nbytes
            held += size
            peak = max(peak, held)
            weakref.finalize(self, self.freed, size)

        @staticmethod
        def freed(size):
            nonlocal held
            held -= size

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        step()
    return peak


@pytest.mark.parametrize("count", [4, 64])
def test_one_chunks_graph_is_held_however_many_there_are(count):
    tower = Tower()
    chunks = inputs(8 * count).split(8)
    whole = torch.nn.Parameter(torch.ones(()))

    def loss(rows):
        return (rows * whole).sum()

    one = peak_of_saved_bytes(lambda: tower(chunks[0]).sum().backward())
    cached = peak_of_saved_bytes(lambda: cached_step(tower, chunks, loss))
    plain = peak_of_saved_bytes(lambda: plain_step(tower, chunks, loss))
    vectors = 8 * count * DIM * 4
    assert cached <= one + vectors + 8 * DIM * 4, "a chunk's graph, and the loss's vectors"
    assert plain >= count * one


def test_all_chunks_but_the_last_are_kept_from_the_other_ranks_and_each_is_embedded_twice():
    tower, calls = Tower(), []

    def embed(chunk):
        calls.append((len(chunk), torch.is_grad_enabled()))
        return tower(chunk)

    @contextmanager
    def no_sync():
        calls.append("[")
        yield
        calls.append("]")

    def backward(scalar):
        calls.append("backward")
        scalar.backward()

    chunks = inputs().split([12, 15, 5])
    cached_step(embed, chunks, lambda rows: contrast(tower, rows), no_sync=no_sync, backward=backward)
    assert calls == [
        *((12, False), (15, False), (5, False)),
        *("[", (12, True), "backward", "]"),
        *("[", (15, True), "backward", "]"),
        *((5, True), "backward"),
    ]


def test_the_backward_given_is_the_only_way_that_gradients_take():
    """Half of every backward pass, as `accelerator.backward` at two accumulated steps, is half of all."""
    chunks, halved, plain = inputs().split(8), Tower(dropout=0.0), Tower(dropout=0.0)
    cached_step(
        halved, chunks, lambda rows: contrast(halved, rows), backward=lambda scalar: (scalar / 2).backward()
    )
    plain_step(plain, chunks, lambda rows: contrast(plain, rows))
    assert_close(gradients(halved), gradients(plain), scale=0.5)


def test_a_loss_that_stops_the_step_leaves_no_gradient():
    tower = Tower()

    def loss(rows):
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        cached_step(tower, inputs().split(8), loss)
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_without_ranks_rows_are_gathered_from_nowhere():
    rows = inputs()
    assert gather_with_gradient(rows) is rows


# Two ranks, each with half of the queries, their positives and their negatives.


def share(rank: int) -> torch.Tensor:
    parts = inputs().split([N, N, N * K])
    return torch.cat([part.chunk(RANKS)[rank] for part in parts])


def sharded(rank: int, step) -> dict[str, torch.Tensor]:
    """What DDP makes of the ranks' gradients: their mean. The rank's own way is `step`."""
    tower = Tower(dropout=0.0)
    value = step(tower, share(rank))
    mean = gradients(tower)
    for gradient in mean.values():
        distributed.all_reduce(gradient)
        gradient /= RANKS
    return {"loss": value.detach(), **mean}


def full(gather):
    def step(tower, rows):
        value = contrast(tower, tower(rows), gather)
        value.backward()
        return value

    return step


def own_rows(tower, rows):
    """Each rank's queries alone, against the candidates of all."""
    count, rank = len(rows) // (2 + K), distributed.get_rank()
    vectors = tower(rows)
    every = torch.cat([gather_with_gradient(part) for part in vectors[count:].split([count, count * K])])
    logits = vectors[:count] @ every.T / tower.temperature()
    value = torch.nn.functional.cross_entropy(logits, torch.arange(count) + rank * count)
    value.backward()
    distributed.all_reduce(value := value.detach().clone())
    return value / RANKS


def in_chunks(tower, rows):
    loss = lambda rows: contrast(tower, rows, gather_with_gradient)  # noqa: E731
    return cached_step(tower, rows.split([3, 9, 4]), loss)


def in_chunks_of_ddp(rank):
    """The temperature belongs to the model, as for a checkpoint, and two steps show that DDP is at rest."""
    tower = Tower(dropout=0.0)
    model = DistributedDataParallel(tower)
    for _ in range(2):
        model.zero_grad()
        value = cached_step(
            model,
            share(rank).split([3, 9, 4]),
            lambda rows: contrast(tower, rows, gather_with_gradient),
            no_sync=model.no_sync,
        )
    return {"loss": value, **gradients(model)}


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    released = lambda rows: gather_with_gradient(rows, released=True)  # noqa: E731
    ids = gather_with_gradient(torch.tensor([[10 * rank, 10 * rank + 1], [-1, -1]]).T)
    found = {
        "full": sharded(rank, full(gather_with_gradient)),
        "released": sharded(rank, full(released)),
        "own rows": sharded(rank, own_rows),
        "chunks": sharded(rank, in_chunks),
        "chunks of DDP": in_chunks_of_ddp(rank),
        "ids": {"ids": ids},
        "mean": {"mean": mean_over_ranks(torch.tensor(3.0 + rank))},
    }
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(on_rank, (str(folder),), RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    """What one process finds on all rows."""
    tower = Tower(dropout=0.0)
    value = plain_step(tower, [inputs()], lambda rows: contrast(tower, rows))
    return {"loss": value, **gradients(tower)}


@pytest.mark.parametrize("way", ["full", "chunks", "chunks of DDP"])
def test_the_mean_of_the_ranks_gradients_is_the_gradient_of_one_process(ranks, alone, way):
    for rank in ranks:
        assert_close(rank[way], alone)


def test_ranks_that_score_their_own_queries_alone_have_that_gradient_too(ranks):
    tower = Tower(dropout=0.0)
    rows = tower(inputs())
    every = rows[N:]
    value = torch.nn.functional.cross_entropy(rows[:N] @ every.T / tower.temperature(), torch.arange(N))
    value.backward()
    for rank in ranks:
        assert_close(rank["own rows"], {"loss": value.detach(), **gradients(tower)})


def test_the_released_gather_gives_a_share_of_the_gradient_but_the_whole_of_the_temperatures(ranks, alone):
    for rank in ranks:
        found = dict(rank["released"])
        for name in ("loss", "temperature.raw"):
            assert torch.allclose(found.pop(name), alone[name], atol=1e-5)
        assert_close(found, {name: alone[name] for name in found}, scale=1 / RANKS)


def test_rows_come_in_the_order_of_the_ranks_numbers_without_gradient_and_transposed_too(ranks):
    for rank in ranks:
        assert rank["ids"]["ids"].tolist() == [[0, -1], [1, -1], [10, -1], [11, -1]]


def test_every_rank_has_the_mean_of_all_ranks_scalars(ranks):
    """(3 + 4) / 2; alone it is one's own."""
    assert [float(found["mean"]["mean"]) for found in ranks] == [3.5, 3.5]
    assert float(mean_over_ranks(torch.tensor(3.0))) == 3.0
