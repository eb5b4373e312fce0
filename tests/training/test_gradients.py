import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.training.worker.gradients import GradientTree, tree_sum


class Alone:
    """What an `Accelerator` is to a process that trains alone."""

    num_processes = 1
    device = torch.device("cpu")

    def no_sync(self, _: Any) -> Any:
        return contextlib.nullcontext()


def sum_of(leaves: torch.Tensor) -> torch.Tensor:
    """`leaves`, shape [micro-batches, n], added up as the gradients of one parameter."""
    model = torch.nn.ParameterList([torch.zeros(leaves.shape[1]), torch.zeros(1)])
    gradients = GradientTree(Alone(), model)
    for turn, leaf in enumerate(leaves):
        with gradients.add(turn, len(leaves)):
            (model[0] * leaf).sum().backward()
    assert model[1].grad is None  # a parameter that no micro-batch used stays without a gradient
    found: torch.Tensor = model[0].grad
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 6), st.integers(0, 1000))
def test_every_split_of_the_micro_batches_over_workers_adds_up_to_the_same_bits(
    power: int, seed: int
) -> None:
    leaves = torch.randn(2**power, 50, generator=torch.Generator().manual_seed(seed))
    whole = sum_of(leaves)
    assert torch.equal(whole, tree_sum(list(leaves)))
    for workers in (2**n for n in range(power + 1)):
        assert torch.equal(whole, tree_sum([sum_of(part) for part in leaves.chunk(workers)]))


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 6, 7, 11, 24])
def test_any_number_of_micro_batches_adds_up(micro_batches: int) -> None:
    leaves = torch.randn(micro_batches, 50, generator=torch.Generator().manual_seed(micro_batches))
    assert torch.allclose(sum_of(leaves), leaves.sum(0), atol=1e-5)


class Words(torch.nn.Module):
    """A word embedding and something that is computed of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(20, 3, padding_idx=0)
        self.bias = torch.nn.Parameter(torch.zeros(3))

    def forward(self, ids: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return ((self.words(ids) + self.bias) * factors).sum()


class Found(Words):
    """As transformers' models: it tells which are its words."""

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.words


@settings(max_examples=50, deadline=None)
@given(micro_batches=st.integers(1, 9), seed=st.integers(0, 1000))
def test_rows_that_were_touched_are_all_of_a_word_embeddings_gradient(
    micro_batches: int, seed: int
) -> None:
    """Equal to the bit to autograd's, in several steps: what one touched is zero in the next.

    Words come often enough, in micro-batches large enough, for an order of their own to show.
    """
    rng = torch.Generator().manual_seed(seed)
    dense, rows = Words(), Found()
    ways = [(model, GradientTree(Alone(), model)) for model in (dense, rows)]
    assert rows.words.sparse
    for clipping in (0.3, float("nan"), 1.0):  # NaN: of a step that fp16 skips
        ids = torch.randint(0, 20, (micro_batches, 8, 16), generator=rng)
        ids[0] = 0  # padding alone: nothing is touched
        factors = torch.randn(micro_batches, 8, 16, 3, generator=rng)
        for model, gradients in ways:
            model.zero_grad()
            for turn in range(micro_batches):
                with gradients.add(turn, micro_batches):
                    model(ids[turn], factors[turn]).backward()
        assert torch.equal(rows.words.weight.grad, dense.words.weight.grad)
        assert not torch.signbit(rows.words.weight.grad[dense.words.weight.grad == 0]).any()
        assert torch.equal(rows.bias.grad, dense.bias.grad)
        rows.words.weight.grad.mul_(clipping)  # in place


def test_a_word_embedding_used_as_a_whole_keeps_its_gradient() -> None:
    model = Found()
    gradients = GradientTree(Alone(), model)
    ids, factors = torch.tensor([[3, 3, 4]]), torch.ones(1, 3, 3)
    for turn in range(2):
        with gradients.add(turn, 2):
            (model(ids, factors) + model.words.weight.sum()).backward()
    expected = torch.full((20, 3), 2.0)
    expected[3], expected[4] = 6.0, 4.0
    assert torch.equal(model.words.weight.grad, expected)


def test_a_word_embedding_that_is_more_than_a_table_is_left_to_autograd() -> None:
    class Tied(Found):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 20)
            self.head.weight = self.words.weight

    tied = Tied()
    GradientTree(Alone(), tied)
    assert not tied.words.sparse


def test_a_running_sum_has_other_bits() -> None:
    """Why there is a tree: what autograd adds by itself depends on who starts where."""
    leaves = torch.randn(8, 5000, generator=torch.Generator().manual_seed(0))
    running = torch.zeros(5000)
    for leaf in leaves:
        running = running + leaf
    assert not torch.equal(running, sum_of(leaves))


WORKERS = """
import os
import sys
import torch
import torch.distributed as dist
from trainyard.batch_plan import share
from trainyard.training.worker.gradients import GradientTree

def train(rank, world):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{sys.argv[1]}/meet-{world}", rank=rank, world_size=world)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(300, 300) for _ in range(6)]  # several buckets of 0.1 MB
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers), bucket_cap_mb=0.1)
    inputs = torch.randn(16, 5, 300)

    class Group:
        num_processes, device = world, torch.device("cpu")

        def no_sync(self, model):
            return model.no_sync()

    gradients = GradientTree(Group(), model)
    for step in range(3):
        model.zero_grad()
        mine = share(16, rank, world)
        for turn, micro_batch in enumerate(mine):
            with gradients.add(turn, len(mine)):
                model(inputs[micro_batch]).square().sum().backward()
    torch.save([p.grad for p in model.parameters()], f"{sys.argv[1]}/{world}-{rank}.pt")
    dist.barrier()

for world in (1, 2, 4, 8):  # forked: torch is imported once
    children = []
    for rank in range(world):
        children.append(os.fork())
        if not children[-1]:
            train(rank, world)
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * world
"""


def test_the_workers_exchange_gives_all_of_them_the_same_bits(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", WORKERS, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True, timeout=300,
    )  # fmt: skip
    found = {
        (world, rank): torch.load(tmp_path / f"{world}-{rank}.pt")
        for world in (1, 2, 4, 8)
        for rank in range(world)
    }
    for gradients in found.values():
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[1, 0], strict=True))
