from pathlib import Path

import pytest
import yaml

from imachsr.cli.options import again, yaml_path


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


def test_a_path_that_is_plain_stays_so() -> None:
    assert yaml_path(Path("/data/Cam-Vid_11.v2/x+y")) == "/data/Cam-Vid_11.v2/x+y"
    for name in ("/a b", "/a#b", "/a: b", "/\u00e4"):
        assert yaml.safe_load(yaml_path(Path(name))) == name
        assert yaml_path(Path(name)) == f'"{name}"'
