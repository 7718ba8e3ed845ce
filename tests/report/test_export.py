import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from imachsr.config import ConfigError, load_run
from imachsr.report.export import export
from tests.report.folders import BASELINE, make, trial

TRIALS = [BASELINE, trial(1, "PRUNED", epochs=2, value=25.0), trial(2, value=35.0, difference=5.0, seed=3), trial(3, "FAIL", value=None, epochs=0)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "s", TRIALS, best=2)


def test_the_best_trial_is_exported_as_it_ran_but_for_its_threads(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "best.yaml"
    assert export(folder, out).trial == 2
    ran, exported = load_run(folder / "trials" / "0002" / "run.yaml"), load_run(out)
    assert ran.compute.threads == 2
    assert exported.compute.threads is None
    assert exported.model_copy(update={"compute": ran.compute}) == ran
    assert (exported.seed, exported.method.alpha) == (3, pytest.approx(0.3))


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_any_trial_can_be_exported(number: int, folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path / "x.yaml", trial=number).trial == number
    assert load_run(tmp_path / "x.yaml").name == f"streets-{number:04d}"


def test_the_file_says_where_it_comes_from(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "x.yaml")
    first, second = (tmp_path / "x.yaml").read_text().splitlines()[:2]
    assert first == "# Trial 2 of search 'streets': select/miou 35.00 after 4 epochs, +5.00 against the output-only baseline."
    assert "a candidate, not a finding" in second


def provenance(path: Path) -> Any:
    """What a file's comments say, read as the YAML that it is."""
    comments = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    return yaml.safe_load("\n".join(comments[comments.index("provenance:") :]))["provenance"]


def test_the_comments_hold_all_that_a_program_needs(folder: Path, tmp_path: Path) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": {"train": "0123456789abcdef"}}))
    written = export(folder, tmp_path / "x.yaml")
    found = provenance(tmp_path / "x.yaml")
    assert found == written.provenance
    revisions = found.pop("revisions")
    assert found == {
        "search": "streets",
        "trial": 2,
        "arm": None,
        "seed": 3,
        "seeds": [3],
        "metric": "select/miou",
        "value": 35.0,
        "difference": 5.0,
        "epochs": 4,
        "confirmed": None,
        "expected": None,
        "data": {"train": "0123456789abcdef"},
        "versions": {"imachsr": "0.1.0", "torch": "2.14.1"},
    }
    assert revisions["when"] == "export"
    assert {"imachsr", "folder"} < set(revisions)


CONFIGURATIONS = [
    {
        "name": "baseline",
        "trial": None,
        "mean": 28.0,
        "expected": [26.5, 29.5],
        "verdict": "baseline",
        "words": "baseline: 28.00 in the mean of 8 runs",
    },
    {
        "name": "trial-0001",
        "trial": 1,
        "mean": 31.0,
        "expected": [29.123456, 32.876544],
        "difference": 3.0,
        "interval": [2.0, 4.0],
        "p": 0.0078125,
        "p_holm": 0.015625,
        "verdict": "better",
        "words": "trial-0001: better than baseline:\n+3.00 points",
    },
]


def confirmed(folder: Path, **given: Any) -> Path:
    """A folder whose search was confirmed; the search's own best was not among the best then."""
    found = {
        "schema": 1,
        "confirmed": "val/miou",
        "epochs": 9,
        "seeds": [1000, 1001],
        "configurations": CONFIGURATIONS,
        "best": "trial-0001",
        "revisions": {"imachsr": "a" * 40, "folder": None},
        **given,
    }
    summary = json.loads((folder / "summary.json").read_text())
    summary["trials"][1]["state"] = "COMPLETE"
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "confirm").mkdir()
    (folder / "confirm/confirm.json").write_text(json.dumps(found))
    return folder


def test_a_configuration_with_epochs_of_its_own_is_exported_as_it_was_confirmed(folder: Path, tmp_path: Path) -> None:
    """Not with those of the base run, and not with the fidelity of the search."""
    configurations = [{**each, "length": {"epochs": 28, "progressive": None}} for each in CONFIGURATIONS]
    export(confirmed(folder, configurations=configurations), tmp_path / "x.yaml")
    assert load_run(tmp_path / "x.yaml").optimizer.epochs == 28
    assert load_run(tmp_path / "x.yaml").optimizer.progressive is None
    assert provenance(tmp_path / "x.yaml")["confirmed"]["epochs"] == 28
    assert "28 epochs" in (tmp_path / "x.yaml").read_text()


def test_a_confirmed_search_gives_its_confirmed_best_with_the_interval_of_one_more_run(folder: Path, tmp_path: Path) -> None:
    written = export(confirmed(folder), tmp_path / "x.yaml")
    assert written.trial == 1
    found = provenance(tmp_path / "x.yaml")
    assert found["confirmed"] == {
        "metric": "val/miou",
        "epochs": 9,
        "seeds": [1000, 1001],
        "mean": 31.0,
        "difference": 3.0,
        "interval": [2.0, 4.0],
        "p": 0.0078125,
        "p_holm": 0.015625,
        "verdict": "better",
    }
    assert found["expected"] == {"metric": "val/miou", "low": 29.123456, "high": 32.876544, "what": "95 % prediction interval of one more run"}
    assert found["revisions"] == {"when": "confirmation", "imachsr": "a" * 40, "folder": None}
    # What was confirmed is what is trained.
    assert load_run(tmp_path / "x.yaml").optimizer.epochs == 9
    text = (tmp_path / "x.yaml").read_text()
    assert "a candidate" not in text
    assert "# Training this file is expected to end with val/miou from 29.12 to 32.88: the 95 % prediction interval of one more run" in text


def test_an_arm_is_exported_as_the_trial_of_its_first_seed(folder: Path, tmp_path: Path) -> None:
    assert export(confirmed(folder, best="baseline"), tmp_path / "x.yaml").trial == 0
    assert provenance(tmp_path / "x.yaml")["expected"]["low"] == 26.5


def test_a_trial_that_was_not_confirmed_says_so_and_promises_nothing(folder: Path, tmp_path: Path) -> None:
    export(confirmed(folder), tmp_path / "x.yaml", trial=2)
    assert (
        "a candidate, not a finding. Training this file uses all of train and scores on val. It was not among those that were confirmed.\n"
        in (tmp_path / "x.yaml").read_text()
    )
    found = provenance(tmp_path / "x.yaml")
    assert (found["confirmed"], found["expected"]) == (None, None)
    assert load_run(tmp_path / "x.yaml").optimizer.epochs == load_run(folder / "trials/0002/run.yaml").optimizer.epochs


@pytest.mark.parametrize(
    ("text", "wording"), [("{", "confirm.json must be JSON"), ("[]", "must have schema 1"), ('{"schema": 2}', "must have schema 1")]
)
def test_a_broken_confirmation_is_not_passed_over(text: str, wording: str, folder: Path, tmp_path: Path) -> None:
    (confirmed(folder) / "confirm/confirm.json").write_text(text)
    with pytest.raises(ConfigError, match=wording):
        export(folder, tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_a_trial_without_a_value_says_so(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "x.yaml", trial=3)
    assert (tmp_path / "x.yaml").read_text().startswith("# Trial 3 of search 'streets': no value.\n")


@pytest.mark.parametrize("name", ["two\nlines", "- {x: [", "'", "Straße"])
def test_a_searchs_name_cannot_break_the_file(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", TRIALS, best=2, name=name)
    export(folder, tmp_path / "x.yaml")
    assert yaml.safe_load((tmp_path / "x.yaml").read_text(encoding="utf-8"))["name"] == "streets-0002"


def test_no_file_is_overwritten(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("precious")
    with pytest.raises(ConfigError, match="mine.yaml must not exist yet, but does; give another --out"):
        export(folder, out)
    assert out.read_text() == "precious"


@pytest.mark.parametrize("number", [4, -1])
def test_an_unknown_trial_is_answered_with_the_known_ones(number: int, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--trial must be one of 0, 1, 2, 3, but got {number}"):
        export(folder, tmp_path / "x.yaml", trial=number)
    assert not (tmp_path / "x.yaml").exists()


def test_without_a_finished_trial_there_is_no_best(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", [trial(0, "FAIL", value=None)], best=None)
    with pytest.raises(ConfigError, match="must have finished to be exported, but none has"):
        export(folder, tmp_path / "x.yaml")


def test_a_trial_that_never_trained_has_nothing_to_export(folder: Path, tmp_path: Path) -> None:
    (folder / "trials" / "0002" / "run.yaml").unlink()
    with pytest.raises(ConfigError, match=r"0002/run.yaml must be a readable file"):
        export(folder, tmp_path / "x.yaml")


@pytest.mark.parametrize("text", ["", "optimizer: {epochs: 0}", "other: 1", "compute: 3", "[1", "- 1", "name: half"])
def test_a_run_that_was_tampered_with_is_refused(text: str, folder: Path, tmp_path: Path) -> None:
    (folder / "trials" / "0002" / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        export(folder, tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_a_place_that_cannot_be_written_is_the_users_mistake(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--out must be a file that can be written"):
        export(folder, tmp_path / "file" / "x.yaml")


def test_an_arm_of_several_seeds_says_its_mean(tmp_path: Path) -> None:
    trials = [
        trial(number, arm=arm, seed=seed, value=value, difference=value - 30.0)
        for number, (arm, seed, value) in enumerate([("b", 0, 30.0), ("b", 1, 30.0), ("c", 0, 36.0), ("c", 1, 31.0)])
    ]
    export(make(tmp_path / "s", trials, best=2), tmp_path / "x.yaml")
    lines = (tmp_path / "x.yaml").read_text().splitlines()
    assert lines[1] == "# Its arm, c: 33.50 over 2 seeds, +3.50 paired (+6.00, +1.00)."
    assert lines[2].startswith("# 2 seeds on the selection split: a candidate, not a finding.")


@pytest.mark.parametrize(("base", "device"), [("{}", "auto"), ("{compute: {device: cuda}}", "cuda")])
def test_a_trials_share_of_the_machine_is_not_exported(base: str, device: str, folder: Path, tmp_path: Path) -> None:
    path = folder / "trials/0002/run.yaml"
    path.write_text(path.read_text().replace("device: auto", "device: cpu"))  # as trials run that reserve no GPU
    assert load_run(path).compute.device == "cpu"
    (folder / "search.yaml").write_text(f"run: {base}\n")
    export(folder, tmp_path / "x.yaml")
    assert load_run(tmp_path / "x.yaml").compute.device == device


def test_a_broken_write_leaves_no_half_a_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        export(folder, tmp_path / "out" / "x.yaml")
    assert list((tmp_path / "out").iterdir()) == []
