import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from imachsr.config import load_run
from imachsr.core.losses import MiVariational, SideLoss
from tests.cli.command import SCENES, Cli, one_error, unboxed


def test_the_defaults_of_layers_are_those_of_a_run() -> None:
    run = load_run(SCENES, ["method.standard=auto"])
    standard: Any = run.method.standard
    model: Any = run.model
    assert (standard.kind, standard.max_taps, standard.placement) == ("auto", 7, "uniform")
    assert (model.architecture, model.encoder) == ("unet", "resnet18")


def test_layers_gives_candidates_and_taps(run: Cli) -> None:
    ran = run("layers", "--architecture", "unet", "--encoder", "resnet18", "--standard", "resolution", "--max-taps", 3, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    addresses = [layer["address"] for layer in found["candidates"]]
    assert len(set(addresses)) == len(addresses) > 10
    assert len(found["taps"]) == 3
    assert [layer["address"] for layer in found["chosen"]] == found["taps"]
    assert set(found["taps"]) <= set(addresses)
    by_address = {layer["address"]: layer for layer in found["candidates"]}
    # ResNet-18 as its authors describe it: the first stage has 64 channels at a quarter of the resolution.
    stage = by_address["encoder.layer1"]
    assert (stage["channels"], stage["height"], stage["width"], stage["stride"]) == (64, 24, 32, 4.0)
    assert all("resolution" in layer["reason"] for layer in found["chosen"])


def test_layers_shows_people_the_same(run: Cli) -> None:
    found = json.loads(run("layers", "--standard", "depth", "--json").out)
    ran = run("layers", "--standard", "depth")
    lines = [line for line in ran.out.splitlines() if line.startswith("│")]
    assert [line.split("│")[2].strip() for line in lines] == [layer["address"] for layer in found["candidates"]]
    assert [line.split("│")[2].strip() for line in lines if line.split("│")[1].strip() == "*"] == found["taps"]
    assert ran.out.splitlines()[-1] == f"3 of {len(lines)} candidates chosen: {', '.join(found['taps'])}"


def test_layers_tells_which_holds_of_an_option_and_a_setting(run: Cli) -> None:
    ran = run("layers", "--standard", "depth", "method.standard=resolution", "--json")
    assert 'method.standard is given more than once, of which the last holds: method.standard="depth"' in unboxed(ran.err)
    assert all("depth" in layer["reason"] for layer in json.loads(ran.out)["chosen"])


@pytest.mark.parametrize(("args", "size"), [([], [64, 96]), (["--size", 48, 32], [48, 32]), (["data.size=[32,64]"], [32, 64])])
def test_layers_traces_the_size_of_the_run_unless_told_otherwise(args: list[object], size: list[int], run: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {kind: scenes, size: [64, 96]}\nmethod: {standard: {kind: stage, max_taps: 2}}\n")
    found = json.loads(run("layers", "--config", "run.yaml", "--json", *args).out)
    assert found["input_size"] == size
    assert len(found["taps"]) == 2


def test_layers_takes_a_users_own_model(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, width):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))\n"
    )
    ran = run("layers", "model.import=mine:make", "model.width=5", "--classes", 4, "--max-taps", 1, "--json")
    assert ran.code == 0, ran.err
    assert {layer["channels"] for layer in json.loads(ran.out)["candidates"]} >= {5, 8}


FEW = ["data.num_train=4", "data.size=[32,32]", "optimizer.batch_size=2", "model.encoder=tu-mobilenetv3_small_100"]


@pytest.mark.parametrize(
    ("standard", "words"),
    [
        ("gradient", r"gradient: \|dL/dh\| / \|h\| is [\d.e-]+, "),
        ("entropy", r"entropy: H / log C is 0\.\d+, rank [123] of \d+"),
    ],
)
def test_layers_looks_at_the_runs_data_where_the_standard_does(standard: str, words: str, run: Cli) -> None:
    first, again = (run("layers", "--standard", standard, *FEW, "--json") for _ in range(2))
    assert (first.code, first.err) == (0, "")
    assert first == again
    found = json.loads(first.out)
    assert len(found["taps"]) == 3
    assert all(re.match(words, layer["reason"]) for layer in found["chosen"])
    other = json.loads(run("layers", "--standard", standard, *FEW, "data.seed=5", "--json").out)
    assert [layer["reason"] for layer in other["chosen"]] != [layer["reason"] for layer in found["chosen"]]


def test_layers_reads_no_data_that_it_does_not_need(run: Cli) -> None:
    nowhere = ["data={kind: camvid, root: nowhere}", "--size", 32, 32]
    assert run("layers", "--standard", "flops", *nowhere).code == 0
    assert "nowhere" in one_error(run("layers", "--standard", "entropy", *nowhere))


@pytest.mark.parametrize("standard", ["bottleneck", "fusion", "width", "flops", "params", "receptive_field"])
def test_layers_says_why_with_numbers(standard: str, run: Cli) -> None:
    found = json.loads(run("layers", "--standard", standard, "--json").out)
    assert found["taps"]
    for layer in found["chosen"]:
        assert layer["reason"].startswith(standard.replace("_", " "))
        assert standard == "fusion" or re.search(r"\d", layer["reason"])
    by_address = {layer["address"]: layer for layer in found["candidates"]}
    spent = [by_address[name]["flops"] for name in by_address]
    assert spent == sorted(spent)


def test_layers_without_the_site_that_a_standard_looks_for_is_one_error(run: Cli) -> None:
    wording = one_error(run("layers", "--standard", "attention"))
    assert "`standard` must choose at least one layer, but 'attention' chose none; take auto or depth" in wording


def test_audit_gives_every_pair_once_and_finds_cross_entropy_again(run: Cli) -> None:
    ran = run("audit", "--draws", 4, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    names = {*(pair["first"] for pair in found), *(pair["second"] for pair in found)}
    assert names == {"cross_entropy (output)", *(member.kind for member in get_args(SideLoss))}
    assert len(found) == len(names) * (len(names) - 1) // 2 == len({frozenset((pair["first"], pair["second"])) for pair in found})
    assert [pair["cosine"] for pair in found] == sorted((pair["cosine"] for pair in found), reverse=True)
    assert all(pair["honest"] for pair in found)
    same = next(pair for pair in found if {pair["first"], pair["second"]} == {"cross_entropy (output)", "mi_variational"})
    assert same["cosine"] == pytest.approx(1, abs=1e-6)
    assert same["equivalent"]
    assert same["same_family"]


def test_audit_shows_people_the_pairs_above_the_threshold(run: Cli) -> None:
    found = json.loads(run("audit", "--draws", 4, "--json").out)
    ran = run("audit", "--draws", 4, "--threshold", 0.9)
    assert ran.code == 0
    rows = [line for line in ran.out.splitlines() if line.startswith("│")]
    assert len(rows) == sum(pair["cosine"] >= 0.9 for pair in found)
    assert f"over 4 draws; {len(found)} pairs, 0 with a wrong family" in unboxed(ran.out)
    assert "equivalent" in ran.out


def test_audit_of_a_wrong_family_is_exit_code_1(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MiVariational, "family", "something else")
    ran = run("audit", "--draws", 2, "--json")
    assert ran.code == 1
    wrong = [{pair["first"], pair["second"]} for pair in json.loads(ran.out) if not pair["honest"]]
    assert {"cross_entropy (output)", "mi_variational"} in wrong
    assert "family is wrong" in unboxed(run("audit", "--draws", 2).out)


@pytest.mark.parametrize("kind", ["run", "search", "study"])
def test_layers_takes_the_base_run_of_a_search_or_a_study(kind: str, run: Cli, tmp_path: Path) -> None:
    text = "data: {kind: scenes, size: [64, 96]}\nmethod: {standard: {kind: stage, max_taps: 2}}\n"
    if kind != "run":
        own = {
            "search": "space: {method.alpha: {float: [0.1, 1]}}",
            "study": "arms: [{name: a, set: {method.alpha: 0}}, {name: b}]\ncells: [{name: c}]\nseeds: [0, 1]",
        }
        text = "run:\n" + "".join(f"  {line}\n" for line in text.splitlines()) + own[kind] + "\n"
    (tmp_path / "file.yaml").write_text(text)
    ran = run("layers", "--config", "file.yaml", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["input_size"], len(found["taps"])) == ([64, 96], 2)


def test_settings_lists_keys_values_defaults_and_meanings(run: Cli) -> None:
    ran = run("settings", "optimizer")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"optimizer.lr +│ number > 0 +│ 0.001 +│ Peak learning rate > 0.", ran.out)
    assert "settings of a search" not in ran.out
    found = json.loads(run("settings", "--json").out)
    assert {"run", "search", "study"} == {each["of"] for each in found}
    assert {"method.loss.temperature", "budget.trials", "against_itself"} <= {each["key"] for each in found}
    assert "nearest: 'optimizer'" in one_error(run("settings", "optimiser"))
