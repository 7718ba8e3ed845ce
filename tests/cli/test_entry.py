import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from imachsr import cli
from tests.cli.command import COMMANDS, ROOT, Cli, unboxed


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
    for parameter in typer.main.get_group(cli.app).commands[name].params:
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
        ("layers", ["unet", "resnet18", "auto", "7 with auto, else 3", "uniform", "that of the data"]),
        ("train", ["runs/NAME"]),
        ("search", ["runs/NAME", "that of the file"]),
        ("export", ["the best finished one"]),
    ],
)
def test_defaults_that_depend_on_something_are_told_too(name: str, defaults: list[str], run: Cli) -> None:
    text = unboxed(run(name, "--help").out)
    for default in defaults:
        assert f"[default: ({default})]" in text


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


@pytest.mark.long
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


def test_a_mistake_has_a_traceback_for_who_asks(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMACHSR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unett"):
        run("layers", "--architecture", "unett")
