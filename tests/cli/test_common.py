from pathlib import Path

import pytest
import yaml

from imachsr.cli.common import again, free, yaml_path


def test_names_that_are_printed_to_go_on_with_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [free(Path("best"), ".yaml"), free(Path("runs/best"))] == [Path("best.yaml"), Path("runs/best")]
    Path("best.yaml").touch()
    Path("best-2.yaml").touch()
    Path("runs/best").mkdir(parents=True)
    assert [free(Path("best"), ".yaml"), free(Path("runs/best"))] == [Path("best-3.yaml"), Path("runs/best-2")]


@pytest.mark.parametrize(
    ("wandb", "project", "options"),
    [
        ("auto", "imachsr", ""),
        ("offline", "imachsr", "--wandb offline "),
        ("disabled", "my streets", "--wandb disabled --wandb-project 'my streets' "),
    ],
)
def test_a_command_to_go_on_with_has_the_options_that_were_given(wandb: str, project: str, options: str) -> None:
    line = again("train", Path("a run.yaml"), ["optimizer.epochs=2"], Path("out"), wandb=wandb, project=project)
    assert line == f"imachsr train 'a run.yaml' optimizer.epochs=2 {options}--output out --resume"


def test_a_path_is_read_as_it_was_written() -> None:
    path = Path('/data #1/a: \u65e5\u672c\u8a9e \U0001f600 "b"/camvid')
    assert yaml.safe_load(yaml_path(path)) == str(path)
