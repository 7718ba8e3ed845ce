import numpy as np
import pytest

from imachsr.search.promise import improvement_probability


def simulated(values: list[float], *, stopped: int, remaining: int, gain: float, draws: int = 200_000) -> float:
    """The same by chance: mean and variance from their posterior under the usual flat prior, then the trials to come."""
    generator = np.random.default_rng(0)
    later = np.array(values[len(values) // 2 :])
    count = len(later)
    variance = (count - 1) * later.var(ddof=1) / generator.chisquare(count - 1, draws)
    mean = generator.normal(later.mean(), np.sqrt(variance / count))
    # The draws to come are independent given the tail of the predictive distribution, as the docstring says.
    is_better = generator.normal(mean, np.sqrt(variance)) > max(values) + gain
    is_whole = generator.random(draws) < len(values) / (len(values) + stopped)
    return float(1 - (1 - (is_better & is_whole).mean()) ** remaining)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("stopped", "remaining", "gain"), [(0, 1, 0.1), (7, 5, 0.3), (3, 20, 1.0)])
def test_the_probability_is_that_of_simulated_trials(seed: int, stopped: int, remaining: int, gain: float) -> None:
    values = np.random.default_rng(seed).normal(50, 1, 6 + 3 * seed).tolist()
    expected = simulated(values, stopped=stopped, remaining=remaining, gain=gain)
    assert improvement_probability(values, stopped=stopped, remaining=remaining, gain=gain) == pytest.approx(expected, abs=0.02)


def test_it_falls_with_the_gain_and_rises_with_the_trials_left_and_does_not_know_the_unit() -> None:
    values = [1.0, 3.0, 2.0, 4.0, 3.5, 4.5, 4.0, 5.0]
    by_gain = [improvement_probability(values, stopped=2, remaining=5, gain=gain) for gain in (0.0, 0.5, 1.0, 3.0)]
    assert by_gain == sorted(by_gain, reverse=True)
    assert len(set(by_gain)) == 4
    by_left = [improvement_probability(values, stopped=2, remaining=left, gain=0.5) for left in (0, 1, 5, 100)]
    assert by_left[0] == 0
    assert by_left == sorted(by_left)
    assert len(set(by_left)) == 4
    scaled = improvement_probability([100 * value - 7 for value in values], stopped=2, remaining=5, gain=50)
    assert scaled == pytest.approx(by_gain[1])


def test_values_that_are_all_the_same_promise_nothing_more() -> None:
    assert improvement_probability([2.0] * 6, stopped=0, remaining=50, gain=0.1) == 0
