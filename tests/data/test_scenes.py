"""Procedural street scenes: determinism, composition, and the difficulty that a search needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imachsr.config.load import load_run
from imachsr.data import scenes
from imachsr.data.samples import Samples
from imachsr.data.scenes import CLASSES, Scenes, draw_scene, shift
from imachsr.train.evaluate import evaluate
from imachsr.train.loop import train

VOID = 255
SMALL: dict[str, Any] = {"size": (48, 64), "num_train": 6, "num_val": 6, "num_test": 6}


@pytest.fixture(scope="module")
def split() -> Samples:
    return Scenes(num_train=60).load("train")


def label(name: str) -> int:
    return CLASSES.index(name)


def test_equal_seeds_give_equal_pixels() -> None:
    one, other = (Scenes(seed=5, **SMALL).load("train") for _ in range(2))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    assert one.names == other.names


def test_drawing_leaves_the_global_random_states_alone() -> None:
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    Scenes(domain="shifted", **SMALL).load("val")
    assert np.array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_a_scene_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = (Scenes(**{**SMALL, "num_train": count}).load("train") for count in (2, 6))
    assert torch.equal(few.images, many.images[:2])


def test_no_two_scenes_of_any_seed_split_or_index_are_equal() -> None:
    drawn = [image for seed in (0, 1) for name in ("train", "val", "test") for image in Scenes(seed=seed, **SMALL).load(name).labels]
    assert len({scene.numpy().tobytes() for scene in drawn}) == len(drawn) == 36


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (97, 131)])
def test_shapes_follow_the_settings(height: int, width: int) -> None:
    data = Scenes(size=(height, width), num_train=2, num_val=3, num_test=4)
    for name, count in (("train", 2), ("val", 3), ("test", 4)):
        samples = data.load(name)
        assert samples.images.shape == (count, 3, height, width)
        assert samples.labels.shape == (count, height, width)


def test_only_known_classes_and_void_are_labelled(split: Samples) -> None:
    assert set(split.labels.unique().tolist()) == {*range(len(CLASSES)), VOID}


def rows_of(labels: Tensor, name: str) -> Tensor:
    """Mean row of a class in [0, 1] (0 is the top), an image each; NaN where it does not occur."""
    is_class = (labels == label(name)).double()
    rows = torch.arange(labels.shape[1]).double().view(1, -1, 1) / labels.shape[1]
    return (is_class * rows).sum((1, 2)) / is_class.sum((1, 2))


def test_sky_is_above_the_road_in_every_scene(split: Samples) -> None:
    assert bool((rows_of(split.labels, "sky") < rows_of(split.labels, "road")).all())
    height = split.labels.shape[1]
    assert not bool((split.labels[:, 2 * height // 3 :] == label("sky")).any())
    assert not bool((split.labels[:, : height // 3] == label("road")).any())


def test_lane_marks_lie_on_the_road(split: Samples) -> None:
    is_mark = split.labels == label("lane_mark")
    near = torch.nn.functional.max_pool2d(((split.labels == label("road")) | is_mark).float(), 5, 1, 2)
    assert bool((near[is_mark] == 1).all())
    below = rows_of(split.labels, "lane_mark")
    assert bool((below[~below.isnan()] > 0.4).all())


def test_signs_are_above_the_feet_of_their_poles(split: Samples) -> None:
    signs, poles = rows_of(split.labels, "sign").nanmean(), rows_of(split.labels, "pole").nanmean()
    assert signs < poles < rows_of(split.labels, "car").nanmean()


def test_classes_are_imbalanced_as_in_a_street(split: Samples) -> None:
    valid = split.labels[split.labels != VOID].long()
    share = dict(zip(CLASSES, (torch.bincount(valid, minlength=len(CLASSES)) / len(valid)).tolist(), strict=True))
    assert share["sky"] + share["road"] > 0.5
    for name in ("sign", "pole", "pedestrian", "lane_mark"):
        assert 0.001 < share[name] < 0.03, (name, share[name])
    assert max(share.values()) / min(share.values()) > 20


def test_things_hide_each_other(split: Samples) -> None:
    """What is painted later covers what was there: cars touch poles, people and signs, which could not be if things kept apart."""
    touching = 0
    for labels in split.labels:
        is_car = torch.nn.functional.max_pool2d((labels == label("car")).float()[None], 3, 1, 1)[0] > 0
        touching += any(bool((is_car & (labels == label(name))).any()) for name in ("pole", "pedestrian", "sign"))
    assert touching > len(split) / 4


def test_what_is_near_hides_what_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[float] = []

    def noted(draw: Callable[[object, float], None]) -> Callable[[object, float], None]:
        return lambda canvas, distance: (painted.append(distance), draw(canvas, distance))[1]

    for name in ("_draw_car", "_draw_pedestrian", "_draw_pole", "_draw_tree"):
        monkeypatch.setattr(scenes, name, noted(getattr(scenes, name)))
    for seed in range(5):
        painted.clear()
        draw_scene((48, 64), np.random.default_rng(seed))
        assert len(painted) >= 5
        assert painted == sorted(painted, reverse=True)


def test_some_scenes_ignore_their_own_bonnet_at_the_lower_edge(split: Samples) -> None:
    is_void = split.labels == VOID
    have = is_void.any((1, 2))
    assert 0.2 < have.double().mean() < 0.8
    assert bool(is_void[have][:, -1].any(1).all())
    assert not bool(is_void[:, : split.labels.shape[1] * 4 // 5].any())


def test_brightness_varies_from_scene_to_scene(split: Samples) -> None:
    means = split.images.float().mean((1, 2, 3))
    assert means.max() > 1.4 * means.min()


def test_colour_alone_does_not_give_the_class(split: Samples) -> None:
    """A nearest-colour classifier, fitted on the very scenes that it is scored on, stays far from what a network reaches."""
    pixels = split.images.permute(0, 2, 3, 1)[split.labels != VOID].float()
    labels = split.labels[split.labels != VOID].long()
    centres = torch.stack([pixels[labels == k].mean(0) for k in range(len(CLASSES))])
    predicted = torch.cdist(pixels, centres).argmin(1)
    iou = [((predicted == k) & (labels == k)).sum() / ((predicted == k) | (labels == k)).sum() for k in range(len(CLASSES))]
    assert torch.stack(iou).mean() < 0.3


def test_the_shifted_domain_has_the_same_labels_and_other_images() -> None:
    day, shifted = (Scenes(domain=domain, **SMALL).load("val") for domain in ("day", "shifted"))
    assert torch.equal(day.labels, shifted.labels)
    assert day.names == shifted.names
    assert all(not torch.equal(a, b) for a, b in zip(day.images, shifted.images, strict=True))
    assert torch.equal(shifted.images, Scenes(domain="shifted", **SMALL).load("val").images)


class Forced(np.random.Generator):
    """A generator whose first integer is a given one."""

    kind: int

    def integers(self, *_: object) -> int:  # type: ignore[override]
        return self.kind


@pytest.mark.parametrize(("kind", "name"), [(0, "night"), (1, "fog"), (2, "blur")])
def test_each_kind_of_shift_does_what_its_name_says(kind: int, name: str) -> None:
    image, _ = draw_scene((96, 128), np.random.default_rng(3))
    random = Forced(np.random.PCG64(0))
    random.kind = kind
    shifted = shift(image, random).astype(float)
    before = image.astype(float)
    assert shifted.shape == before.shape

    def edges(x: np.ndarray) -> float:
        return float(np.abs(np.diff(x, axis=1)).mean())

    if name == "night":
        assert shifted.mean() < 0.5 * before.mean()
        assert shifted[..., 2].mean() / shifted[..., 0].mean() > before[..., 2].mean() / before[..., 0].mean()
    elif name == "fog":
        assert shifted.mean() > before.mean()
        assert shifted.std() < 0.75 * before.std()
        horizon, lowest = slice(int(0.37 * 96), int(0.47 * 96)), slice(86, 96)
        left = [shifted[rows].std() / before[rows].std() for rows in (horizon, lowest)]
        assert left[0] < left[1], "the fog is densest far away"
    else:
        assert edges(shifted) < 0.3 * edges(before)
        assert abs(shifted.mean() - before.mean()) < 2


def test_all_three_kinds_occur_in_a_split() -> None:
    day, shifted = (Scenes(domain=domain, size=(48, 64), num_val=24).load("val").images.double() for domain in ("day", "shifted"))
    brightness = shifted.mean((1, 2, 3)) / day.mean((1, 2, 3))
    edges = shifted.diff(dim=3).abs().mean((1, 2, 3)) / day.diff(dim=3).abs().mean((1, 2, 3))
    is_night, is_blur = brightness < 0.6, (brightness - 1).abs() < 0.03
    assert is_night.sum() >= 3
    assert is_blur.sum() >= 3
    assert edges[is_blur].max() < 0.6
    assert (~is_night & ~is_blur).sum() >= 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (31, 64)}, r"`size` must be \(height, width\) of at least 32 pixels, but got \(31, 64\)"),
        ({"num_train": 0}, "`num_train >= 1` must hold, but got 0"),
        ({"num_val": -1}, "`num_val >= 1` must hold, but got -1"),
        ({"num_test": 0}, "`num_test >= 1` must hold, but got 0"),
        ({"seed": -3}, "`seed >= 0` must hold, but got -3"),
        ({"domain": "night"}, "`domain` must be 'day' or 'shifted', but got 'night'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(**settings)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`split` must be one of \('train', 'val', 'test'\), but got 'valid'"):
        Scenes(**SMALL).load("valid")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_minute_of_output_only_training_is_neither_hopeless_nor_enough(seed: int, root: Path, tmp_path: Path) -> None:
    overrides = ["method.alpha=0", "method.beta=0", "optimizer.epochs=6", "optimizer.warmup_epochs=0.5", f"seed={seed}", f"data.seed={seed}"]
    run = load_run(root / "launch" / "scenes.yaml", overrides)
    miou = train(run, output=tmp_path / "run").metrics["val/miou"]
    shifted = evaluate(tmp_path / "run", overrides=["data.domain=shifted"])["val/miou"]
    trained, val = (labels[labels != VOID] for labels in (run.data.load("train").labels, run.data.load("val").labels))
    most = int(trained.mode().values)
    majority = 100 * float((val == most).double().mean()) / len(val.unique())
    assert 35 <= miou <= 75
    assert miou >= majority + 15
    assert shifted <= miou - 5


def test_progress_counts_up_to_all_and_changes_nothing() -> None:
    data = Scenes(**SMALL)
    seen: list[tuple[int, int]] = []
    told = data.load("val", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, len(told)) for done in range(1, len(told) + 1)]
    assert torch.equal(told.images, data.load("val").images)
