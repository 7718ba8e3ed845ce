"""The published study on street video follows from its rows, by the program that makes it and by plain arithmetic."""

import csv
import itertools
import re
import statistics
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.study_page import findings_of, page
from imachsr import IMacHSR
from imachsr.config.build import build_net
from imachsr.config.load import make_run, run_to_dict
from imachsr.data.corruptions import CORRUPTIONS
from imachsr.search.paired import ALPHA, holm, sign_flip
from imachsr.study.findings import Findings
from imachsr.study.load import load_study
from imachsr.study.plan import wanted
from imachsr.study.rows import Known, read

ROOT = Path(__file__).parent.parent.parent
STUDY, ROWS = ROOT / "search_spaces/camvid_study.yaml", ROOT / "benchmarks/camvid_study.csv"
(PAGE,) = (ROOT / "benchmarks").glob("camvid_study_*.md")


@pytest.fixture(scope="module")
def findings() -> Findings:
    return findings_of(STUDY, ROWS)


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str, int], float]:
    """mIoU of each cell, arm as it was declared, and seed, read without imachsr."""
    rows = [row for row in all_rows() if row["state"] == "finished" and not row["setting"]]
    return {(row["cell"], row["arm"], int(row["seed"])): float(row["val/miou"]) for row in rows}


def test_the_page_and_its_pictures_are_those_of_the_rows(findings: Findings, tmp_path: Path) -> None:
    before = PAGE.read_text(encoding="utf-8")
    assert page(findings, before, tmp_path / "pictures", PAGE.stem) == before
    published = {path.name: path.read_text() for path in PAGE.with_suffix("").iterdir()}
    assert {path.name: path.read_text() for path in (tmp_path / "pictures").iterdir()} == published


def test_every_row_is_a_run_of_the_study() -> None:
    rows = Known(read(ROWS))
    known = {(each.key, each.seed) for each in wanted(load_study(STUDY), rows)}
    assert [(row.cell, row.arm, row.seed) for row in rows.all() if (row.key, row.seed) not in known] == []


def test_what_is_written_of_the_rows_is_in_them() -> None:
    """Numbers of the page's own words that stand in none of its tables."""
    unet = {(row["arm"], int(row["seed"])): row for row in all_rows() if row["cell"] == "unet"}
    seeds = sorted({seed for _, seed in unet})
    text = " ".join(PAGE.read_text(encoding="utf-8").split("<!--")[0].split())

    def mean(arm: str, name: str) -> float:
        return statistics.fmean(float(unet[arm, seed][name]) for seed in seeds)

    def step(arm: str) -> float:
        return statistics.median(float(unet[arm, seed]["time/step_ms"]) / float(unet["output_only", seed]["time/step_ms"]) for seed in seeds)

    one, other = (round(100 * step(arm) - 100) for arm in ("homogeneous", "imachsr"))
    assert f"a step is {one} and {other} % longer" in text
    assert f"had {round(30 / step('homogeneous'))} and {round(30 / step('imachsr'))} epochs" in text
    assert "seven of them up, one down by 2.1" in text
    gains = sorted(float(unet["imachsr", seed]["val/miou"]) - float(unet["output_only", seed]["val/miou"]) for seed in seeds)
    assert round(gains[0], 1) == -2.1
    assert gains[1] > 0
    for arm in ("homogeneous", "imachsr"):
        changes = {name: mean(arm, f"corrupted/{name}/miou") - mean("output_only", f"corrupted/{name}/miou") for name in CORRUPTIONS}
        assert all(changes[name] > 0 for name in ("defocus_blur", "motion_blur", "gaussian_blur", "pixelate", "jpeg"))
        assert all(changes[name] < 0 for name in ("gaussian_noise", "shot_noise", "impulse_noise", "night"))


def test_no_arm_leaves_its_layers_to_a_default() -> None:
    plan = load_study(STUDY)
    kinds = {(cell.name, arm): plan.run_of(cell, arm, 1000).method.standard.kind for cell in plan.cells for arm in cell.arms}
    assert set(kinds.values()) <= {"resolution", "stage", "explicit"}, "what `auto` chooses may change, and the rows would be of other layers"


@pytest.mark.filterwarnings("ignore:7 taps were asked for")
@pytest.mark.parametrize(
    ("cell", "arm"), [("unet_carried", "brier_strong"), ("deeplabv3plus_carried", "brier_strong"), ("segformer_searched", "imachsr")]
)
def test_the_librarys_defaults_are_the_arm_that_was_measured(cell: str, arm: str) -> None:
    plan = load_study(STUDY)
    measured = plan.run_of(plan.cell(cell), arm, 1000)
    settings = run_to_dict(measured)
    ours = make_run({**settings, "method": {}})
    nets = [build_net(run, num_classes=11, size=(96, 128), steps_per_epoch=46) for run in (measured, ours)]
    assert [tap.layer for tap in nets[0].taps] == [tap.layer for tap in nets[1].taps]
    for name in ("loss", "alpha", "beta", "entropy", "schedule", "profile", "grad_ratio"):
        assert getattr(measured.method, name) == getattr(ours.method, name), name
    model, images = nets[0].backbone, torch.zeros(2, 3, 96, 128)
    wrapped = IMacHSR(model, example=images, num_classes=11, total_steps=30 * 46)
    assert [tap.layer.address for tap in wrapped.taps] == [tap.layer.address for tap in nets[0].taps]
    assert (wrapped.losses[0], wrapped.entropy, wrapped.objective) == (nets[0].losses[0], nets[0].entropy, nets[0].objective)


def test_every_difference_is_that_of_plain_arithmetic(findings: Findings, scores: dict[tuple[str, str, int], float]) -> None:
    judged = [each for each in findings.comparisons if each.verdict in ("better", "worse", "open")]
    assert judged
    text = PAGE.read_text(encoding="utf-8")
    for each in judged:
        # Equal runs of two cells ran once, for one of them.
        without = each.cell.rpartition("_")[0]
        cells = (each.cell, without, f"{each.cell}_carried", f"{without}_carried")
        one, two = (
            [next(scores[cell, arm, seed] for cell in cells if (cell, arm, seed) in scores) for seed in each.differences]
            for arm in (each.arm, each.other)
        )
        pairs = [ours - theirs for ours, theirs in zip(one, two, strict=True)]
        assert f"{statistics.fmean(pairs):+.2f}" in text
        assert each.difference == pytest.approx(statistics.fmean(pairs), abs=1e-6)
        flipped = [sum(sign * value for sign, value in zip(signs, pairs, strict=True)) for signs in itertools.product((1, -1), repeat=len(pairs))]
        assert each.p == pytest.approx(sum(abs(value) >= abs(sum(pairs)) - 1e-9 for value in flipped) / len(flipped))


def test_the_readme_has_what_the_study_found(findings: Findings, scores: dict[tuple[str, str, int], float]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^### On real street video\n(.*?)^## ", readme, re.M | re.S)
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in table.splitlines()]
        for table in re.findall(r"(?:^\|.*\n)+", section, re.M)
    ]
    (_, _, base, *rows), (_, _, other_base, *other_rows) = tables
    networks = ("unet", "segformer", "deeplabv3plus")
    assert base == [f"{statistics.fmean(scores[name, 'output_only', seed] for seed in range(1000, 1008)):.1f}" for name in networks]
    defaults, own, of_unet, lighter, homogeneous = (
        [("unet_carried", "brier_strong"), ("segformer_searched", "imachsr"), ("deeplabv3plus_carried", "brier_strong")],
        [("unet", "imachsr"), None, ("deeplabv3plus_searched", "imachsr")],
        [None, ("segformer", "imachsr"), ("deeplabv3plus", "imachsr")],
        [("unet_defaults", "brier"), ("segformer_defaults", "brier"), ("deeplabv3plus_defaults", "brier_stages")],
        [(name, "homogeneous") for name in networks],
    )
    judged = {(each.cell, each.arm): each for each in findings.comparisons if each.other == "output_only"}

    def words(pair: tuple[str, str] | None) -> str:
        if pair is None or (found := judged[pair]).verdict not in ("better", "worse", "open"):
            return ""
        text = f"{found.difference:+.1f} (p {found.p:.2g})"
        return text if found.verdict == "open" else f"**{text}**"

    assert rows == [[words(pair) for pair in row] for row in (defaults, own, of_unet, lighter, homogeneous)]
    harder = ("half", "quarter", "eighth", "epochs_10", "epochs_20", "without_0016E5", "without_0006R0", "without_0001TP")

    def alone(name: str) -> float:
        cells = (name, f"{name}_carried")
        seeds = judged[f"{name}_carried", "brier_strong"].differences
        return statistics.fmean(next(scores[cell, "output_only", seed] for cell in cells if (cell, "output_only", seed) in scores) for seed in seeds)

    assert other_base == [f"{alone(name):.1f}" for name in harder]
    assert other_rows == [
        [words((f"{name}_carried", "brier_strong")) for name in harder],
        *([words((name, arm)) for name in harder] for arm in ("imachsr", "homogeneous")),
    ]
    (found,) = re.findall(
        r"the defaults have ([\d.]+) %, after twenty epochs \(([\d.]+) %, and ([\d.]+) % in equal time\) "
        r"and .*? more varied light \(([\d.]+) %, below\); "
        r"nearly so after ten \(([\d.]+) %\) and thirty \(([\d.]+) %\)",
        readme,
    )
    passed = ("half_carried", "epochs_20_carried", "epochs_20_time", "without_0001TP_light", "epochs_10_carried", "unet_carried")
    assert found == tuple(f"{judged[name, 'brier_strong'].relative:.1f}" for name in passed)
    relative = {cell: each.relative or 0 for (cell, arm), each in judged.items() if arm == "brier_strong" or cell == "segformer_searched"}
    assert {cell for cell, value in relative.items() if value > 9.19} == set(passed[:4])


def test_what_is_said_of_all_cells_of_the_defaults_is_so(findings: Findings) -> None:
    own = [
        each
        for each in findings.comparisons
        if each.other == "output_only"
        and (each.arm == "brier_strong" or each.cell == "segformer_searched")
        and not each.cell.endswith("_time")
        and each.verdict in ("better", "worse", "open")
    ]
    text = " ".join(PAGE.read_text(encoding="utf-8").split("<!--")[0].split())
    above = sum((each.difference or 0) > 0 for each in own)
    always = sum(min(each.differences.values()) > 0 for each in own)
    better = sum(each.verdict == "better" for each in own)
    assert (len(own), above, always, better) == (13, 12, 7, 9)
    assert "they are above it in the mean in twelve of these thirteen, with every seed in seven" in text
    assert "in the mean in twelve of thirteen**, judged better after Holm in nine:" in text
    least = min(holm([each.p or 1 for each in own]))
    assert least >= ALPHA
    assert f"(half of the labels, p {least:.3f})" in text
    calibrated = sorted(each.alongside["val/ece"]["relative"] for each in own)
    assert [round(-each) for each in calibrated[:3]] == [43, 36, 33]
    assert "The ECE is lower by 43, 36 and 33 per cent in three cells" in text
    everything = [each for each in findings.comparisons if not each.is_primary]
    assert f"Over all {len(everything)} at once nothing would be left" in text
    assert min(holm([1 if each.p is None else each.p for each in everything])) >= ALPHA


@cache
def all_rows() -> list[dict[str, str]]:
    with ROWS.open(newline="") as file:
        return list(csv.DictReader(file))


def runs_of(cell: str, arm: str) -> dict[int, dict[str, str]]:
    """Rows by seed; equal runs of two cells ran once, for one of them."""
    without = cell.rpartition("_")[0]
    rows = [row for row in all_rows() if row["arm"] == arm and not row["setting"]]
    found: dict[int, dict[str, str]] = {}
    for name in (cell, without, f"{cell}_carried", f"{without}_carried"):
        for row in rows:
            if row["cell"] == name:
                found.setdefault(int(row["seed"]), row)
    return found


def test_what_the_gain_is_made_of_is_said(findings: Findings) -> None:
    tree, gains, others = [], [], []
    for cell in ("half_carried", "epochs_20_carried", "without_0001TP_light"):
        ours, theirs = runs_of(cell, "brier_strong"), runs_of(cell, "output_only")
        (judged,) = (each for each in findings.comparisons if (each.cell, each.arm, each.other) == (cell, "brier_strong", "output_only"))
        seeds = [int(seed) for seed in judged.differences]
        classes = [name for name in ours[seeds[0]] if name.startswith("val/iou/") and ours[seeds[0]][name]]
        assert len(classes) == 11

        def mean(rows: dict[int, dict[str, str]], name: str, seeds: list[int] = seeds) -> float:
            return statistics.fmean(float(rows[seed][name]) for seed in seeds)

        part = {name: (mean(ours, name) - mean(theirs, name)) / 11 for name in classes}
        rest = [name for name in classes if name != "val/iou/tree"]
        tree.append(f"{part['val/iou/tree']:.1f}")
        gains.append(f"{sum(part.values()):.1f}")
        others.append(f"{100 * sum(part[name] for name in rest) * 11 / sum(mean(theirs, name) for name in rest):.1f}")
        assert all(mean(rows, f"val/iou/{name}") < 0.5 for rows in (ours, theirs) for name in ("pole", "sign", "pedestrian", "bicyclist"))
    for path in (PAGE, ROOT / "README.md"):
        text = " ".join(path.read_text(encoding="utf-8").split("<!--")[0].split())
        one, two, three = ("{}, {} and {}".format(*each) for each in (tree, gains, others))
        assert re.search(rf"tree(?: alone|,) makes {one} of the {two} points", text), path.name
        assert re.search(rf"over the ten other classes the defaults have {three} (?:%|per cent)", text), path.name
    relative = {
        each.cell: each.alongside["val/ece"]["relative"]
        for each in findings.comparisons
        if each.other == "output_only"
        and (each.arm == "brier_strong" or each.cell == "segformer_searched")
        and each.verdict in ("better", "worse", "open")
    }
    same = {cell for cell, value in relative.items() if abs(value) < 4}
    assert {cell for cell in same if not cell.endswith("_time")} >= {"deeplabv3plus_carried", "epochs_20_carried"}
    higher = {cell: value for cell, value in relative.items() if value >= 4}
    assert all(10 <= value < 35 for value in higher.values())
    assert {cell for cell, value in relative.items() if value <= -4} == {
        "half_carried",
        "without_0001TP_light",
        "epochs_10_carried",
        "without_0016E5_carried",
        "without_0006R0_carried",
    }


def test_what_is_said_of_steps_spoilt_images_and_cross_entropy_is_so(findings: Findings) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    steps = []
    for each in findings.comparisons:
        if (
            (each.arm, each.other) == ("brier_strong", "output_only")
            and each.verdict in ("better", "worse", "open")
            and not each.cell.endswith("_time")
            and not each.cell.startswith("deeplabv3plus")
        ):
            ours, theirs = runs_of(each.cell, each.arm), runs_of(each.cell, each.other)
            seeds = [int(seed) for seed in each.differences]
            if len({rows[seed]["machine"] for rows in (ours, theirs) for seed in seeds}) == 1:
                steps.append(statistics.median(float(ours[seed]["time/step_ms"]) / float(theirs[seed]["time/step_ms"]) for seed in seeds))
    assert len(steps) == 6
    assert f"{100 * min(steps) - 100:.0f} to {100 * max(steps) - 100:.0f} % with them, by cell" in readme
    ours, theirs = runs_of("unet_carried", "brier_strong"), runs_of("unet_carried", "output_only")

    def gain(name: str) -> float:
        return statistics.fmean(float(ours[seed][name]) - float(theirs[seed][name]) for seed in range(1000, 1008))

    spoilt = {name: gain(f"corrupted/{name}/miou") for name in CORRUPTIONS}
    more, less = ([abs(value) for value in spoilt.values() if (value > 0) == is_more] for is_more in (True, False))
    assert {name for name, value in spoilt.items() if value < 0} == {"gaussian_noise", "shot_noise", "impulse_noise", "night"}
    assert f"{min(more):.1f} to {max(more):.1f} more mIoU, on dark and noisy ones {min(less):.1f} to {max(less):.1f} less" in readme
    assert f"less, {gain('corrupted/miou'):.1f} more in the mean" in readme
    assert f"{gain('val/boundary_iou'):.1f} points more of boundary IoU" in readme
    (effect,) = (each for each in findings.effects if each["key"] == "method.loss")
    (entropy,) = (each["difference"] for each in effect["values"] if each["value"] == "mi_variational")
    ten, alone = runs_of("epochs_10_carried", "brier_strong"), runs_of("epochs_10_carried", "output_only")
    brier = statistics.fmean(float(ten[seed]["val/miou"]) - float(alone[seed]["val/miou"]) for seed in (1000, 1001, 1002))
    for text in (readme, PAGE.read_text(encoding="utf-8")):
        assert f"({entropy:+.1f} against {brier:+.1f} after ten epochs, three seeds)" in text


def test_what_the_outputs_own_loss_does_in_the_defaults_is_said(findings: Findings) -> None:
    entropy, other = (each for each in findings.comparisons if each.cell == "epochs_20_loss")
    (brier,) = (each for each in findings.comparisons if (each.cell, each.arm, each.other) == ("epochs_20_carried", "brier_strong", "output_only"))
    assert (other.arm, other.other, other.verdict, entropy.verdict) == ("brier_strong", "cross_entropy_strong", "open", "better")
    assert entropy.difference is not None
    assert brier.difference is not None
    assert round(entropy.difference / brier.difference, 1) == 0.9
    page, readme = (" ".join(path.read_text(encoding="utf-8").split("<!--")[0].split()) for path in (PAGE, ROOT / "README.md"))
    gain, one, least, most = entropy.difference, entropy.relative, min(entropy.differences.values()), max(entropy.differences.values())
    assert f"{gain:+.2f} points, {one:.1f} per cent, with each of eight seeds, from {least:+.1f} to {most:+.1f} (p {entropy.p:.2g}, " in page
    seven = sum(value > 0 for value in other.differences.values())
    assert seven == 7
    least, most = min(other.differences.values()), max(other.differences.values())
    assert (
        f"`brier` is {other.difference:.2f} above it, {other.relative:.1f} per cent, with seven of the eight seeds, from {least:.1f} to {most:+.1f}"
        in page
    )
    assert f"({gain:+.1f} and {brier.difference:+.1f}, eight seeds, p {other.p:.2g} between them)" in readme
    assert f"the output's own has {gain:+.1f} in place of `brier`, and `brier` {brier.difference:+.1f} (p {other.p:.2g} between them)" in readme


def test_what_more_steps_do_with_few_labels_is_said(findings: Findings) -> None:
    brier, same, full = (
        next(each for each in findings.comparisons if (each.cell, each.arm, each.other) == ("eighth_long", arm, "output_only"))
        for arm in ("brier", "homogeneous", "imachsr")
    )
    assert [each.verdict for each in (brier, same, full)] == ["better", "open", "open"]
    less = -brier.alongside["val/ece"]["relative"]
    page, readme = (" ".join(path.read_text(encoding="utf-8").split("<!--")[0].split()) for path in (PAGE, ROOT / "README.md"))
    assert f"the loss of the defaults brings {brier.difference:.2f} points, {brier.relative:.1f} per cent**" in page
    assert f"p {brier.p:.2g}, {brier.p_holm:.2g} after Holm over the four comparisons of that family" in page
    assert f"lower by {less:.0f} per cent. `homogeneous` has {same.difference:+.2f} (" in page
    assert (
        f"`brier` with 0.8 is {brier.difference:.1f} above it (p {brier.p:.2g}, {brier.p_holm:.2g} after Holm), with an ECE lower by {less:.0f} %"
        in readme
    )
    assert f"has {same.difference:+.1f} there (p {same.p:.2g}), what was found on the U-Net {full.difference:+.1f} (p {full.p:.2g})" in readme


def test_the_rate_of_the_longer_search_is_the_weaker_one() -> None:
    def scores_of(cell: str, arm: str) -> dict[int, float]:
        return {seed: float(row["val/miou"]) for seed, row in runs_of(cell, arm).items()}

    text = " ".join(PAGE.read_text(encoding="utf-8").split("<!--")[0].split())
    means, gains = [], []
    ended = {(row["arm"], int(row["seed"])): float(row["val/miou"]) for row in all_rows() if row["cell"] == "deeplabv3plus_rate"}
    seeds = sorted({seed for _, seed in ended})
    assert len(ended) == 16
    lower = []
    for arm in ("output_only", "brier_strong"):
        before = scores_of("deeplabv3plus_carried", arm)
        lower.append(sum(ended[arm, seed] < before[seed] for seed in seeds))
        means += [statistics.fmean(ended[arm, seed] for seed in seeds), statistics.fmean(before[seed] for seed in seeds)]
    gains = [means[2] - means[0], means[3] - means[1]]
    assert (
        "the output alone {:.1f} instead of {:.1f} (on another machine), the defaults {:.1f} instead of {:.1f} (on the same)".format(*means) in text
    )
    assert lower == [7, 8]
    assert "are worse on val, with seven and eight of eight seeds:" in text
    assert all(ended["brier_strong", seed] > ended["output_only", seed] for seed in seeds)
    found = "the defaults are {:.2f} above it, {:.1f} per cent, with each of the eight (p 0.0078, alone in its family), at the higher {:.2f}"
    assert found.format(gains[0], 100 * gains[0] / means[0], gains[1]) in text
    assert f"is {means[1] - means[0]:.1f} weaker" in (ROOT / "README.md").read_text(encoding="utf-8")
    (search,) = (ROOT / "benchmarks").glob("camvid_output_only_networks_*.md")
    assert f"{means[1] - means[0]:.1f} below the cells' rate in the mean of eight seeds, with seven of them" in search.read_text(encoding="utf-8")


def test_what_two_looks_at_the_family_of_three_networks_leave_is_said(findings: Findings) -> None:
    """It had eight seeds, was looked at, and got two more: Bonferroni over the two looks."""
    (family,) = (each for each in findings.families if each["name"] == "defaults")
    judged = [each for each in findings.comparisons if each.cell.endswith("_defaults")]
    assert len(judged) == family["comparisons"]
    assert all(list(map(int, each.differences)) == list(range(1000, 1010)) for each in judged)
    first = [sign_flip(list(each.differences.values())[:8]).p for each in judged]
    assert min(holm(first)) >= ALPHA
    both = dict(zip([(each.cell, each.arm) for each in judged], holm([min(1.0, 2 * (each.p or 1)) for each in judged]), strict=True))
    assert [name for name, p in both.items() if p < ALPHA] == [("unet_defaults", "brier")]
    page, readme = (" ".join(path.read_text(encoding="utf-8").split("<!--")[0].split()) for path in (PAGE, ROOT / "README.md"))
    brier, coarse = both["unet_defaults", "brier"], both["unet_defaults", "coarse"]
    assert f"then `brier` stays judged on the U-Net ({brier:.3f}), and `coarse` does not ({coarse:.3f})" in page
    assert "(p {:.2g}, {:.2g} and {:.2g} on the three networks)".format(*first[-3:]) in page
    assert f"counted as two looks its first p is {brier:.3f} after Holm" in readme


def test_cells_whose_arms_ran_on_two_machines_are_named(findings: Findings) -> None:
    (named,) = re.findall(r"beside the controls from the EPYC \((.*?)\):", PAGE.read_text(encoding="utf-8"))
    mixed = set()
    for each in findings.comparisons:
        if each.verdict in ("better", "worse", "open") and each.other == "output_only":
            ours, theirs = runs_of(each.cell, each.arm), runs_of(each.cell, each.other)
            if any(ours[int(seed)]["machine"] != theirs[int(seed)]["machine"] for seed in each.differences):
                mixed.add(each.cell)
    assert {name for name in re.findall(r"`(\w+)`", named) if not name.startswith(("homogeneous", "entropy", "heterogeneous"))} == mixed


def test_what_another_machine_does_is_in_the_rows() -> None:
    def read_rows(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    again = {row["seed"]: row for row in read_rows(ROOT / "benchmarks/camvid_study_same_machine.csv")}
    published = [row for row in read_rows(ROWS) if not row["setting"]]
    (key,) = {row["key"] for row in again.values()}
    before = {row["seed"]: row for row in published if row["key"] == key}
    arm = {row["seed"]: row for row in published if (row["cell"], row["arm"]) == ("epochs_10_carried", "brier_strong")}
    assert before.keys() == again.keys() == arm.keys()
    assert {row["machine"] for row in again.values()} == {row["machine"] for row in arm.values()} != {row["machine"] for row in before.values()}

    def pairs(one: dict[str, dict[str, str]], two: dict[str, dict[str, str]], metric: str = "val/miou") -> list[float]:
        return [float(one[seed][metric]) - float(two[seed][metric]) for seed in one]

    moved, gain = pairs(again, before), pairs(arm, again)
    text = " ".join(PAGE.read_text(encoding="utf-8").split("<!--")[0].split())
    assert (
        f"{statistics.fmean(moved):.2f} in the mean of the same eight seeds (p {sign_flip(moved).p:.2g}), from {min(moved):.1f} to {max(moved):+.1f}"
        in text
    )
    assert sum(value > 0 for value in gain) == 7
    assert (
        f"{statistics.fmean(gain):+.2f} after ten epochs (seven of eight seeds, from {min(gain):.1f} to {max(gain):+.1f}, p {sign_flip(gain).p:.2g})"
        in text
    )
    less = -statistics.fmean(pairs(arm, again, "val/ece")) / statistics.fmean(float(row["val/ece"]) for row in again.values())
    assert f"an ECE that is {100 * less:.0f} per cent lower" in text
    assert f"({100 * less:.0f} % beside a control of the same machine)" in (ROOT / "README.md").read_text(encoding="utf-8")
