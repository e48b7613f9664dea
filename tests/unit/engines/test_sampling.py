"""The draw of a token: a softmax's distribution, from noise that depends on seed and position only."""

import numpy as np
import pytest
import torch

from serverless_triton.backend.engines.sampling_parameters import SamplingParameters
from serverless_triton.backend.engines.torch.sampling import _nucleus_floor as nucleus_floor
from serverless_triton.backend.engines.torch.sampling import draw, gumbel_noise

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5, -30.0])


def shares(parameters: SamplingParameters, draws: int = 4000) -> np.ndarray:
    tokens = [draw(LOGITS, parameters, position) for position in range(draws)]
    return np.bincount(tokens, minlength=len(LOGITS)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, 0).numpy()
    drawn = shares(SamplingParameters(temperature=temperature, seed=5))
    assert np.abs(drawn - expected).max() < 4 * np.sqrt(0.25 / 4000)


def test_greedy_takes_the_best() -> None:
    assert draw(LOGITS, SamplingParameters(), 3) == 0


def test_a_vanishing_temperature_is_greedy() -> None:
    assert shares(SamplingParameters(temperature=1e-6, seed=1), 50)[0] == 1.0


@pytest.mark.parametrize("temperature", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("top_p", [5e-324, 0.5, 1.0])
@pytest.mark.parametrize("rest", [-np.inf, -3e38, 3e38])
def test_extreme_temperatures_and_logits_leave_a_token_to_draw(temperature: float, top_p: float, rest: float) -> None:
    logits = torch.full((50,), rest, dtype=torch.float32)
    logits[17] = 3.2e38
    drawn = draw(logits, SamplingParameters(temperature=temperature, top_p=top_p, top_k=49, seed=3), 0)
    assert 0 <= drawn < 50
    assert rest > 0 or drawn == 17


def test_top_k_leaves_the_k_best() -> None:
    assert set(np.flatnonzero(shares(SamplingParameters(temperature=3.0, top_k=3, seed=1)))) == {0, 1, 4}


def test_top_p_leaves_the_fewest_that_reach_it() -> None:
    # the softmax of LOGITS is 0.44, 0.16, 0.06, 0.02, 0.27, 0.00
    assert set(np.flatnonzero(shares(SamplingParameters(temperature=1.0, top_p=0.70, seed=1)))) == {0, 4}
    assert set(np.flatnonzero(shares(SamplingParameters(temperature=1.0, top_p=0.80, seed=1)))) == {0, 1, 4}
    assert set(np.flatnonzero(shares(SamplingParameters(temperature=1.0, top_p=0.01, seed=1)))) == {0}


def test_noise_is_the_same_everywhere_and_differs_by_seed_and_position() -> None:
    assert np.array_equal(gumbel_noise(7, 3, 10), gumbel_noise(7, 3, 10))
    assert np.array_equal(gumbel_noise(7, 3, 10), gumbel_noise(7, 3, 20)[:10])
    assert not np.array_equal(gumbel_noise(7, 3, 10), gumbel_noise(7, 4, 10))
    assert not np.array_equal(gumbel_noise(7, 3, 10), gumbel_noise(8, 3, 10))
    assert np.isfinite(gumbel_noise(2**63 - 1, 10**6, 100_000)).all()


def test_noise_is_that_of_the_published_philox() -> None:
    """Streams that an earlier release journaled must go on identically, whatever NumPy is installed."""
    words = philox_4x64_10((1, 2, 0, 0), (1, 0))  # the first block of position 2: NumPy counts before it draws
    uniform = [((word >> 11) + 0.5) * 2.0**-53 for word in words]
    assert gumbel_noise(1, 2, 4).tolist() == pytest.approx([-np.log(-np.log(u)) for u in uniform], rel=1e-12)


def philox_4x64_10(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x64-10 as Salmon et al. print it."""
    mask = 2**64 - 1
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * counter[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * counter[2], 2**64)
        counter = (high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0)
        key = ((key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask)
    return counter


@pytest.mark.parametrize("spread", [0.1, 3.0, 12.0])
def test_tokens_that_could_not_win_are_passed_over_without_changing_who_does(spread: float) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(3)) * spread
    for position in range(300):
        scores = logits.numpy().astype(np.float64)
        expected = int((scores + gumbel_noise(9, position, 5000)).argmax())
        assert draw(logits, SamplingParameters(temperature=1.0, seed=9), position) == expected


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 2.0])
def test_a_nucleus_among_many_tokens_is_the_fewest_that_reach_top_p(top_p: float, spread: float) -> None:
    scores = np.random.default_rng(5).normal(size=9000) * spread
    probabilities = np.sort(np.exp(scores) / np.exp(scores).sum())[::-1]
    expected = int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1
    assert abs(int((scores >= nucleus_floor(scores, top_p)).sum()) - expected) <= 1  # sums round either way
