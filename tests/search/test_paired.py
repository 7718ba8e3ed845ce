"""Statistics of pairs, against brute force, scipy, simulation, and what must not change them."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from imachsr.search.paired import (
    bootstrap_interval,
    holm,
    is_win,
    most_comparisons,
    pairs_needed,
    power,
    prediction_interval,
    sign_flip,
    smallest_p,
    wilcoxon,
)

SEVEN = [1.2, -0.3, 0.8, 2.1, 0.4, -0.9, 1.7]
TIED = [0.5, 0.5, -0.5, 1.0, 0.0, -1.0, 2.0, 0.5]
ALTERNATIVES = ["two-sided", "greater", "less"]


def brute(differences: list[float], alternative: str) -> float:
    """The share of sign patterns that are at least as extreme, one by one, in whole thousandths."""
    whole = [round(1000 * each) for each in differences]
    seen = sum(whole)
    extreme = {"two-sided": lambda s: abs(s) >= abs(seen), "greater": lambda s: s >= seen, "less": lambda s: s <= seen}[alternative]
    patterns = list(itertools.product((1, -1), repeat=len(whole)))
    return sum(extreme(sum(sign * abs(each) for sign, each in zip(signs, whole, strict=True))) for signs in patterns) / len(patterns)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("differences", [SEVEN, TIED, [3.0], [0.0, 0.0], [0.1] * 8, [-2.0, -1.0, -3.0]], ids=str)
def test_the_sign_flip_test_counts_the_patterns(differences: list[float], alternative: str) -> None:
    found = sign_flip(differences, alternative=alternative)  # type: ignore[arg-type]
    assert found.is_exact
    assert found.pairs == len(differences)
    assert found.p == brute(differences, alternative)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("seed", range(4))
def test_the_sign_flip_test_is_that_of_scipy(seed: int, alternative: str) -> None:
    differences = np.random.default_rng(seed).normal(0.4, 1, 9)
    theirs = stats.permutation_test((differences,), np.sum, permutation_type="samples", alternative=alternative, n_resamples=np.inf)
    assert sign_flip(differences, alternative=alternative).p == pytest.approx(theirs.pvalue, abs=1e-12)  # type: ignore[arg-type]


def test_equal_sums_are_equal_in_spite_of_rounding() -> None:
    """0.1 + 0.2 is not 0.3: as floats the pattern that ties with the one seen would be missed."""
    differences = [30.1 - 30.0, 30.3 - 30.1, -(30.6 - 30.3), 31.0 - 30.5]
    assert sign_flip(differences, alternative="greater").p == brute([0.1, 0.2, -0.3, 0.5], "greater")


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("seed", range(3))
def test_wilcoxon_without_ties_is_scipys_exact_one(seed: int, alternative: str) -> None:
    differences = np.random.default_rng(seed).normal(0.4, 1, 8)
    theirs = stats.wilcoxon(differences, alternative=alternative, method="exact").pvalue
    assert wilcoxon(differences, alternative=alternative).p == pytest.approx(theirs, abs=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_wilcoxon_with_ties_and_zeros_is_the_permutation_of_signed_midranks(alternative: str) -> None:
    kept = [each for each in TIED if each]
    signed = np.sign(kept) * stats.rankdata(np.abs(kept))
    theirs = stats.permutation_test((signed,), np.sum, permutation_type="samples", alternative=alternative, n_resamples=np.inf)
    found = wilcoxon(TIED, alternative=alternative)  # type: ignore[arg-type]
    assert (found.p, found.pairs) == (pytest.approx(theirs.pvalue, abs=1e-12), 7)


def test_ties_and_equal_differences_are_such_up_to_the_noise_of_a_subtraction() -> None:
    exact = [0.1, 0.1, -0.1, 0.1, 0.1, 0.2, 0.1, -0.1, 0.0]
    noisy = [(40.3 + each) - 40.3 for each in exact]
    assert noisy != exact
    assert wilcoxon(noisy).p == wilcoxon(exact).p
    noisy = [(1e3 + each) - 1e3 for each in (0.1, 0.1, 0.1, 0.1, 0.1, 0.3)]
    assert bootstrap_interval([0.1] * 5 + [0.3])[1] == bootstrap_interval(noisy)[1] == math.inf


def test_wilcoxon_of_nothing_but_zeros_says_nothing() -> None:
    found = wilcoxon([0.0, 0.0])
    assert (found.p, found.pairs) == (1.0, 0)


@pytest.mark.parametrize("test", [sign_flip, wilcoxon])
def test_what_must_not_change_a_p_does_not(test: type) -> None:
    p = test(SEVEN).p
    assert test(SEVEN[::-1]).p == p
    assert test([1e6 * each for each in SEVEN]).p == p
    assert test([1e-6 * each for each in SEVEN]).p == p
    assert test([-each for each in SEVEN]).p == p
    assert test([-each for each in SEVEN], alternative="less").p == test(SEVEN, alternative="greater").p
    # A gain for every pair can only speak more for a gain.
    assert test([each + 0.5 for each in SEVEN], alternative="greater").p < test(SEVEN, alternative="greater").p


def test_above_twenty_pairs_p_is_estimated_and_says_so() -> None:
    differences = np.random.default_rng(5).normal(0.35, 1, 21)
    found = sign_flip(differences, seed=1)
    assert not found.is_exact
    assert found == sign_flip(differences[::-1], seed=1)
    assert found != sign_flip(differences, seed=2)
    # The exact p, by all 2^21 sums of two halves.
    halves = [np.array(list(itertools.product((1, -1), repeat=len(part)))) @ np.abs(part) for part in (differences[:11], differences[11:])]
    exact = np.mean(np.abs(halves[0][:, None] + halves[1][None]) >= abs(differences.sum()) - 1e-9)
    assert found.p == pytest.approx(exact, abs=5 * math.sqrt(exact / 100_000))
    # Never 0, which a sample of patterns cannot show.
    assert sign_flip([1.0] * 40).p == 1 / 100_001


@pytest.mark.parametrize(("pairs", "comparisons"), [(6, 1), (7, 3), (8, 6), (9, 12), (10, 25)])
def test_so_many_comparisons_can_be_won(pairs: int, comparisons: int) -> None:
    assert most_comparisons(pairs) == comparisons
    assert pairs_needed(comparisons) == pairs
    assert pairs_needed(comparisons + 1) == pairs + 1
    best = sign_flip([1.0] * pairs).p
    assert best == smallest_p(pairs)
    # As many equally perfect comparisons as may be are all won, and one more loses them all.
    assert holm([best] * comparisons)[0] < 0.05 <= holm([best] * (comparisons + 1))[0]


def test_five_pairs_can_never_win() -> None:
    assert most_comparisons(5) == 0
    assert not is_win([9.0, 9.0, 9.0, 9.0, 9.0])
    assert is_win([9.0] * 6)
    assert not is_win([-9.0] * 6)  # as surely a loss
    assert power(5, 100.0) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_closure_of_bonferroni(seed: int) -> None:
    """A hypothesis is rejected if every family that it is in is, each by Bonferroni: the adjusted p is the largest of theirs."""
    ps = np.random.default_rng(seed).beta(0.5, 2, 5).round(2)
    families = [family for size in range(1, 6) for family in itertools.combinations(range(5), size)]
    closed = [max(min(1.0, len(family) * min(ps[list(family)])) for family in families if index in family) for index in range(5)]
    assert holm(ps) == pytest.approx(closed)


def test_holm_keeps_the_order_and_needs_no_family() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.2]) == (0.2,)
    assert holm([]) == ()


def studentized(values: np.ndarray, resamples: int) -> tuple[float, float]:
    """The interval again, resample by resample."""
    rng = np.random.default_rng(9)
    ts = []
    for _ in range(resamples):
        again = rng.choice(values, len(values))
        if again.std(ddof=1) > 0:
            ts.append((again.mean() - values.mean()) / again.std(ddof=1))
    low, high = np.quantile(ts, [0.025, 0.975])
    return values.mean() - high * values.std(ddof=1), values.mean() - low * values.std(ddof=1)


def test_the_bootstrap_interval_is_that_of_a_slow_loop() -> None:
    low, high = bootstrap_interval(SEVEN)
    slow = studentized(np.array(SEVEN), 20_000)
    assert (low, high) == (pytest.approx(slow[0], abs=0.12), pytest.approx(slow[1], abs=0.12))


def test_what_must_not_change_an_interval_does_not() -> None:
    low, high = bootstrap_interval(SEVEN)
    assert bootstrap_interval(SEVEN[::-1]) == (low, high)
    assert bootstrap_interval([each + 5 for each in SEVEN]) == pytest.approx((low + 5, high + 5))
    assert bootstrap_interval([each * 5 for each in SEVEN]) == pytest.approx((low * 5, high * 5))
    assert bootstrap_interval([-each for each in SEVEN]) == pytest.approx((-high, -low))
    narrow = bootstrap_interval(SEVEN, confidence=0.8)
    assert low < narrow[0] < np.mean(SEVEN) < narrow[1] < high


def test_equal_differences_have_an_interval_without_width_and_near_ones_no_bound() -> None:
    assert bootstrap_interval([0.3] * 6) == (0.3, 0.3)
    low, high = bootstrap_interval([1.0, 1.0, 1.0, 1.0, 2.0])
    assert math.isfinite(low)
    assert high == math.inf  # a third of the resamples are all 1: how far above 1 the mean lies cannot be told


DRAWN = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t3": lambda rng, n: rng.standard_t(3, size=n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1,
}


def covered(kind: str, pairs: int, count: int) -> float:
    rng = np.random.default_rng(11)
    bounds = [bootstrap_interval(DRAWN[kind](rng, pairs), seed=index) for index in range(count)]
    return float(np.mean([low <= 0 <= high for low, high in bounds]))


def test_intervals_of_few_pairs_cover_the_truth_as_often_as_they_say() -> None:
    """Also rules out BCa and the plain percentile interval, which cover 84 to 89 % here."""
    assert covered("normal", 8, 400) == pytest.approx(0.95, abs=3.5 * math.sqrt(0.95 * 0.05 / 400))


@pytest.mark.slow
@pytest.mark.parametrize("pairs", [6, 8, 10])
@pytest.mark.parametrize(("kind", "least"), [("normal", 0.94), ("t3", 0.925), ("exponential", 0.915)])
def test_coverage_is_as_documented(kind: str, least: float, pairs: int) -> None:
    error = math.sqrt(0.95 * 0.05 / 3000)
    assert least - 3 * error < covered(kind, pairs, 3000) < 0.965 + 3 * error


def test_one_more_run_falls_into_the_prediction_interval() -> None:
    rng = np.random.default_rng(4)
    inside = []
    for _ in range(4000):
        *values, another = rng.normal(30, 2, 9)
        low, high = prediction_interval(values)
        inside.append(low <= another <= high)
    assert np.mean(inside) == pytest.approx(0.95, abs=3.5 * math.sqrt(0.95 * 0.05 / 4000))
    # As scipy's interval of the mean, times sqrt(n + 1).
    low, high = prediction_interval(SEVEN)
    mean = stats.ttest_1samp(SEVEN, 0).confidence_interval(0.95)
    assert high - low == pytest.approx((mean.high - mean.low) * math.sqrt(8))
    assert (high + low) / 2 == pytest.approx(np.mean(SEVEN))


def test_a_baseline_against_itself_wins_no_more_often_than_it_may() -> None:
    """Of 2,000 studies; the exact 99 % interval of the rate must not lie above 5 %, and theory says 2.5 % at most."""
    rng = np.random.default_rng(6)
    wins = sum(is_win(rng.normal(0, 1, 8)) for _ in range(2000))
    interval = stats.binomtest(wins, 2000).proportion_ci(0.99, method="exact")
    assert interval.low <= 0.05
    assert interval.low <= 3 * smallest_p(8) <= interval.high  # 6 of 256 patterns win


@pytest.mark.parametrize(("pairs", "effect"), [(8, 1.0), (8, 1.5), (10, 1.0), (12, 0.5)])
def test_a_planted_gain_is_found_as_often_as_theory_says(pairs: int, effect: float) -> None:
    rng = np.random.default_rng(7)
    rate = np.mean([is_win(rng.normal(effect, 1, pairs)) for _ in range(1200)])
    assert -0.03 - 3 * 0.0145 < rate - power(pairs, effect) < 3 * 0.0145


def test_power_grows_with_pairs_and_effect_and_falls_with_comparisons() -> None:
    assert power(8, 1.0) < power(8, 1.5) < power(12, 1.5) < 1
    assert power(8, 1.0, comparisons=6) < power(8, 1.0, comparisons=3) < power(8, 1.0)
    assert power(8, 1.0, comparisons=7) == 0.0
    assert power(8, 1.0) == pytest.approx(0.667, abs=0.005)


@pytest.mark.parametrize(
    ("call", "wording"),
    [
        (lambda: sign_flip([]), "at least 1 number must be given, but got 0"),
        (lambda: sign_flip([1.0, math.nan]), "all numbers must be finite, but got nan"),
        (lambda: sign_flip([1.0], alternative="both"), "`alternative` must be one of two-sided, greater, less, but got 'both'"),  # type: ignore[arg-type]
        (lambda: wilcoxon([math.inf]), "all numbers must be finite, but got inf"),
        (lambda: bootstrap_interval([1.0, 2.0, 3.0, 4.0]), "at least 5 numbers must be given, but got 4"),
        (lambda: bootstrap_interval(SEVEN, confidence=95), "`0 < confidence < 1` must hold, but got 95"),
        (lambda: prediction_interval([1.0]), "at least 2 numbers must be given, but got 1"),
        (lambda: holm([0.5, 1.5]), "`0 <= p <= 1` must hold for each, but got 1.5"),
        (lambda: holm([math.nan]), "must hold for each, but got nan"),
        (lambda: smallest_p(0), "`pairs >= 1` must hold, but got 0"),
        (lambda: pairs_needed(0), "`comparisons >= 1` must hold, but got 0"),
        (lambda: most_comparisons(8, alpha=0), "`0 < alpha < 1` must hold, but got 0"),
        (lambda: power(1, 1.0), "`pairs >= 2` and `comparisons >= 1` must hold, but got 1 and 1"),
    ],
)
def test_what_cannot_be_computed_is_refused(call: object, wording: str) -> None:
    with pytest.raises(ValueError, match=wording.replace("(", r"\(")):
        call()  # type: ignore[operator]
