import warnings
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from imachsr import CrossEntropy, Dice, MiVariational, Ohem, OutputDice
from imachsr.core.objective import Objective, check_heterogeneity
from imachsr.core.schedules import Profile, shares


def terms(group: str, *values: float) -> dict[str, Tensor]:
    return {f"{group}/layer{index}": torch.tensor(value) for index, value in enumerate(values)}


def keyed(weights: list[Any], group: str) -> dict[str, Any]:
    return {f"{group}/layer{index}": weight for index, weight in enumerate(weights)}


@pytest.mark.parametrize("profile", get_args(Profile))
@pytest.mark.parametrize("num_taps", [1, 2, 5])
def test_alpha_and_beta_are_totals_shared_by_the_taps(num_taps: int, profile: Profile) -> None:
    objective = Objective(alpha=0.4, beta=0.02, profile=profile)
    side, entropy = objective.weights(num_taps, 1.0, None)
    assert side == pytest.approx([0.4 * share for share in shares(profile, num_taps)])
    assert entropy == pytest.approx([0.02 * share for share in shares(profile, num_taps)])
    given = {**terms("side", *[3.0] * num_taps), **terms("entropy", *[0.5] * num_taps)}
    total = objective.sum(torch.tensor(1.0), given, {**keyed(side, "side"), **keyed(entropy, "entropy")})
    assert total.item() == pytest.approx(1.0 + 0.4 * 3.0 + 0.02 * 0.5)


def test_the_schedule_scales_both_and_the_balance_the_side_losses_alone() -> None:
    side, entropy = Objective(alpha=0.6, beta=0.3).weights(3, 0.5, torch.tensor([1.0, 2.0, 4.0]))
    assert [float(weight) for weight in side] == pytest.approx([0.1, 0.2, 0.4])
    assert entropy == pytest.approx([0.05, 0.05, 0.05])
    side, _ = Objective(alpha=0.6, beta=0.3).weights(3, torch.tensor(0.25), None)
    assert [float(weight) for weight in side] == pytest.approx([0.05, 0.05, 0.05])


def test_the_total_is_the_weighted_sum() -> None:
    given = {**terms("side", 1.0, 4.0, 9.0), **terms("entropy", 0.1, 0.2, 0.3)}
    weights = {key: 0.1 * (index + 1) for index, key in enumerate(given)}
    total = Objective().sum(torch.tensor(2.0), given, weights)
    assert total.item() == pytest.approx(2.0 + sum(0.1 * (index + 1) * float(value) for index, value in enumerate(given.values())))


def test_a_tap_that_did_not_fire_leaves_the_weights_of_the_others_alone() -> None:
    side, _ = Objective(alpha=0.6, beta=0.0).weights(3, 1.0, None)
    total = Objective(alpha=0.6, beta=0.0).sum(torch.tensor(0.0), terms("side", 1.0), keyed(side, "side"))
    assert total.item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name} >= 0` must hold and be finite, but got {value}"):
        Objective(**{name: value})


def test_other_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`profile` must be one of \('uniform', 'exp', 'linear_depth'\), but got 'flat'"):
        Objective(profile="flat")  # type: ignore[arg-type]
    for ratio in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"`grad_ratio > 0` must hold, but got {ratio}"):
            Objective(grad_ratio=ratio)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_term_that_is_not_finite_is_named_with_its_tap(wrong: float) -> None:
    def total(output: float, side: tuple[float, float], entropy: tuple[float, float]) -> Tensor:
        given = {**terms("side", *side), **terms("entropy", *entropy)}
        return Objective().sum(torch.tensor(output), given, dict.fromkeys(given, 0.1))

    with pytest.raises(FloatingPointError, match=rf"every term must be finite, but side loss of tap 'layer1' is {wrong}; lower"):
        total(1.0, (1.0, wrong), (1.0, 2.0))
    with pytest.raises(FloatingPointError, match=rf"but entropy term of tap 'layer1' is {wrong}; lower"):
        total(1.0, (1.0, 2.0), (1.0, wrong))
    with pytest.raises(FloatingPointError, match=rf"but output loss is {wrong}; side loss of tap 'layer1' is {wrong}; lower"):
        total(wrong, (1.0, wrong), (1.0, 2.0))


def test_a_sum_of_finite_terms_that_overflows_is_told_apart() -> None:
    with pytest.raises(FloatingPointError, match="their sum overflows"):
        Objective().sum(torch.tensor(3e38), terms("side", 3e38), {"side/layer0": 1.0})


SAME = [(CrossEntropy(), MiVariational()), (Ohem(), MiVariational()), (OutputDice(), Dice())]
DIFFERENT = [(CrossEntropy(), Dice()), (OutputDice(), MiVariational()), (torch.nn.functional.cross_entropy, MiVariational())]


@pytest.mark.parametrize(("output", "side"), SAME)
def test_a_side_loss_of_the_output_losss_family_is_refused_warned_about_or_allowed(output: object, side: object) -> None:
    with pytest.raises(ValueError, match=r"a side loss must differ from the output loss, but .* are both of family .*heterogeneity='off'"):
        check_heterogeneity(output, side, "strict")
    with pytest.warns(UserWarning, match="a side loss must differ from the output loss"):
        check_heterogeneity(output, side, "warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_heterogeneity(output, side, "off")


@pytest.mark.parametrize(("output", "side"), DIFFERENT)
@pytest.mark.parametrize("mode", ["strict", "warn", "off"])
def test_another_family_or_none_declared_is_always_allowed(output: object, side: object, mode: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_heterogeneity(output, side, mode)
        check_heterogeneity(output, SimpleNamespace(), mode)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`heterogeneity` must be one of \('strict', 'warn', 'off'\), but got 'ignore'"):
        check_heterogeneity(CrossEntropy(), Dice(), "ignore")  # type: ignore[arg-type]
