"""Masks of dropout on CPUs: their distribution, and what they depend on."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainyard.training.worker.dropout import CHUNK, draw_mask, fast_masks

KEEP = 0.9


def mask(count: int, p: float = KEEP, seed: int = 1) -> torch.Tensor:
    return draw_mask(torch.empty(count), p, torch.Generator().manual_seed(seed))


def test_the_bits_of_a_mask_are_those_of_every_release() -> None:
    """They depend on neither processor nor threads, and a run of an older release continues with them."""
    found = mask(2 * CHUNK + 3).bool().numpy().tobytes()
    assert hashlib.sha256(found).hexdigest() == (
        "c18a29584e47add4c2e54a8e29249a0e4f19ba7d6ff58d981ead9fb0af6b5e93"
    )


@pytest.mark.parametrize("p", [0.9, 0.5, 0.999, 0.01])
def test_ones_are_as_frequent_as_asked_and_independent(p: float) -> None:
    count, sigmas = 4_000_000, 5
    drawn = mask(count, p).numpy()
    deviation = (p * (1 - p) / count) ** 0.5
    assert abs(drawn.mean() - p) < sigmas * deviation
    centered = drawn.astype(np.float64) - p
    for lag in (1, 2, 3, 4, 5, 64, 384, CHUNK):  # four elements share a word
        covariance = (centered[lag:] * centered[:-lag]).mean()
        assert abs(covariance) < sigmas * p * (1 - p) / (count - lag) ** 0.5, lag
    other = mask(count, p, seed=2).numpy() - p
    assert abs((centered * other).mean()) < sigmas * p * (1 - p) / count**0.5


def test_a_probability_between_two_thresholds_is_kept_on_average() -> None:
    """A third of 1 / 65,536: a third of the calls use the threshold 1, the others 0."""
    calls, size, p = 600, 65_536, 1 / 3 / 65_536
    ones = sum(float(mask(size, p, seed).sum()) for seed in range(calls))
    assert abs(ones - calls / 3) < 5 * (calls / 3 * 5 / 3) ** 0.5  # Poisson ones, binomial calls


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 2**63 - 1),
    p=st.floats(0, 1),
)
def test_shape_type_and_layout_do_not_change_a_mask(shape: list[int], seed: int, p: float) -> None:
    plain = mask(int(np.prod(shape)), p, seed)
    for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64):
        found = draw_mask(torch.full(shape, 7, dtype=kind), p, torch.Generator().manual_seed(seed))
        assert found.dtype == kind
        assert torch.equal(found.float().view(-1), plain)
    strided = torch.full(shape[::-1], 7.0).permute(*reversed(range(len(shape))))
    draw_mask(strided, p, torch.Generator().manual_seed(seed))
    assert torch.equal(strided.reshape(-1), plain)


def test_certain_probabilities() -> None:
    assert mask(1000, 1.0).all()
    assert not mask(1000, 0.0).any()


def test_dropout_of_modules_and_of_attention_is_seeded_by_pytorch() -> None:
    """All of them draw by it inside the block; outside it, PyTorch draws as before."""
    x = torch.randn(2, 3, 16, 8)

    def drawn() -> list[torch.Tensor]:
        torch.manual_seed(5)
        return [
            functional.dropout(x, 0.3),
            torch.nn.Dropout(0.3)(x),
            functional.scaled_dot_product_attention(x, x, x, dropout_p=0.3),
        ]

    before = drawn()
    with fast_masks():
        first, second = drawn(), drawn()
        torch.manual_seed(6)
        another = functional.dropout(x, 0.3)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, before, drawn()))
    assert not any(map(torch.equal, first, before))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], another)
    kept = first[0] != 0
    assert torch.allclose(first[0][kept], x[kept] / 0.7)


def test_activation_checkpointing_draws_the_same_masks_again() -> None:
    torch.manual_seed(3)
    layer = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Dropout(0.5))
    x = torch.randn(64, 32)
    gradients = []
    with fast_masks():
        for run in (layer, lambda rows: checkpoint(layer, rows, use_reentrant=False)):
            torch.manual_seed(4)
            layer.zero_grad()
            run(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(map(torch.equal, *gradients))
