"""A fit stays a fit: whatever is observed, its parameters are finite and allowed, its covariance is one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from serverless_triton.scheduler.regression import Fit, Residuals, learn

SIZES_GB = (0.11, 0.27, 0.42, 4.0)


def line() -> Fit:
    return Fit(means=[0.05, 0.0], prior_errors=(0.05, 0.02), least=(0.0, 0.0))


def observe(fit: Fit, residuals: Residuals, size_gb: float, seconds: float) -> None:
    inputs = (size_gb, 1.0)
    learn([(fit, inputs)], seconds, residuals, max(0.005, fit.at(inputs)))


def is_covariance(fit: Fit) -> bool:
    (slope, shared), (mirrored, intercept) = fit.covariance
    return shared == mirrored and slope >= 0.0 and intercept >= 0.0 and shared**2 <= slope * intercept * (1 + 1e-6)


@given(
    some.lists(
        some.tuples(some.sampled_from(SIZES_GB), some.floats(min_value=0.0, max_value=10.0)), min_size=1, max_size=60
    ),
    some.integers(min_value=1, max_value=12),
)
@settings(max_examples=150, deadline=None)
def test_nothing_observed_makes_it_absurd(observed: list[tuple[float, float]], times: int) -> None:
    fit, residuals = line(), Residuals()
    most_s = max(1.0, *(seconds for _, seconds in observed))
    for size_gb, seconds in observed * times:
        observe(fit, residuals, size_gb, seconds)
        assert is_covariance(fit)
        assert all(map(math.isfinite, fit.means))
        assert min(fit.means) >= 0.0
        assert fit.at((SIZES_GB[0], 1.0)) <= 20 * most_s


def test_a_parameter_at_its_least_leaves_the_other_no_share_in_what_it_could_not_take() -> None:
    fit = line()
    fit.means, fit.covariance = [0.5, 0.01], [[1.0, -0.2], [-0.2, 0.05]]
    before_s = fit.at((4.0, 1.0))
    fit.correct((4.0, 1.0), 1.0, fit.variance((4.0, 1.0)))
    assert fit.means[1] == 0.0
    assert fit.at((4.0, 1.0)) == pytest.approx(before_s + 1.0)
