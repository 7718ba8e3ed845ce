from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from imachsr import CrossEntropy, Dice, MiVariational, Ohem, OutputDice
from imachsr.core.objective import Objective, check_heterogeneity


def terms(*values: float) -> dict[str, Tensor]:
    return {f"layer{index}": torch.tensor(value) for index, value in enumerate(values)}


@pytest.mark.parametrize("num_taps", [1, 2, 5])
def test_alpha_and_beta_are_totals_shared_by_the_taps(num_taps: int) -> None:
    side, entropy = terms(*[3.0] * num_taps), terms(*[0.5] * num_taps)
    total, weights = Objective(alpha=0.4, beta=0.02).sum(torch.tensor(1.0), side, entropy, num_taps)
    assert total.item() == pytest.approx(1.0 + 0.4 * 3.0 + 0.02 * 0.5)
    assert sum(value for key, value in weights.items() if key.startswith("side/")) == pytest.approx(0.4)
    assert sum(value for key, value in weights.items() if key.startswith("entropy/")) == pytest.approx(0.02)
    assert set(weights) == {f"{group}/layer{index}" for group in ("side", "entropy") for index in range(num_taps)}


def test_the_total_is_the_weighted_sum_that_the_weights_tell() -> None:
    output, side, entropy = torch.tensor(2.0), terms(1.0, 4.0, 9.0), terms(0.1, 0.2, 0.3)
    total, weights = Objective(alpha=0.7, beta=0.3).sum(output, side, entropy, 3)
    told = sum(weights[f"side/{key}"] * side[key] for key in side) + sum(weights[f"entropy/{key}"] * entropy[key] for key in entropy)
    torch.testing.assert_close(total, output + told)


def test_a_tap_that_did_not_fire_leaves_the_weights_of_the_others_alone() -> None:
    total, weights = Objective(alpha=0.6, beta=0.0).sum(torch.tensor(0.0), terms(1.0), {}, 3)
    assert weights == {"side/layer0": pytest.approx(0.2)}
    assert total.item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name} >= 0` must hold and be finite, but got {value}"):
        Objective(**{name: value})


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_term_that_is_not_finite_is_named_with_its_tap(wrong: float) -> None:
    fine, bad = terms(1.0, 2.0), terms(1.0, wrong)
    with pytest.raises(FloatingPointError, match=rf"every term must be finite, but side loss of tap 'layer1' is {wrong}; lower"):
        Objective().sum(torch.tensor(1.0), bad, fine, 2)
    with pytest.raises(FloatingPointError, match=rf"but entropy term of tap 'layer1' is {wrong}; lower"):
        Objective().sum(torch.tensor(1.0), fine, bad, 2)
    with pytest.raises(FloatingPointError, match=rf"but output loss is {wrong}; side loss of tap 'layer1' is {wrong}; lower"):
        Objective().sum(torch.tensor(wrong), bad, fine, 2)


def test_a_sum_of_finite_terms_that_overflows_is_told_apart() -> None:
    with pytest.raises(FloatingPointError, match="their sum overflows"):
        Objective(alpha=1.0).sum(torch.tensor(3e38), terms(3e38), {}, 1)


SAME = [(CrossEntropy(), MiVariational()), (Ohem(), MiVariational()), (OutputDice(), Dice())]
DIFFERENT = [(CrossEntropy(), Dice()), (OutputDice(), MiVariational()), (torch.nn.functional.cross_entropy, MiVariational())]


@pytest.mark.parametrize(("output", "side"), SAME)
def test_a_side_loss_of_the_output_losss_family_is_refused_warned_about_or_allowed(output: object, side: object) -> None:
    with pytest.raises(ValueError, match=r"a side loss must differ from the output loss, but .* are both of family .*heterogeneity='off'"):
        check_heterogeneity(output, side, "strict")
    with pytest.warns(UserWarning, match="a side loss must differ from the output loss"):
        check_heterogeneity(output, side, "warn")
    check_heterogeneity(output, side, "off")


@pytest.mark.parametrize(("output", "side"), DIFFERENT)
@pytest.mark.parametrize("mode", ["strict", "warn", "off"])
def test_another_family_or_none_declared_is_always_allowed(output: object, side: object, mode: str) -> None:
    check_heterogeneity(output, side, mode)  # type: ignore[arg-type]
    check_heterogeneity(output, SimpleNamespace(), mode)  # type: ignore[arg-type]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`heterogeneity` must be one of \('strict', 'warn', 'off'\), but got 'ignore'"):
        check_heterogeneity(CrossEntropy(), Dice(), "ignore")  # type: ignore[arg-type]
