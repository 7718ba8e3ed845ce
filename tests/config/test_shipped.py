"""Every YAML file that is shipped: it loads, its nets build, and one step of training runs."""

import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imachsr.config.build import build_model, build_net
from imachsr.config.load import dump_yaml, load_run, load_yaml, make_run, parse_overrides, parse_yaml, run_to_dict
from imachsr.config.schema import Run
from imachsr.data.camvid_original import COLOURS
from imachsr.search.space import Search, draws, load_search
from imachsr.study.load import load_study, make_study, study_to_dict
from imachsr.train.loop import train
from tests.data.files import mask, write_image, write_mask

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "launch").glob("*.yaml"))
FILES = sorted((ROOT / "search_spaces").glob("*.yaml"))
STUDIES = [path for path in FILES if "seeds" in (keys := load_yaml(path)) and "cells" in keys]
SPACES = [path for path in FILES if path not in STUDIES]
FULL_SIZE = [ROOT / "launch" / f"{name}.yaml" for name in ("cityscapes", "camvid_full")]  # trained below on files of their own kinds
SCRATCH = "model.encoder_weights=null"  # a download is no part of a test
FEW = {"cityscapes": 8}  # the deeper network takes its time to build
SMALL = [SCRATCH, "data={kind: scenes, size: [64, 64], num_train: 2, num_val: 1}", "optimizer.epochs=1", "optimizer.batch_size=2"]


@pytest.fixture(autouse=True)
def _fewer_taps_than_asked_for_are_no_error() -> Iterator[None]:
    """A drawn standard may offer fewer layers than a drawn number asks for; that is a warning by design."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* taps were asked for, but this model and rule offer")
        yield


def name_of(path: Path) -> str:
    return path.name


def test_the_files_that_the_readme_names_are_shipped() -> None:
    named = set(re.findall(r"\b(?:launch|search_spaces)/\w+\.yaml", (ROOT / "README.md").read_text()))
    assert {str(path.relative_to(ROOT)) for path in (*RUNS, *FILES)} >= named > set()


@pytest.mark.parametrize("path", [path for path in RUNS if path not in FULL_SIZE], ids=name_of)
def test_a_shipped_run_trains_one_step(path: Path) -> None:
    run = load_run(path, SMALL)
    result = train(run)
    assert len(result.taps) >= 1
    assert result.metrics["train/loss"] > 0
    assert result.metrics["train/side"] > 0


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_shipped_run_round_trips_and_says_nothing_twice(path: Path) -> None:
    run = load_run(path)
    assert make_run(parse_yaml(dump_yaml(run_to_dict(run)))) == run
    assert load_yaml(path)["name"] == run.name == path.stem


@pytest.mark.parametrize("path", [*RUNS, *FILES], ids=name_of)
def test_commands_in_comments_parse(path: Path) -> None:
    """`imachsr train FILE key=value`, `imachsr search FILE` and `imachsr study FILE`, as a user would paste them."""
    takers: dict[str, Any] = {"train": load_run, "search": load_search, "study": load_study}
    for line in re.findall(r"imachsr (?:train|search|study) \S+\.yaml.*", path.read_text()):
        _, verb, file, *rest = shlex.split(line)
        overrides = [word for word in rest if "=" in word]
        if "--data" in rest:
            overrides.append(f"{'run.' * (verb != 'train')}data.root={rest[rest.index('--data') + 1]}")
        assert ROOT / file == path
        takers[verb](ROOT / file, overrides)


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_a_shipped_study_is_what_a_claim_needs(path: Path) -> None:
    plan = load_study(path)
    assert make_study(study_to_dict(plan)) == plan
    assert plan.name == path.stem
    assert plan.primary is not None
    for cell in plan.cells:
        assert plan.run_of(cell, plan.control, 0).is_output_only
        assert all(not plan.run_of(cell, arm, 0).is_output_only for arm in plan.arms_of(cell)[1:])
    assert all(len(plan.seeds_of(cell)) >= 8 for cell in plan.cells if cell.equal == "epochs")
    run = make_run(run_to_dict(plan.run_of(plan.cell(plan.primary.cell), plan.primary.arm, 0)), parse_overrides(SMALL))
    assert train(run).metrics["train/side"] > 0


def small_net(run: Run) -> None:
    net = build_net(run, num_classes=5, size=(64, 64), steps_per_epoch=2)
    assert run.is_output_only == (len(net.taps) == 0)


@pytest.fixture(scope="module", params=SPACES, ids=name_of)
def search(request: pytest.FixtureRequest) -> Search:
    return load_search(request.param, [f"run.{SCRATCH}"])


def test_the_baseline_comes_first_and_learns_as_the_others_do(search: Search) -> None:
    name, seed, settings = search.fixed()[0]
    run = search.run_of(settings, name=name, seed=seed)
    assert run.is_output_only
    base = search.base()
    assert (run.optimizer, run.data, run.model, run.augment) == (base.optimizer, base.data, base.model, base.augment)


@pytest.mark.long
def test_every_arm_builds(search: Search) -> None:
    for name, _, settings in {arm: fixed for arm, *_ in search.fixed() for fixed in [next(f for f in search.fixed() if f[0] == arm)]}.values():
        small_net(search.run_of(settings, name=name, seed=search.seeds[0]))


@pytest.mark.long
def test_drawn_configurations_build(search: Search) -> None:
    if not search.space:
        assert search.budget.trials == len(search.fixed()), "nothing to draw, so the arms are all"
        return
    seen = set()
    for number, values in enumerate(islice((values for values, excess in draws(search, 1) if not excess), FEW.get(search.name, 12))):
        seen.update(values)
        for key, parameter in search.space.items():
            assert (key in values) == parameter.holds(values), key
        run = search.run_of(values, name=f"trial {number}", seed=0)
        assert run.is_output_only == search.base().is_output_only
        small_net(run)
    assert seen == set(search.space), "every key is drawn at least once"


def test_points_build(search: Search) -> None:
    for point in search.points:
        small_net(search.run_of(point, name="point", seed=0))


def test_sampled_trials_differ_from_the_baseline_in_the_method_or_its_rates_only(search: Search) -> None:
    keys = [target for key, parameter in search.space.items() for settings in parameter.targets(key) for target in settings]
    assert all(key.split(".")[0] in ("method", "optimizer") for key in keys)
    if not search.base().is_output_only:
        assert "optimizer.epochs" not in keys, "a score of fewer epochs would not be comparable"


FRAMES = ("0001TP_008520", "0006R0_f00930", "0016E5_07920", "0016E5_07959")  # the last one is of val


def write_camvid(root: Path) -> None:
    for index, frame in enumerate(FRAMES):
        write_image(root / "701_StillsRaw_full" / f"{frame}.png", index, (72, 96))
        labels = np.array([colour for colour, _ in COLOURS], np.uint8)[mask(12, index, (70, 90))]
        write_mask(root / "LabeledApproved_full" / f"{frame}_L.png", np.pad(labels, ((0, 2), (0, 6), (0, 0))))


def write_cityscapes(root: Path) -> None:
    for index, (split, city) in enumerate((("train", "aachen"), ("train", "aachen"), ("train", "ulm"), ("train", "ulm"), ("val", "lindau"))):
        frame = f"{city}_{index:06d}_000019"
        write_image(root / "leftImg8bit" / split / city / f"{frame}_leftImg8bit.png", index, (80, 160))
        write_mask(root / "gtFine" / split / city / f"{frame}_gtFine_labelIds.png", mask(34, index, (80, 160)))


@pytest.mark.parametrize(
    ("name", "write", "size", "overrides"),
    [
        ("cityscapes", write_cityscapes, "[64, 128]", ["optimizer.batch_size=2", "optimizer.epochs=1"]),
        ("camvid_full", write_camvid, "[48, 64]", ["optimizer.batch_size=3", "optimizer.epochs=2"]),
    ],
)
def test_a_recipe_of_full_size_trains_two_steps_on_its_own_files(
    name: str, write: Callable[[Path], None], size: str, overrides: list[str], tmp_path: Path
) -> None:
    write(tmp_path / "data")
    here = [f"data.root={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}", f"data.size={size}", SCRATCH]
    run = load_run(ROOT / "launch" / f"{name}.yaml", [*here, *overrides])
    steps: list[tuple[int, int]] = []
    result = train(run, on_step=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (2, 2)
    assert len(result.taps) == 5
    assert 0 < result.metrics["train/loss"] < 20
    assert 0 <= result.metrics["val/miou"] <= 100


def test_a_trial_of_the_search_of_full_size_trains_two_steps_on_its_own_files(tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "data")
    here = {"data.root": str(tmp_path / "data"), "data.cache": str(tmp_path / "cache"), "data.size": "[64, 128]"}
    few = {**here, "optimizer.epochs": "1", "optimizer.batch_size": "2"}
    given = [*(f"run.{key}={value}" for key, value in few.items()), f"run.{SCRATCH}", "scheduler={kind: none}"]
    search = load_search(ROOT / "search_spaces" / "cityscapes.yaml", given)
    values = next(values for values, excess in draws(search, 1) if not excess)
    steps: list[tuple[int, int]] = []
    result = train(search.run_of(values, name="trial", seed=0), on_step=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (2, 2)
    assert result.taps
    assert 0 < result.metrics["train/loss"] < 20


@pytest.mark.parametrize("arm", ["homogeneous", "imachsr"])
def test_a_run_of_the_study_of_full_size_trains_two_steps_on_its_own_files(arm: str, tmp_path: Path) -> None:
    write_cityscapes(tmp_path / "data")
    few = {
        "data.root": tmp_path / "data",
        "data.cache": tmp_path / "cache",
        "data.size": "[64, 128]",
        "optimizer.epochs": 1,
        "optimizer.batch_size": 2,
    }
    plan = load_study(ROOT / "search_spaces/cityscapes_study.yaml", [*(f"run.{key}={value}" for key, value in few.items()), f"run.{SCRATCH}"])
    assert [each for each in plan.arms_of(plan.cell("city"))] == [
        "output_only",
        "homogeneous",
        "homogeneous_entropy",
        "entropy_only",
        "heterogeneous",
        "imachsr",
    ]
    assert plan.budget.gpus_per_run == 1
    steps: list[tuple[int, int]] = []
    result = train(plan.run_of(plan.cell("city"), arm, 1000), on_step=lambda done, of: steps.append((done, of)))
    assert steps[-1] == (2, 2)
    assert result.taps
    assert 0 < result.metrics["train/loss"] < 20


@pytest.mark.parametrize("path", FULL_SIZE, ids=name_of)
def test_a_recipe_of_full_size_has_a_size_that_its_network_takes(path: Path) -> None:
    run = load_run(path, [SCRATCH])
    model: Any = build_model(run, num_classes=2)
    model.check_input_shape(torch.empty(1, 3, *run.data.size, device="meta"))
    with pytest.raises(RuntimeError, match="divisible"):
        model.check_input_shape(torch.empty(1, 3, run.data.size[0] - 8, run.data.size[1], device="meta"))


def test_camvid_loads_with_its_shipped_settings(camvid: Path) -> None:
    run = load_run(ROOT / "launch" / "camvid.yaml", [f"data.root={camvid}", "data.size=[64, 96]"])
    samples = run.data.load("val")
    net = build_net(run, num_classes=run.data.num_classes, size=(64, 96))
    losses = net(torch.randn(2, 3, 64, 96), samples.labels[:2].long())
    assert bool(torch.isfinite(losses.total))
