"""What the README says, tried."""

import json
import re
import shlex
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from imachsr.config.load import make_run, parse_yaml
from imachsr.core.entropy import Regularizer
from imachsr.core.losses import SideLoss, parse_side_loss
from imachsr.core.schedules import Profile, Schedule
from imachsr.core.selection import Standard
from imachsr.search.space import draws, make_search
from imachsr.study.load import make_study
from tests.cli.command import Cli
from tests.cli.conftest import run
from tests.launch.commands import check_settings, parse

__all__ = ["run"]  # the fixture

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
README = DOCUMENTS[0].read_text()
MADE_BY_COMMANDS = {
    "data",
    "PATH/TO/prepared",
    "best.yaml",
    "confirmed.yaml",
    "model.pt",
    "model.onnx",
    "runs/ablation",
    "runs/best",
    "runs/camvid",
    "runs/elsewhere",
    "runs/scenes",
    "runs/two",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[str]:
    """Every command line of the README, with placeholders as they stand."""
    return [line for block in blocks("bash") for line in block.splitlines() if line.strip()]


COMMANDS = (
    *("layers", "settings", "train", "evaluate", "search", "watch", "compare", "confirm", "study", "report", "export", "export-model", "doctor"),
    *("wandb sync", "wandb workspace", "data check", "data prepare", "data download"),
)
IMACHSR = [line for line in commands() if line.startswith("imachsr ")]


def test_the_readme_has_blocks_of_every_kind() -> None:
    assert [len(blocks(language)) > 0 for language in ("python", "bash", "yaml")] == [True, True, True]
    assert len(IMACHSR) >= 7
    assert README.count("```") == 2 * len(re.findall(r"^```\w+\n", README, re.M))


@pytest.mark.long
def test_python_blocks_run_one_after_the_other(tmp_path: Path) -> None:
    check = "assert losses.total.item() > 0\nassert len(net.taps) == 3\nassert any(p.grad is not None for p in model.parameters())\n"
    (tmp_path / "readme.py").write_text("\n".join([*blocks("python"), check]))
    found = subprocess.run([sys.executable, "-W", "error::UserWarning", "readme.py"], cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert found.returncode == 0, found.stderr
    # A line for each tap, its address and why; then what the search for one's own function found.
    *taps, best = found.stdout.splitlines()
    assert len(taps) == 3
    assert all("resolution" in line for line in taps)
    assert re.fullmatch(r"\{'lr': 0\.\d+\} 8\.99\d+", best)


@pytest.mark.parametrize("line", IMACHSR)
def test_a_command_is_one_that_the_command_line_takes(line: str) -> None:
    name, params = parse(line)
    if name in ("train", "search", "study") and str(params["config"]) not in MADE_BY_COMMANDS:
        check_settings(name, params, ROOT)
    for key in ("folder", "out", "output"):
        if params.get(key):
            assert str(params[key]) in MADE_BY_COMMANDS


def test_a_command_with_a_slip_would_be_found() -> None:
    with pytest.raises(Exception, match="concurency"):
        parse(next(line for line in IMACHSR if "--concurrency" in line).replace("--concurrency", "--concurency"))


def test_commands_follow_each_other() -> None:
    """What a command reads is in the repository, or was made by one above it."""
    made: set[str] = set()
    for line in IMACHSR:
        name, params = parse(line)
        read = str(params.get("folder") or params.get("config") or "")
        assert not read or (ROOT / read).exists() or read in made, line
        made |= {str(params[key]) for key in ("output", "out") if params.get(key)}
        assert name in COMMANDS


@pytest.mark.long
def test_looking_training_and_evaluating_work_as_written(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    wanted = [
        line
        for line in IMACHSR
        if line.split()[1] in ("layers", "train", "evaluate") and not any(word in line for word in ("best.yaml", "--workers", "--storage"))
    ]
    assert [line.split()[1] for line in wanted] == ["layers", "train", "evaluate", "evaluate"]
    for line in wanted:
        words = shlex.split(line)[1:]
        if words[0] == "train":  # as written, only smaller
            words += ["data.num_train=8", "data.num_val=4", "data.size=[32,32]", "--wandb", "disabled"]
        found = run(*words)
        assert found.code == 0, found.err
        assert found.out
    assert json.loads((tmp_path / "runs/scenes/summary.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("./")])
def test_a_script_is_there_and_its_file_too(line: str) -> None:
    words = shlex.split(line)
    assert (ROOT / words[0]).is_file()
    if len(words) > 1 and words[1] == "submit":
        assert words[1] in (ROOT / words[0]).read_text()
        name, params = parse(shlex.join(["imachsr", "search", *words[2:]]))
        check_settings(name, params, ROOT)


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if "\nspace:" in block])
def test_yaml_blocks_of_a_space_are_a_search(block: str) -> None:
    search = make_search(parse_yaml(block))
    drawn = [excess for _, excess in islice(draws(search, 0), 500)]
    assert {key for excess in drawn for key in excess} == {f"constraints.{index}" for index in range(len(search.constraints))}
    assert {} in drawn


FORMS = re.findall(r"^\| `(.*: \{.*\})` \|", README.partition("### The space")[2].partition("\n## ")[0], re.M)


def test_each_form_of_a_knob_is_taken() -> None:
    assert len(FORMS) >= 6
    for form in FORMS:
        knob = parse_yaml(form)
        if "when" in knob:
            others = {"method.loss": {"choice": ["prototype", "infonce", "dice"]}, "method.alpha": {"float": [0.01, 1]}}
            space = {**others, "optimizer.lr": {"float": [1e-4, 1e-2], **knob}}
        else:
            space = knob
        assert next(draws(make_search({"space": space}), 0))[1] == {}, form


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if "\ncells:" in block])
def test_yaml_blocks_of_cells_are_a_study(block: str) -> None:
    plan = make_study(parse_yaml(block))
    assert set(type(plan).model_fields) - plan.model_fields_set <= {"metric", "budget"}, "the example shows every key"
    told = {field for cell in plan.cells for field in cell.model_fields_set}
    assert told == set(type(plan.cells[0]).model_fields) - {"seeds"}


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if "\nspace:" not in block and "\ncells:" not in block])
def test_yaml_blocks_are_settings_of_a_run(block: str) -> None:
    raw = yaml.safe_load(block)
    run = make_run(raw)
    assert {key for key in raw} <= set(type(run).model_fields)
    for key, part in raw.items():
        made = getattr(run, key)
        assert made.path == part["import"] if "import" in part else made.kind == part["kind"]


def paths(text: str) -> set[str]:
    """Links to files, and file names in backticks that lie in a folder of the project."""
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"\w+:", link)}
    folders = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    named = {name for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", text) if not name.startswith("runs/")}
    return linked | named | {name for name in re.findall(r"`([\w-]+\.(?:yaml|lock|toml))`", text) if name not in MADE_BY_COMMANDS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    found = paths(document.read_text())
    assert len(found) >= 5
    assert [name for name in sorted(found) if not (ROOT / name).exists()] == []


def test_the_table_of_one_batch_names_files_in_the_order_in_which_they_are_used() -> None:
    section = README.partition("## Follow one batch")[2].partition("\n## ")[0]
    named = re.findall(r"`(imachsr/[\w/]+\.py)`", section)
    assert len(named) >= 10
    assert all((ROOT / name).is_file() for name in named)


def rows_of(head: str) -> list[list[str]]:
    table = README.partition(f"| {head} ")[2].partition("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(("head", "union"), [("standard | takes", Standard), ("loss | family", SideLoss), ("entropy | of", Regularizer)])
def test_the_tables_list_all_that_can_be_chosen(head: str, union: Any) -> None:
    assert sorted(row[0] for row in rows_of(head)) == sorted(member.kind for member in get_args(union))


def test_the_tables_say_what_the_code_does() -> None:
    for kind, family, *_ in rows_of("loss | family"):
        assert parse_side_loss(kind).family == family
    for kind, _, given, _ in rows_of("loss | family"):
        assert (given == "class probabilities") == bool(getattr(parse_side_loss(kind), "gives_scores", False)), kind
    for kind, _, falls_back in rows_of("standard | takes"):
        if falls_back and falls_back != "error":
            member = next(member for member in get_args(Standard) if member.kind == kind)
            assert f"Falls back to {falls_back}" in member.__doc__ or f"falls back to {falls_back}" in member.__doc__, kind


def test_names_of_profiles_and_schedules_are_right() -> None:
    section = README.partition("### Weights")[2].partition("\n### ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    assert named >= {*get_args(Profile), *(member.kind for member in get_args(Schedule))}


def test_the_defaults_that_are_named_are_those() -> None:
    method = make_run({}).method
    (line,) = [line for line in README.splitlines() if line.startswith("* **Begin with the defaults**")]
    assert re.findall(r"`([^`]+)`", line)[:5] == [
        method.standard.kind,
        method.loss.kind,
        method.entropy.kind if method.entropy else "null",
        f"alpha={method.alpha}",
        f"beta={method.beta}",
    ]


def test_claims_about_cluster_commands_name_what_the_script_takes() -> None:
    script = (ROOT / "launch/cluster.sh").read_text()
    for action in re.findall(r"^\./launch/cluster\.sh (\w+)", README, re.M):
        assert re.search(rf"^    {action}\) ", script, re.M)
