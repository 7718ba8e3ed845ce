"""Objects from a run: weights, schedule, optimizer groups and the loss of the output."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imachsr.config.build import build_model, build_net, build_optimizer, output_loss, schedule, selection_standard
from imachsr.config.load import make_run, parse_overrides
from imachsr.config.schema import ConfigError, Run
from imachsr.core.calibration import Calibration
from imachsr.core.entropy import Renyi2Entropy
from imachsr.core.layers import trace
from imachsr.core.losses import Brier, Dice
from imachsr.core.selection import select
from imachsr.core.wrapper import IMacHSR
from imachsr.data.samples import Samples
from imachsr.data.transforms import normalize

SIZE = (64, 64)
CLASSES = 5


def run_with(*overrides: str) -> Run:
    return make_run({"model": {"encoder": "tu-mobilenetv3_small_100"}}, parse_overrides(overrides))


def net_with(*overrides: str, size: tuple[int, int] = SIZE) -> IMacHSR:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return build_net(run_with(*overrides), num_classes=CLASSES, size=size)


def weights(net: IMacHSR) -> dict[str, Tensor]:
    return net.backbone.state_dict()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, *SIZE, generator=generator), torch.randint(0, CLASSES, (2, *SIZE), generator=generator)


@pytest.fixture(scope="module")
def bare() -> dict[str, Tensor]:
    return build_model(run_with(), CLASSES).state_dict()


# Weights.


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.alpha=0", "method.beta=0"],
        ["method.alpha=0"],
        ["method.beta=0"],
        ["method.loss=dice", "method.standard={kind: resolution, max_taps: 5}"],
        ["method.loss=mi_variational", "method.heterogeneity=off"],
        ["method.loss=[dice, brier]", "method.standard={kind: depth, max_taps: 2}", "method.entropy=channel"],
        ["output_loss=ohem", "optimizer.lr=1e-2", "compute.precision=bfloat16", "augment.flip=0"],
    ],
)
def test_every_arm_begins_with_bitwise_the_same_backbone(overrides: list[str], bare: dict[str, Tensor]) -> None:
    found = weights(net_with(*overrides))
    assert list(found) == list(bare)
    assert all(torch.equal(found[key], bare[key]) for key in bare)


def test_another_seed_gives_other_weights_and_the_global_state_does_not_matter(bare: dict[str, Tensor]) -> None:
    torch.manual_seed(99)
    again, other = build_model(run_with(), CLASSES).state_dict(), build_model(run_with("seed=1"), CLASSES).state_dict()
    assert all(torch.equal(again[key], bare[key]) for key in bare)
    assert not all(torch.equal(other[key], bare[key]) for key in bare)


def test_building_leaves_the_global_random_state_and_the_mode_alone() -> None:
    before = torch.get_rng_state()
    net = net_with()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in net.modules())


def test_adapters_depend_on_the_seed_only() -> None:
    one, other, third = (net_with("method.loss=dice", f"seed={seed}").adapters.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not all(torch.equal(one[key], third[key]) for key in one)


# What the method asks for is what is built.


def test_the_method_reaches_the_net() -> None:
    net = net_with("method.loss=[dice, brier]", "method.standard={kind: depth, max_taps: 2}", "method.alpha=0.7", "method.beta=0.2")
    assert net.losses == (Dice(), Brier())
    assert len(net.taps) == 2
    assert (net.objective.alpha, net.objective.beta) == (0.7, 0.2)


def test_weighting_reaches_the_net() -> None:
    net = net_with("method.profile=exp", "method.grad_ratio=0.5", "method.alpha=0.7", "method.entropy={kind: renyi2, temperature: 2}")
    assert (net.objective.profile, net.objective.grad_ratio) == ("exp", 0.5)
    assert net.balance is not None
    assert net.balance.ratio == 0.5
    assert net.entropy == Renyi2Entropy(temperature=2)


def test_losses_by_depth_reach_the_net() -> None:
    net = net_with("method.loss={kind: by_depth, early: brier, late: dice, share: 0.7}", "method.standard={kind: depth, max_taps: 3}")
    assert net.losses == (Brier(), Brier(), Dice())


def test_a_union_of_standards_reaches_the_net() -> None:
    net = net_with("method.standard={kind: union, standards: [{kind: depth, max_taps: 1}, {kind: fusion, max_taps: 1}]}")
    assert [tap.reason.split(":")[0] for tap in net.taps] in (["depth", "fusion"], ["fusion", "depth"])


def test_a_schedules_length_is_epochs_times_steps() -> None:
    run = run_with("method.schedule={kind: linear, end: 0}", "optimizer.epochs=3")
    net = build_net(run, num_classes=CLASSES, size=SIZE, steps_per_epoch=4)
    assert net.total_steps == 12
    weights = [float(next(iter(net(*batch()).weights.values()))) for _ in range(3)]
    assert [weight / weights[0] for weight in weights] == pytest.approx([1, 11 / 12, 10 / 12])
    assert build_net(run, num_classes=CLASSES, size=SIZE).total_steps == 3  # to be looked at: one an epoch


@pytest.fixture(scope="module")
def samples() -> Samples:
    return run_with("data={kind: scenes, size: [64, 64], num_train: 6, num_val: 2}").data.load("train")


@pytest.mark.parametrize("kind", ["gradient", "entropy"])
def test_a_standard_that_looks_at_data_reads_the_training_samples_as_they_are_trained(kind: str, samples: Samples) -> None:
    run = run_with(f"method.standard={{kind: {kind}, max_taps: 2, batches: 2}}", "optimizer.batch_size=4")
    classes = run.data.num_classes
    with pytest.raises(ConfigError, match=rf"`calibration` must give batches \(images, labels\) for the standard '{kind}', but is None"):
        build_net(run, num_classes=classes, size=SIZE)
    net = build_net(run, num_classes=classes, size=SIZE, samples=samples)
    model = build_model(run, classes)
    data = [(normalize(samples.images[part]), samples.labels[part].long()) for part in (slice(0, 4), slice(4, 6))]
    expected = select(run.method.standard, trace(model, torch.zeros(2, 3, *SIZE)), Calibration(model, data, classes, 255, seed=run.seed))  # type: ignore[arg-type]
    assert [tap.layer.address for tap in net.taps] == [tap.layer.address for tap in expected]
    assert [tap.reason for tap in net.taps] == [tap.reason for tap in expected]
    # Looking at data changes neither the weights nor what follows: every arm still begins with the same backbone.
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in net.backbone.state_dict().items())


def test_data_are_not_read_by_a_standard_that_does_not_look_at_them() -> None:
    class Never:
        def __len__(self) -> int:
            raise AssertionError("read")

    assert build_net(run_with(), num_classes=CLASSES, size=SIZE, samples=Never()).taps  # type: ignore[arg-type]


def test_as_many_losses_as_taps_are_wanted() -> None:
    with pytest.raises(ConfigError, match="data, model and method must fit, but: `loss` must hold one loss a tap, but got 2 losses for 3 taps"):
        net_with("method.loss=[dice, brier]", "method.standard={kind: depth, max_taps: 3}")


def test_an_output_only_run_builds_nothing_else() -> None:
    net = net_with("method.alpha=0", "method.beta=0")
    assert (len(net.taps), len(net.adapters), net.losses, net.entropy) == (0, 0, (), None)


def test_heterogeneity_is_checked_against_the_output_loss() -> None:
    with pytest.raises(ConfigError, match="a side loss must differ from the output loss, but 'dice' and 'dice' are both of family 'overlap'"):
        net_with("method.loss=dice", "output_loss=dice", "method.heterogeneity=strict")
    net_with("method.loss=dice", "output_loss=ohem", "method.heterogeneity=strict")


@pytest.mark.parametrize("method", [[], ["method.alpha=0", "method.beta=0"]])
def test_a_size_that_the_model_does_not_take_is_the_users_mistake(method: list[str]) -> None:
    with pytest.raises(ConfigError, match="data, model and method must fit, but: Wrong input shape height=72, width=64. .* divisible by 32"):
        net_with("model={kind: smp, architecture: linknet, encoder: resnet18}", *method, size=(72, 64))


@pytest.mark.parametrize("method", [[], ["method.alpha=0", "method.beta=0"]])
def test_a_layer_that_is_not_there_is_told_where_it_matters(method: list[str]) -> None:
    override = "method.standard={kind: explicit, layers: [encoder.layr1]}"
    if method:
        assert not net_with(override, *method).taps
        return
    with pytest.raises(ConfigError, match="'encoder.layr1' is no layer of this model; nearest: "):
        net_with(override)


def test_a_model_that_is_not_there_is_told_with_its_key() -> None:
    with pytest.raises(ConfigError, match="model: `architecture` must be a known name, but got 'unt'; nearest: 'unet'"):
        net_with("model.architecture=unt")


# Optimizer and schedule.


def oracle(step: int, steps_per_epoch: int, epochs: int, warmup_epochs: float) -> float:
    """The schedule, written from its description."""
    warm = steps_per_epoch * min(epochs, warmup_epochs)
    if step < warm:
        return (step + 1) / (warm + 1)
    last = steps_per_epoch * epochs
    return 0.0 if step >= last else (1 + math.cos(math.pi * (step - warm) / (last - warm))) / 2


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 30])
@pytest.mark.parametrize("epochs", [1, 2, 12])
@pytest.mark.parametrize("warmup", [0, 0.5, 1, 3, 50])
def test_the_schedule_is_a_ramp_and_a_cosine(steps_per_epoch: int, epochs: int, warmup: float) -> None:
    settings: dict[str, Any] = {"steps_per_epoch": steps_per_epoch, "epochs": epochs, "warmup_epochs": warmup}
    shares = [schedule(step, **settings) for step in range(steps_per_epoch * epochs + 3)]
    assert shares == pytest.approx([oracle(step, **settings) for step in range(len(shares))], abs=1e-12)
    top = max(range(len(shares)), key=shares.__getitem__)
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert min(shares[: steps_per_epoch * epochs]) > 0
    assert max(shares) <= 1
    if warmup < epochs:
        assert max(shares) > 0.9 or steps_per_epoch * epochs < 10
        assert max(shares) == 1 or warmup * steps_per_epoch % 1
    assert shares[steps_per_epoch * epochs :] == pytest.approx([0, 0, 0], abs=1e-12)


def test_the_learning_rate_follows_the_schedule() -> None:
    run = run_with("optimizer.lr=0.02", "optimizer.epochs=3", "optimizer.warmup_epochs=1")
    optimizer, scheduler = build_optimizer(run, nn.Linear(2, 2), 4)
    seen = []
    for _ in range(12):
        seen.append({group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    assert [lr for (lr,) in seen] == pytest.approx([0.02 * oracle(step, 4, 3, 1) for step in range(12)])


def test_biases_and_norms_do_not_decay_and_nothing_is_left_out() -> None:
    net = net_with("method.loss=dice")
    net.backbone.segmentation_head.requires_grad_(False)
    optimizer, _ = build_optimizer(run_with("optimizer.weight_decay=0.3"), net, 4)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in optimizer.param_groups)
    norms = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            wanted = None if not parameter.requires_grad else 0.0 if isinstance(module, norms) or name == "bias" else 0.3
            assert decay.get(id(parameter)) == wanted, (type(module), name)
    assert any(id(p) in decay for p in net.adapters.parameters())


# The loss of the output.


def test_cross_entropy_takes_class_weights_from_the_settings() -> None:
    images, labels = batch()
    labels[:, :8] = 255
    net = net_with("method.alpha=0", "method.beta=0", "output_loss={kind: cross_entropy, class_weights: [1, 0, 2, 0.5, 3]}")
    losses = net(images, labels)
    expected = F.cross_entropy(losses.prediction, labels, torch.tensor([1, 0, 2, 0.5, 3]), ignore_index=255)
    torch.testing.assert_close(losses.output.detach(), expected)
    torch.testing.assert_close(losses.total, losses.output)


def test_class_weights_of_another_number_are_told() -> None:
    with pytest.raises(ConfigError, match=r"output_loss\.class_weights: must have 5 values, one a class, but got 2"):
        net_with("output_loss={kind: cross_entropy, class_weights: [1, 2]}")


def test_ohem_keeps_the_hardest_share() -> None:
    images, labels = batch()
    losses = net_with("method.alpha=0", "method.beta=0", "output_loss={kind: ohem, keep: 0.1}")(images, labels)
    each = F.cross_entropy(losses.prediction, labels, reduction="none").flatten().sort(descending=True).values
    torch.testing.assert_close(losses.output.detach(), each[: round(0.1 * len(each))].mean())


def test_dice_is_the_mean_over_present_classes() -> None:
    images, labels = batch()
    labels[labels == 4] = 0
    losses = net_with("method.alpha=0", "method.beta=0", "output_loss=dice")(images, labels)
    q = losses.prediction.softmax(1)
    each = [1 - 2 * q[:, k][labels == k].sum() / (q[:, k].sum() + (labels == k).sum()) for k in range(4)]
    torch.testing.assert_close(losses.output.detach(), torch.stack(each).mean())


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_the_auxiliary_head_of_torchvision_counts_by_its_weight(name: str) -> None:
    images, labels = batch()
    model = f"{{kind: torchvision, name: {name}, aux_loss: true}}"
    net = net_with(f"model={model}", "output_loss.aux_weight=0.25", "method.alpha=0", "method.beta=0").eval()
    with torch.no_grad():
        losses, output = net(images, labels), net.backbone(images)
    main, aux = (F.cross_entropy(output[key], labels) for key in ("out", "aux"))
    torch.testing.assert_close(losses.output, main + 0.25 * aux)
    assert losses.prediction.shape == (2, CLASSES, *SIZE)


def test_a_named_standard_or_loss_is_given_as_it_is() -> None:
    run = run_with("method.standard={kind: resolution, max_taps: 2}", "output_loss=ohem")
    assert selection_standard(run) is run.method.standard
    assert output_loss(run) is run.output_loss
