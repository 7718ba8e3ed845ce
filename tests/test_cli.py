import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
import typer.main

from imachsr import cli
from imachsr.config import load_run
from imachsr.core.losses import MiVariational, SideLoss
from tests.report.folders import BASELINE, make, trial

ROOT = Path(__file__).parent.parent
SMALL = ["optimizer.epochs=1", "data.num_train=8", "data.num_val=4", "data.size=[32,32]", "optimizer.batch_size=4"]
SEARCH = [
    "run.optimizer.epochs=2",
    "run.data.num_train=16",
    "run.data.size=[32,32]",
    "run.optimizer.batch_size=4",
    "scheduler.grace=1",
    "selection.blocks=2",
    "selection.guard=0",
]
COMMANDS = ["layers", "settings", "train", "search", "report", "export", "export-model", "evaluate", "audit", "doctor"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["imachsr", *map(str, args)])
        code: Any = 0
        with warnings.catch_warnings():
            try:
                cli.main()
            except SystemExit as ending:
                code = ending.code or 0
        return Ran(code, *capfd.readouterr())

    return call


def process(*args: object, cwd: Path) -> Ran:
    """The command line in a process of its own."""
    found = subprocess.run([sys.executable, "-m", "imachsr", *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)
    return Ran(found.returncode, found.stdout, found.stderr)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A training, and what its command said."""
    at = tmp_path_factory.mktemp("train")
    return at / "out", process("train", ROOT / "launch/scenes.yaml", *SMALL, "--output", "out", "--json", cwd=at)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran, Ran]:
    """A search of two trials, and the same continued to three; what both commands said."""
    at = tmp_path_factory.mktemp("search")
    given = [ROOT / "search_spaces/quickstart.yaml", *SEARCH, "--concurrency", 1, "--output", "out"]
    first = process("search", *given, "--trials", 2, "--json", cwd=at)
    return at / "out", first, process("search", *given, "--trials", 3, "--resume", cwd=at)


def one_error(ran: Ran) -> str:
    """A user's mistake: exit code 2, nothing on stdout, one message, and how to get the traceback."""
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    before, _, message = ran.err.partition("error: ")
    assert "error: " not in before
    assert message.endswith("\nIMACHSR_TRACEBACK=1 shows where\n")
    return message


# Help


def unboxed(text: str) -> str:
    """Without rich's frames and line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_the_help_names_every_command(run: Cli) -> None:
    ran = run("--help")
    assert ran.code == 0
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", ran.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_with_its_default(name: str, run: Cli) -> None:
    ran = run(name, "--help")
    text = unboxed(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert "--json" in text
    for parameter in typer.main.get_command(cli.app).commands[name].params:  # type: ignore[attr-defined]
        assert parameter.opts[0] in text
        help_ = getattr(parameter, "help", None)
        if parameter.name == "help":
            continue
        assert help_, parameter.name
        assert " ".join(help_.split()) in text, parameter.name
        default = parameter.default
        if isinstance(default, (str, int)) and not isinstance(default, bool):
            assert f"[default: {default}]" in text, parameter.name


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("layers", ["unet", "resnet18", "auto", "3", "early with auto, else uniform", "that of the data"]),
        ("train", ["runs/NAME"]),
        ("search", ["runs/NAME", "that of the file"]),
        ("export", ["the best finished one"]),
    ],
)
def test_defaults_that_depend_on_something_are_told_too(name: str, defaults: list[str], run: Cli) -> None:
    text = unboxed(run(name, "--help").out)
    for default in defaults:
        assert f"[default: ({default})]" in text


def test_the_defaults_of_layers_are_those_of_a_run() -> None:
    run = load_run(ROOT / "launch/scenes.yaml", ["method.standard=auto"])
    standard: Any = run.method.standard
    model: Any = run.model
    assert (standard.kind, standard.max_taps, standard.placement) == ("auto", 3, "early")
    assert (model.architecture, model.encoder) == ("unet", "resnet18")


def test_units_are_told(run: Cli) -> None:
    assert "pixels" in run("layers", "--help").out
    assert "Trials in all" in run("search", "--help").out


def test_every_standard_is_named_in_the_help(run: Cli) -> None:
    text = unboxed(run("layers", "--help").out)
    for kind in ("auto", "resolution", "stage", "depth", "explicit"):
        assert kind in text


def test_no_command_shows_the_help(run: Cli) -> None:
    assert "layers" in (ran := run()).out + ran.err


def test_version(run: Cli) -> None:
    from imachsr import __version__

    assert run("--version") == (0, __version__ + "\n", "")


# layers


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


# audit


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


@pytest.mark.parametrize("kind", ["run", "search"])
def test_layers_takes_the_base_run_of_a_search(kind: str, run: Cli, tmp_path: Path) -> None:
    text = "data: {kind: scenes, size: [64, 96]}\nmethod: {standard: {kind: stage, max_taps: 2}}\n"
    if kind == "search":
        text = "run:\n" + "".join(f"  {line}\n" for line in text.splitlines()) + "space: {method.alpha: {float: [0.1, 1]}}\n"
    (tmp_path / "file.yaml").write_text(text)
    ran = run("layers", "--config", "file.yaml", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["input_size"], len(found["taps"])) == ([64, 96], 2)


# settings


def test_settings_lists_keys_values_defaults_and_meanings(run: Cli) -> None:
    ran = run("settings", "optimizer")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"optimizer.lr +│ number > 0 +│ 0.001 +│ Peak learning rate > 0.", ran.out)
    assert "settings of a search" not in ran.out
    found = json.loads(run("settings", "--json").out)
    assert {"run", "search"} == {each["of"] for each in found}
    assert {"method.loss.temperature", "budget.trials"} <= {each["key"] for each in found}
    assert "nearest: 'optimizer'" in one_error(run("settings", "optimiser"))


# train and evaluate


def test_train_prints_one_json_document_and_its_progress_elsewhere(trained: tuple[Path, Ran]) -> None:
    folder, ran = trained
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert {key: value for key, value in found.items() if key != "output"} == json.loads((folder / "summary.json").read_text())
    assert found["epochs"] == 1
    lines = ran.err.splitlines()
    assert lines[0] == "training scenes: 1 epochs, results in out"
    assert re.fullmatch(r"epoch 1/1  val/miou +[\d.]+ %  val/loss [\d.]+  train/loss [\d.]+  [\d.]+ s", lines[1])
    assert "\x1b" not in ran.err


def test_train_leaves_a_run_in_wandb(trained: tuple[Path, Ran]) -> None:
    from tests.tracking import records

    folder, _ = trained
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = records.records(path)
    (start,) = records.of(found, "run")
    assert (start.job_type, start.run_id) == ("train", (folder / "wandb-id").read_text())
    assert [row["epoch"] for row in records.rows(found)] == [1]
    assert [ending.exit_code for ending in records.of(found, "exit")] == [0]


def test_train_without_an_output_takes_a_new_folder_each_time(run: Cli, tmp_path: Path) -> None:
    for folder in ("runs/scenes", "runs/scenes-2"):
        ran = run("train", ROOT / "launch/scenes.yaml", *SMALL, "--wandb", "disabled")
        assert ran.code == 0, ran.err
        assert ran.out.splitlines()[-1].endswith(f"in {folder}")
        assert ran.err.splitlines()[-1] == f"imachsr evaluate {folder}"
        assert list((tmp_path / folder / "checkpoints").glob("*.pt"))
        assert not (tmp_path / folder / "wandb").exists()


def test_a_training_goes_on_where_it_was_broken_off(trained: tuple[Path, Ran], run: Cli) -> None:
    folder, _ = trained
    refused = one_error(run("train", ROOT / "launch/scenes.yaml", *SMALL, "--output", folder))
    assert "must be a new folder" in refused
    assert "--resume" in refused
    changed = one_error(run("train", ROOT / "launch/scenes.yaml", *SMALL, "optimizer.lr=0.5", "--output", folder, "--resume"))
    assert "optimizer changed" in changed
    ran = run("train", ROOT / "launch/scenes.yaml", *SMALL, "--output", folder, "--resume", "--json", "--wandb", "disabled")
    assert json.loads(ran.out)["metrics"] == json.loads((folder / "metrics.jsonl").read_text())


def test_an_epoch_that_ended_before_it_was_reported_is_reported_on_resume_and_no_other(run: Cli, tmp_path: Path) -> None:
    from imachsr.train import loop
    from tests.tracking import records

    def fail_after_checkpoint_2(output: Path, history: list[dict[str, float]]) -> None:
        if len(history) == 2:
            raise RuntimeError("the disk went away")

    command = ("train", ROOT / "launch/scenes.yaml", *SMALL, "optimizer.epochs=3", "--output", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_write_history", fail_after_checkpoint_2)
        assert "the disk went away" in run(*command).err
    assert run(*command, "--resume").code == 0
    assert run(*command, "--resume").code == 0  # it is over
    files = sorted((tmp_path / "out").glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert [[row["epoch"] for row in records.rows(records.records(path))] for path in files] == [[1], [2, 3]]


def test_evaluate_scores_the_data_that_is_asked_for(trained: tuple[Path, Ran], run: Cli) -> None:
    folder, ran = trained
    same = json.loads(run("evaluate", folder, "--json").out)
    assert same["val/miou"] == pytest.approx(json.loads(ran.out)["metrics"]["val/miou"])
    shifted = json.loads(run("evaluate", folder, "data.domain=shifted", "--json").out)
    assert shifted["val/loss"] != same["val/loss"]
    assert set(json.loads(run("evaluate", folder, "--split", "train", "--json").out)) >= {"train/miou", "train/loss"}
    text = run("evaluate", folder).out
    assert f"{same['val/miou']:.2f} %" in text
    assert f"{same['val/loss']:.4f}" in text


def test_export_model_writes_what_it_says(trained: tuple[Path, Ran], run: Cli, tmp_path: Path) -> None:
    folder, _ = trained
    ran = run("export-model", folder)
    assert ran.code == 0, ran.err
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {name.partition(".")[0] for name in weights} == {"encoder", "decoder", "segmentation_head"}
    for wording in ("model.pt (state-dict, ", "float32 [B, 3, 32, 32], RGB, (x / 255 - mean) / std"):
        assert wording in ran.out
    assert re.search(r"classes .* 9 ", ran.out)
    ran = run("export-model", folder, "--format", "exported", "--which", "best", "--size", 64, 96, "--json")
    found = json.loads(ran.out)
    wanted = {"out": "model.pt2", "format": "exported", "num_classes": 9, "input_size": [64, 96], "is_dynamic_batch": False, "is_ema": False}
    assert wanted.items() <= found.items()
    assert found["difference"] < 1e-4
    assert tuple(torch.export.load(tmp_path / "model.pt2").module()(torch.zeros(1, 3, 64, 96)).shape) == (1, 9, 64, 96)
    assert "model.pt must not exist yet, but does" in one_error(run("export-model", folder))


def test_nothing_is_announced_that_cannot_begin(trained: tuple[Path, Ran], run: Cli, tmp_path: Path) -> None:
    folder, _ = trained
    (tmp_path / "empty").mkdir()
    for args in (
        ["train", SCENES, *SMALL, "--output", folder],
        ["train", ROOT / "launch/camvid.yaml", "--data", "empty"],
        ["search", ROOT / "search_spaces/camvid.yaml", "--data", "empty"],
    ):
        ran = run(*args)
        one_error(ran)
        assert "results in" not in ran.err


def test_a_file_beside_the_user_does_not_hide_a_module_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef make(num_classes):\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, num_classes, 1))\n"
    )
    # As the installed command does: no script's folder, and not the current one, is on the path.
    code = f"import sys; sys.path = [each for each in sys.path if each]; sys.path.append({str(ROOT)!r}); from imachsr.cli import main; main()"
    words = [sys.executable, "-P", "-c", code, "layers", "model.import=mine:make", "--max-taps", "1", "--json"]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["taps"]


# search, report, export


FAILING = """run:
  data: {kind: scenes, size: [32, 32], num_train: 16}
  model: {import: "broken:make"}
  optimizer: {epochs: 2, batch_size: 4}
space: {method.alpha: {float: [0.1, 1.0]}}
scheduler: {kind: none}
selection: {blocks: 2, guard: 0}
budget: {trials: 2, concurrency: 1}
"""


def test_a_search_in_which_every_trial_failed_has_failed_and_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from torch import nn\n"
        "class Model(nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        if self.training and len(x) == 4:\n"
        "            raise KeyError('a fault')\n"
        "        return super().forward(x)\n"
        "def make(num_classes):\n"
        "    return Model(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))\n"
    )
    (tmp_path / "failing.yaml").write_text(FAILING)
    ran = process("search", "failing.yaml", "--output", "my out", "--wandb", "disabled", cwd=tmp_path)
    assert ran.code == 1, ran.err
    assert ran.err.splitlines()[-1] == "failed: the baseline, trial 0: KeyError: 'a fault' (in full: my out/trials/0000/error.txt)"
    assert "broken.py" in (tmp_path / "my out/trials/0000/error.txt").read_text()
    assert "imachsr export" not in ran.err
    assert "imachsr report 'my out'" in ran.err


def test_only_a_search_that_can_be_compared_has_succeeded() -> None:
    failed = trial(1, "FAIL", value=None, error="no")
    assert cli._failure({"trials": [BASELINE, failed], "baseline": 0, "best": 0}, Path("x")) == ""
    whole = {"trials": [trial(0, "FAIL", value=None, error="no"), trial(1)], "baseline": 0, "best": 1}
    assert cli._failure(whole, Path("x")) == "the baseline, trial 0: no (in full: x/trials/0000/error.txt)"
    assert cli._failure({"trials": [], "baseline": 0, "best": None}, Path("x")) == ""  # interrupted at once


def test_names_that_are_printed_to_go_on_with_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [cli._free(Path("best"), ".yaml"), cli._free(Path("runs/best"))] == [Path("best.yaml"), Path("runs/best")]
    Path("best.yaml").touch()
    Path("best-2.yaml").touch()
    Path("runs/best").mkdir(parents=True)
    assert [cli._free(Path("best"), ".yaml"), cli._free(Path("runs/best"))] == [Path("best-3.yaml"), Path("runs/best-2")]


def test_a_report_of_several_seeds_shows_their_means(run: Cli, tmp_path: Path) -> None:
    trials = [
        trial(number, arm=arm, seed=seed, value=value, difference=value - 30.0)
        for number, (arm, seed, value) in enumerate([("b", 0, 30.0), ("b", 1, 30.0), ("c", 0, 36.0), ("c", 1, 31.0)])
    ]
    make(tmp_path / "s", trials, best=2)
    assert "+6.00, +1.00" in run("report", "s").out
    found = json.loads(run("report", "s", "--json").out)
    assert [(arm["name"], arm["mean"], arm["difference"]) for arm in found["arms"]] == [("b", 30.0, 0.0), ("c", 33.5, 3.5)]


def test_search_prints_one_json_document_and_its_progress_elsewhere(searched: tuple[Path, Ran, Ran]) -> None:
    folder, ran, _ = searched
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (len(found["trials"]), found["finished"], found["output"]) == (2, True, "out")
    assert found["trials"][0]["arm"] == "baseline"
    assert (folder.parent / found["report"]).exists()
    lines = ran.err.splitlines()
    assert lines[0] == "search quickstart: 2 trials of up to 2 epochs, 1 at a time"
    assert "trial 0 (baseline): running, epoch 0/2" in lines
    assert re.search(r"^trial 0 \(baseline\): finished, epoch 2/2  select/miou \d", ran.err, re.M)
    assert "\x1b" not in ran.err


def test_a_search_that_is_continued_ends_with_a_table_and_commands_that_work(searched: tuple[Path, Ran, Ran], run: Cli) -> None:
    folder, first, ran = searched
    assert ran.code == 0, ran.err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["trials"][:2] == [
        {**old, "wall_s": new["wall_s"]} for old, new in zip(json.loads(first.out)["trials"], summary["trials"], strict=False)
    ]
    assert len(summary["trials"]) == 3
    shown = [line.split("│")[1].strip() for line in ran.out.splitlines() if line.startswith("│")]
    assert sorted(number for number in shown if number) == ["0", "1", "2"]
    assert "report: out/report.html" in ran.out
    hints = [line.strip() for line in ran.err.splitlines() if line.startswith("  ")]
    assert hints[1:] == [
        f"wandb sync {folder}/wandb/offline-run-*",
        "imachsr report out",
        "imachsr export out --out best.yaml",
        "imachsr train best.yaml --output runs/best",
    ]


def test_a_search_leaves_one_wandb_run_a_trial(searched: tuple[Path, Ran, Ran]) -> None:
    from tests.tracking import records

    folder, *_ = searched
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    found = {}
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        held = records.records(path)
        found[records.config(held)["trial"]] = held
    assert sorted(found) == [0, 1, 2]
    assert len({records.of(held, "run")[0].run_group for held in found.values()}) == 1
    for each in summary["trials"]:
        held = found[each["number"]]
        assert records.of(held, "run")[0].job_type == ("trial" if each["number"] else "baseline")
        values = [row["select/miou"] for row in rows if row["trial"] == each["number"]]
        assert [row["select/miou"] for row in records.rows(held)] == pytest.approx(values)
        assert len(values) == each["epochs"]


def test_report_reads_what_the_search_wrote(searched: tuple[Path, Ran, Ran], run: Cli) -> None:
    folder, *_ = searched
    found = json.loads(run("report", folder, "--json").out)
    summary = json.loads((folder / "summary.json").read_text())
    assert {key: found[key] for key in summary} == summary
    assert [row["number"] for row in found["rows"]][0] == 0
    assert sorted(row["number"] for row in found["rows"]) == [0, 1, 2]
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    assert "select/miou of the last epoch" in run("report", folder).out


def test_what_is_exported_trains_as_written(searched: tuple[Path, Ran, Ran], run: Cli, tmp_path: Path) -> None:
    folder, *_ = searched
    ran = run("export", folder)
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert (ran.code, ran.out, ran.err) == (0, f"trial {best} in best.yaml\n", "imachsr train best.yaml\n")
    assert "must not exist yet" in one_error(run("export", folder))
    assert json.loads(run("export", folder, "--trial", 1, "--out", "one.yaml", "--json").out) == {"trial": 1, "out": "one.yaml"}
    ran = run("train", "best.yaml", "--wandb", "disabled", "data.num_val=4")
    assert ran.code == 0, ran.err
    name = load_run(tmp_path / "best.yaml").name
    assert list((tmp_path / "runs" / name / "checkpoints").glob("*.pt"))


def test_a_report_can_be_had_while_a_search_runs(run: Cli, tmp_path: Path) -> None:
    make(tmp_path / "s", [BASELINE, trial(1, "RUNNING", epochs=1, value=5.0)], best=0, finished=False)
    ran = run("report", "s")
    assert ran.code == 0
    assert re.search(r"1 │ +5.00 │ +│ +1/4 │ running", ran.out)


def test_a_message_with_brackets_is_no_markup(run: Cli, tmp_path: Path) -> None:
    make(tmp_path / "[/s]", [BASELINE, trial(1, "FAIL", value=None, error="[/data] is no folder")], best=0)
    ran = run("report", "[/s]")
    assert ran.code == 0
    assert "[/data] is no folder" in ran.out
    assert "report: [/s]/report.html" in ran.out


# doctor


def test_doctor_says_what_is_here(run: Cli) -> None:
    ran = run("doctor", "--json")
    assert ran.code == 0
    found = {check["name"]: check for check in json.loads(ran.out)}
    text = run("doctor").out
    for name, check in found.items():
        assert name in text
        assert check["finding"].split()[0] in text


def test_doctor_fails_when_something_is_missing(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imachsr.doctor.PACKAGES", ("imachsr-no-such-package",))
    ran = run("doctor")
    assert ran.code == 1
    assert re.search(r"error .*imachsr-no-such-package.*not installed", ran.out)


# A user's mistakes


SCENES, QUICK = ROOT / "launch/scenes.yaml", ROOT / "search_spaces/quickstart.yaml"
MISTAKES: list[tuple[list[object], str]] = [
    (["layers", "--architecture", "unett"], "`architecture` must be a known name, but got 'unett'; nearest: 'unet'"),
    (["layers", "--encoder", "resnet19"], "`encoder` must be a known name, but got 'resnet19'; nearest: 'resnet18'"),
    (["layers", "--encoder", "tu-nosuch"], "'tu-nosuch'"),
    (["layers", "--standard", "resolutoin"], "but got 'resolutoin'; nearest: 'resolution'"),
    (["layers", "--standard", "explicit", "method.standard.layers=[encoder.layer9]"], "encoder.layer"),
    (["layers", "--max-taps", "0"], "`max_taps >= 1` must hold, but got 0"),
    (["layers", "--size", "31", "64"], "`size` must be (height, width) of at least 32 pixels, but got (31, 64)"),
    (["layers", "--config", "none.yaml"], "none.yaml must be a readable file"),
    (["layers", "optimizer.epoch=2"], "optimizer.epoch: is no setting; nearest: 'epochs'"),
    (["layers", "epochs"], "must have the form key=value"),
    (["layers", "model.import=no.such:model"], "must be importable"),
    (["train", "none.yaml"], "none.yaml must be a readable file"),
    (["train", "."], "must be a readable file, but: Is a directory"),
    (["train", SCENES, "optimizer.epocs=2"], "optimizer.epocs: is no setting; nearest: 'epochs'"),
    (["train", SCENES, "optimizer.epochs=0"], "`epochs >= 1` must hold, but got 0"),
    (["train", SCENES, "optimizer.lr=fast"], "optimizer.lr"),
    (["train", SCENES, "method.loss=dise"], "but got 'dise'; nearest: 'dice'"),
    (["train", SCENES, "data.kind=cityscape"], "must be one of scenes, camvid, folder, import"),
    (["train", SCENES, "--wandb", "ofline"], "--wandb must be one of auto, online, offline, disabled, but got 'ofline'; nearest: 'offline'"),
    (["train", SCENES, "--output", "file"], "--output must be a folder, but file is a file"),
    (["train", SCENES, "--output", "file/sub"], "is a file"),
    (["train", SCENES, "--output", "search"], "holds another kind of result (study.sqlite3)"),
    (["train", SCENES, "--resume"], "--resume must go with a folder to continue in, but runs/scenes is none"),
    (["train", SCENES, "--resume", "--output", "none"], "but none is none"),
    (["train", QUICK], f"must hold one run, but holds a search (arms, budget, run, sampler, scheduler, space); use: imachsr search {QUICK}"),
    (["train", SCENES, "--data", "none"], "--data sets data.root: leave it out, or choose a data set that is read from a folder, by data.kind"),
    (["search", QUICK, "--data", "none"], "--data sets run.data.root: leave it out, or choose a data set"),
    (["train", ROOT / "launch/camvid.yaml", "--data", "none"], "`data.root` must be CamVid's folder, but "),
    (["train", ROOT / "launch/camvid.yaml", "--data", "search"], "search must hold val/ with valannot/"),
    (["train", SCENES, *SMALL, "method.standard={kind: explicit, layers: [encoder.layer9]}"], "encoder.layer"),
    (["train", SCENES, "--output", "s3://bucket/run"], "`--output` must be a folder, but got s3://bucket/run; mount it (mount-s3, gcsfuse"),
    (["train", SCENES, "--data", "gs://bucket/data"], "`--data` must be a folder, but got gs://bucket/data; mount it"),
    (["search", QUICK, "--output", "s3://bucket"], "`--output` must be a folder, but got s3://bucket; mount it"),
    (["search", QUICK, "--data", "hdfs://host:9000/data"], "`--data` must be a folder, but got hdfs://host:9000/data; mount it"),
    (["doctor", "--address", "auto", "--storage", "s3://bucket/run"], "`--storage` must be a folder, but got s3://bucket/run; mount it"),
    (["train", SCENES, "--workers", "-1"], "`--workers` must be N, or MIN:MAX with 1 <= MIN <= MAX, such as 2 or 1:4, but got '-1'"),
    (["train", SCENES, "--workers", "4:2"], "such as 2 or 1:4, but got '4:2'"),
    (["train", SCENES, "--workers", "two"], "but got 'two'"),
    (["train", SCENES, "--address", "auto"], "`--address` must come with `--workers`"),
    (["train", SCENES, "--workers", "2", "--address", "ray://head:10001"], "submit it instead: ray job submit --address http://head:8265"),
    (["train", SCENES, *SMALL, "--workers", "9"], "`optimizer.batch_size` and the number of training samples must be at least 9"),
    (["search", "none.yaml"], "none.yaml must be a readable file"),
    (["search", SCENES], f"must hold a search, but holds one run (data, method, model, optimizer); use: imachsr train {SCENES}"),
    (["search", QUICK, "optimizer.epochs=2"], "must begin with run., as in run.optimizer.epochs=2"),
    (["search", QUICK, "budgett.trials=2"], "budgett: is no setting; nearest: 'budget'"),
    (["search", QUICK, "--trials", "0"], "`trials >= 1` must hold, but got 0"),
    (["search", QUICK, "--concurrency", "0"], "`concurrency >= 1` must hold, but got 0"),
    (["search", QUICK, "run.optimizer.epochs=2"], "scheduler.grace: must be below optimizer.epochs (2), but got 2"),
    (["search", QUICK, "--wandb", "maybe"], "--wandb must be one of"),
    (["search", QUICK, "--output", "file"], "--output must be a folder, but file is a file"),
    (["search", QUICK, "--output", "training"], "holds another kind of result (checkpoint.pt)"),
    (["search", QUICK, "--output", "none", "--resume"], "--resume must go with a folder to continue in"),
    (["search", ROOT / "search_spaces/camvid.yaml", "--data", "none"], "`data.root` must be CamVid's folder"),
    (["search", QUICK, "run.model.encoder=resnet19"], "'resnet19'; nearest: 'resnet18'"),
    (["report", "none"], "none must be the --output folder of a search, but has no summary.json"),
    (["report", "file"], "file must be the --output folder of a search"),
    (["report", "training"], "holds a single training"),
    (["report", "begun"], "none has yet; try again later"),
    (["export", "none"], "none must be the --output folder of a search"),
    (["export", "search", "--trial", "7"], "--trial must be one of 0, 1, but got 7"),
    (["export", "search", "--out", "file"], "file must not exist yet"),
    (["export", "search", "--out", "file/x.yaml"], "--out must be a file that can be written"),
    (["export", "unfinished"], "must have finished to be exported, but none has"),
    (["evaluate", "none"], "none must hold a checkpoint, but does not; give the --output folder of a training"),
    (["evaluate", "file"], "file must be the --output folder of a training, but is a file"),
    (["evaluate", "training"], "training must hold checkpoints of schema 2, but holds checkpoint.pt of schema 1, made by an older imachsr"),
    (["evaluate", "broken"], "broken/checkpoints must hold a whole checkpoint, but 00000008.json is not JSON; put a copy back, or train again"),
    (["evaluate", "broken", "--which", "lates"], "`which` must be one of latest, best, but got 'lates'; nearest: 'latest'"),
    (["train", SCENES, "--output", "broken"], "broken must be a new folder, but holds a training; give another --output"),
    (["export-model", "broken"], "broken/checkpoints must hold a whole checkpoint, but 00000008.json is not JSON"),
    (["export-model", "search"], "search must be the folder of a training, but holds a search; one trial's is search/trials/0000"),
    (["export-model", "broken", "--format", "onxx"], "--format must be one of state-dict, exported, onnx, but got 'onxx'; nearest: 'onnx'"),
    (
        ["export-model", "broken", "--out", "model.onnx"],
        "--out must end in .pt or .pth for --format state-dict, but got model.onnx; or is --format onnx",
    ),
    (["evaluate", "search"], "search must be the folder of a training, but holds a search; one trial's is search/trials/0000"),
]


@pytest.fixture
def folders(tmp_path: Path) -> None:
    """What a user may point at by mistake."""
    (tmp_path / "file").write_text("x")
    make(tmp_path / "search", [BASELINE, trial(1)], best=1)
    (tmp_path / "search/study.sqlite3").write_bytes(b"")
    make(tmp_path / "unfinished", [trial(0, "FAIL", value=None)], best=None)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/search.yaml").write_text("name: x\n")
    (tmp_path / "training").mkdir()
    (tmp_path / "training/summary.json").write_text('{"schema": 1, "metrics": {}}')
    (tmp_path / "training/checkpoint.pt").write_bytes(b"x")
    (tmp_path / "broken/checkpoints").mkdir(parents=True)
    (tmp_path / "broken/checkpoints/00000008.json").write_bytes(b"not a checkpoint")


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("args", "wording"), MISTAKES, ids=lambda each: " ".join(map(str, each)).replace(f"{ROOT}/", "") if isinstance(each, list) else ""
)
def test_a_mistake_is_one_message(args: list[object], wording: str, run: Cli, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))
    assert wording in one_error(run(*args))
    # Nothing is left that the next try would stumble over.
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "wording"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Missing argument"),
        (["layers", "--encoders", "x"], "No such option: --encoders"),
        (["layers", "--max-taps", "many"], "Invalid value for '--max-taps'"),
        (["layers", "--size", "64"], "--size"),
        (["layers", "--classes", "1"], "greater than or equal to 2"),
        (["audit", "--draws", "1"], "greater than or equal to 2"),
        (["audit", "--threshold", "2"], "less than or equal to 1"),
    ],
)
def test_a_word_that_does_not_exist_is_answered_by_the_usage(args: list[object], wording: str, run: Cli) -> None:
    ran = run(*args)
    assert (ran.code, ran.out) == (2, "")
    assert wording in unboxed(ran.err)
    assert "Traceback" not in ran.err


def test_a_finished_search_is_not_overwritten(searched: tuple[Path, Ran, Ran], run: Cli) -> None:
    folder, *_ = searched
    before = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    assert "must be a new folder, but holds a search" in one_error(run("search", QUICK, *SEARCH, "--output", folder))
    assert {path: path.read_bytes() for path in folder.glob("*") if path.is_file()} == before


def test_a_mistake_has_a_traceback_for_who_asks(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMACHSR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unett"):
        run("layers", "--architecture", "unett")


def test_a_training_that_fails_is_exit_code_1(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "diverging.py").write_text(
        "calls = []\n"
        "def loss(output, labels, ignore_index):\n"
        "    calls.append(1)\n"
        "    return output.mean() * (float('nan') if len(calls) > 3 else 1.0)\n"
    )
    ran = run("train", SCENES, *SMALL, "optimizer.epochs=3", "output_loss.import=diverging:loss", "--output", "out", "--wandb", "disabled")
    assert (ran.code, ran.out) == (1, "")
    assert "failed: " in ran.err
    assert "IMACHSR_TRACEBACK=1 shows where" in ran.err
    assert "Traceback" not in ran.err


def test_a_loss_of_the_users_that_raises_while_training_is_told_with_its_line(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(
        "calls = []\n"
        "def loss(output, labels, ignore_index):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 1:\n"
        "        raise KeyError('second step')\n"
        "    return output.mean()\n"
    )
    ran = run("train", SCENES, *SMALL, "output_loss.import=raising:loss", "--output", "out", "--wandb", "disabled")
    assert (ran.code, ran.out) == (1, "")
    assert "failed: KeyError: 'second step' (raising.py:5)" in ran.err
    assert "Traceback" not in ran.err


# Interrupts, in processes of their own


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command and gives it back once its stderr says something."""
    live: list[subprocess.Popen[str]] = []

    def start(*args: object, until: str) -> subprocess.Popen[str]:
        with (tmp_path / "err").open("w") as err:
            command = [sys.executable, "-m", "imachsr", *map(str, args)]
            found = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True)
        live.append(found)
        deadline = time.monotonic() + 120
        while not re.search(until, (tmp_path / "err").read_text()):
            assert found.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    yield start
    for each in live:
        if each.poll() is None:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()


def test_an_interrupted_training_says_how_it_goes_on(started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    long = [*SMALL[1:], "optimizer.epochs=500"]
    training = started("train", SCENES, *long, "--output", "my out", until=r"epoch 2/500")
    os.kill(training.pid, signal.SIGINT)
    out, _ = training.communicate(timeout=60)
    err = (tmp_path / "err").read_text()
    assert (training.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted"
    (hint,) = [line.removeprefix("to go on: ") for line in err.splitlines() if line.startswith("to go on: ")]
    rows = len((tmp_path / "my out/metrics.jsonl").read_text().splitlines())

    words = hint.replace("imachsr", f"{sys.executable} -m imachsr", 1)
    again = subprocess.Popen(["bash", "-c", f"exec {words}"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert again.stderr
    first = next(line for line in again.stderr if line.startswith("epoch"))
    again.kill()
    again.communicate()
    assert first.startswith(f"epoch {rows + 1}/500")


@pytest.mark.slow
def test_an_interrupted_search_says_how_it_goes_on(started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    given = [*SEARCH[1:], "run.optimizer.epochs=200", "--trials", 3, "--concurrency", 1]
    search = started("search", QUICK, *given, "--output", "out", until=r"epoch 2/200")
    os.kill(search.pid, signal.SIGINT)
    out, _ = search.communicate(timeout=120)
    err = (tmp_path / "err").read_text()
    assert search.returncode == 130
    assert "running" in out
    assert err.splitlines()[-1] == "interrupted"
    assert json.loads((tmp_path / "out/summary.json").read_text())["finished"] is False
    (hint,) = [line.strip() for line in err.splitlines() if line.strip().startswith("imachsr search")]
    words = hint.replace("imachsr", f"{sys.executable} -m imachsr", 1).split(" --resume")[0]
    # The same settings are taken; without --resume the folder is refused.
    again = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert again.returncode == 2
    assert "continue it with --resume" in again.stderr
