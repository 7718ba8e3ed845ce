import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imachsr.cli.confirming import confirm_search
from imachsr.cli.failures import failed_trials, failure_of
from imachsr.cli.search import _resumed
from imachsr.config import load_run
from imachsr.config.folder import lock
from imachsr.config.load import dump_yaml
from imachsr.search.space import load_search, search_to_dict
from imachsr.search.space.rules import Confirm
from tests.cli.command import QUICK, SEARCH, Cli, Ran, one_error, process
from tests.report.folders import BASELINE, make, trial


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran, Ran]:
    """A search of two trials, and the same continued to three; what both commands said."""
    at = tmp_path_factory.mktemp("search")
    given = [QUICK, *SEARCH, "--concurrency", 1, "--output", "out"]
    first = process("search", *given, "--trials", 2, "--json", cwd=at)
    return at / "out", first, process("search", "--resume", "out", "--extend", 1, cwd=at)


FAILING = """run:
  data: {kind: scenes, size: [32, 32], num_train: 16}
  model: {import: "broken:make"}
  optimizer: {epochs: 2, batch_size: 4}
space: {method.alpha: {float: [0.1, 1.0]}}
scheduler: {kind: none}
selection: {blocks: 2, guard: 0}
budget: {trials: 2, concurrency: 1}
"""


@pytest.mark.slow
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
    own = "my out/trials/0000"
    assert (
        ran.err.splitlines()[-1] == "failed: the baseline, trial 0 (baseline: alpha 0, beta 0): "
        f"KeyError: 'a fault' (in full: {own}/error.txt; by itself: imachsr train '{own}/run.yaml')"
    )
    assert "broken.py" in (tmp_path / "my out/trials/0000/error.txt").read_text()
    assert "imachsr export" not in ran.err
    assert "imachsr report 'my out'" in ran.err


def test_only_a_search_that_can_be_compared_has_succeeded() -> None:
    failed = trial(1, "FAIL", value=None, error="no")
    assert failure_of({"trials": [BASELINE, failed], "baseline": 0, "best": 0}, Path("x")) == ""
    whole = {"trials": [trial(0, "FAIL", value=None, error="no"), trial(1)], "baseline": 0, "best": 1}
    assert (
        failure_of(whole, Path("x")) == "the baseline, trial 0 (loss dice, alpha 0.1, lr 0.001): no "
        "(in full: x/trials/0000/error.txt; by itself: imachsr train x/trials/0000/run.yaml)"
    )
    assert failure_of({"trials": [], "baseline": 0, "best": None}, Path("x")) == ""  # interrupted at once
    cut = {**BASELINE, "state": "PRUNED", "epochs": 1}
    capped = {"trials": [cut], "baseline": 0, "best": None, "finished": True, "ended_early": "budget.hours=0.002 is reached", "max_epochs": 4}
    assert failure_of(capped, Path("x")) == (
        "the baseline, trial 0, was stopped after 1 of 4 epochs (budget.hours=0.002 is reached), so that there is nothing to compare with; "
        "search again in a new folder with a larger budget"
    )
    assert failure_of({**capped, "finished": False}, Path("x")) == ""
    assert failure_of({**capped, "trials": [{**cut, "number": 1}], "baseline": None}, Path("x")) == "no trial finished"
    beyond = {**trial(0, "PRUNED", value=None, epochs=0), "feasible": False, "why": "infeasible: limits.memory_mib=1, but a trial would take 2"}
    told = "is infeasible: limits.memory_mib=1, but a trial would take 2"
    assert failure_of({"trials": [beyond, trial(1)], "baseline": 0, "best": 1}, Path("x")).startswith(
        f"the baseline, trial 0, {told}; raise the limit"
    )
    assert failure_of({"trials": [beyond], "baseline": None, "best": None}, Path("x")) == f"no trial finished; trial 0 {told}"
    assert failure_of({"trials": [BASELINE, {**beyond, "number": 1}], "baseline": 0, "best": 0}, Path("x")) == ""


def test_failed_trials_are_told_with_their_settings_logs_and_how_to_run_one_alone() -> None:
    arm = trial(1, "FAIL", arm="strong", value=None, error="KeyError: 'x'", params={})
    sampled = trial(2, "FAIL", value=None, error="select/miou must be finite, but got nan at epoch 1", params={"method.loss": "dice"})
    assert failed_trials({"trials": [BASELINE, arm, sampled]}, Path("my out")) == [
        "2 of 3 trials failed:",
        "  trial 1 (strong): KeyError: 'x' (in full: my out/trials/0001/error.txt; by itself: imachsr train 'my out/trials/0001/run.yaml')",
        "  trial 2 (loss dice): select/miou must be finite, but got nan at epoch 1 (in full: my out/trials/0002/error.txt; "
        "by itself: imachsr train 'my out/trials/0002/run.yaml')",
    ]
    many = failed_trials({"trials": [trial(number, "FAIL", error="no") for number in range(9)]}, Path("out"))
    assert (many[0], len(many), many[-1]) == ("9 of 9 trials failed:", 7, "  and 4 more, each with its error.txt in out/trials")
    assert failed_trials({"trials": [BASELINE]}, Path("out")) == []


def test_a_report_of_several_seeds_shows_their_means(run: Cli, tmp_path: Path) -> None:
    trials = [
        trial(number, arm=arm, seed=seed, value=value, difference=value - 30.0)
        for number, (arm, seed, value) in enumerate([("b", 0, 30.0), ("b", 1, 30.0), ("c", 0, 36.0), ("c", 1, 31.0)])
    ]
    make(tmp_path / "s", trials, best=2)
    assert "+6.00, +1.00" in run("report", "s").out
    found = json.loads(run("report", "s", "--json").out)
    assert [(arm["name"], arm["mean"], arm["difference"]) for arm in found["arms"]] == [("b", 30.0, 0.0), ("c", 33.5, 3.5)]


@pytest.mark.long
def test_search_prints_one_json_document_and_its_progress_elsewhere(searched: tuple[Path, Ran, Ran]) -> None:
    folder, ran, _ = searched
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (len(found["trials"]), found["finished"], found["output"]) == (2, True, "out")
    assert found["trials"][0]["arm"] == "baseline"
    assert (folder.parent / found["report"]).exists()
    lines = ran.err.splitlines()
    assert lines[0] == "search quickstart: 2 trials of up to 2 epochs"
    assert any(line.startswith("1 trials at a time: the cluster holds") for line in lines)
    assert "trial 0 (baseline): running, epoch 0/2" in lines
    assert re.search(r"^trial 0 \(baseline\): finished, epoch 2/2  select/miou \d", ran.err, re.M)
    assert "\x1b" not in ran.err


@pytest.mark.long
def test_a_search_that_is_continued_ends_with_a_table_and_commands_that_work(searched: tuple[Path, Ran, Ran], run: Cli) -> None:
    folder, first, ran = searched
    assert ran.code == 0, ran.err
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["trials"][:2] == [
        {**old, "wall_s": new["wall_s"], "cost": new["cost"]} for old, new in zip(json.loads(first.out)["trials"], summary["trials"], strict=False)
    ]
    assert len(summary["trials"]) == 3
    shown = [line.split("│")[1].strip() for line in ran.out.splitlines() if line.startswith("│")]
    assert sorted(number for number in shown if number) == ["0", "1", "2"]
    assert "report: out/report.html" in ran.out
    hints = [line.strip() for line in ran.err.splitlines() if line.startswith("  ")]
    assert hints[1:] == [
        f"imachsr wandb sync {folder}",
        "W&B: the dashboard's specification is out/wandb-workspace.json; once the runs are online: imachsr wandb workspace out",
        "imachsr report out",
        "imachsr export out --out best.yaml",
        "imachsr train best.yaml --output runs/best",
    ]


@pytest.mark.long
def test_a_search_leaves_one_wandb_run_a_trial(searched: tuple[Path, Ran, Ran]) -> None:
    from tests.tracking import records

    folder, *_ = searched
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    found = {}
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        held = records.records(path)
        if records.of(held, "run")[0].job_type != "search":
            found[records.config(held)["trial"]] = held
    assert sorted(found) == [0, 1, 2]
    assert len({records.of(held, "run")[0].run_group for held in found.values()}) == 1
    for each in summary["trials"]:
        held = found[each["number"]]
        assert records.of(held, "run")[0].job_type == ("trial" if each["number"] else "baseline")
        values = [row["select/miou"] for row in rows if row["trial"] == each["number"]]
        assert [row["select/miou"] for row in records.rows(held)] == pytest.approx(values)
        assert len(values) == each["epochs"]


@pytest.mark.long
def test_report_reads_what_the_search_wrote(searched: tuple[Path, Ran, Ran], run: Cli) -> None:
    folder, *_ = searched
    found = json.loads(run("report", folder, "--json").out)
    summary = json.loads((folder / "summary.json").read_text())
    assert {key: found[key] for key in summary} == summary
    assert [row["number"] for row in found["rows"]][0] == 0
    assert sorted(row["number"] for row in found["rows"]) == [0, 1, 2]
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    assert "select/miou of the last epoch" in run("report", folder).out


@pytest.mark.long
def test_what_is_exported_trains_as_written(searched: tuple[Path, Ran, Ran], run: Cli, tmp_path: Path) -> None:
    folder, *_ = searched
    ran = run("export", folder)
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert (ran.code, ran.out, ran.err) == (0, f"trial {best} in best.yaml\n", "imachsr train best.yaml\n")
    assert "must not exist yet" in one_error(run("export", folder))
    found = json.loads(run("export", folder, "--trial", 1, "--out", "one.yaml", "--json").out)
    assert (found["trial"], found["out"], found["provenance"]["trial"]) == (1, "one.yaml", 1)
    ran = run("train", "best.yaml", "--wandb", "disabled", "data.num_val=4")
    assert ran.code == 0, ran.err
    name = load_run(tmp_path / "best.yaml").name
    assert list((tmp_path / "runs" / name / "checkpoints").glob("*.pt"))


def test_a_report_can_be_had_while_a_search_runs(run: Cli, tmp_path: Path) -> None:
    make(tmp_path / "s", [BASELINE, trial(1, "RUNNING", epochs=1, value=5.0)], best=0, finished=False)
    with lock(tmp_path / "s"):
        ran = run("report", "s")
    assert ran.code == 0
    assert re.search(r"1 │ +5.00 │ +│ +1/4 │ running", ran.out)
    assert re.search(r"1 │ +5.00 │ +│ +1/4 │ broken off", run("report", "s").out)


def test_a_message_with_brackets_is_no_markup(run: Cli, tmp_path: Path) -> None:
    make(tmp_path / "[/s]", [BASELINE, trial(1, "FAIL", value=None, error="[/data] is no folder")], best=0)
    ran = run("report", "[/s]")
    assert ran.code == 0
    assert "[/data] is no folder" in ran.out
    assert "report: [/s]/report.html" in ran.out


@pytest.mark.long
def test_a_finished_search_is_not_overwritten(searched: tuple[Path, Ran, Ran], run: Cli) -> None:
    folder, *_ = searched
    before = {path: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    assert "must be a new folder, but holds a search" in one_error(run("search", QUICK, *SEARCH, "--output", folder))
    assert {path: path.read_bytes() for path in folder.glob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_search_says_how_it_goes_on(number: int, code: int, started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    given = [*SEARCH[1:], "run.optimizer.epochs=200", "--trials", 3, "--concurrency", 1]
    search = started("search", QUICK, *given, "--output", "out", until=r"epoch 2/200")
    os.kill(search.pid, number)
    out, _ = search.communicate(timeout=120)
    err = (tmp_path / "err").read_text()
    assert search.returncode == code, err
    assert "running" in out
    assert err.splitlines()[-1] == "interrupted"
    assert json.loads((tmp_path / "out/summary.json").read_text())["finished"] is False
    (hint,) = [line.strip() for line in err.splitlines() if line.strip().startswith("imachsr search")]
    # As it stands it goes on, and is interrupted again.
    words = hint.replace("imachsr", f"exec {sys.executable} -m imachsr", 1)
    with (tmp_path / "again").open("w") as said:
        again = subprocess.Popen(["bash", "-c", words], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=said)
    end = time.monotonic() + 120
    while "epoch 3/200" not in (tmp_path / "again").read_text() and time.monotonic() < end:
        time.sleep(0.5)
    again.send_signal(number)
    assert again.wait(timeout=120) == code, (tmp_path / "again").read_text()


@pytest.mark.slow
def test_interrupted_twice_a_search_ends_at_once_and_goes_on_all_the_same(started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    given = [*SEARCH[1:], "run.optimizer.epochs=40", "--trials", 3, "--concurrency", 2, "scheduler.kind=none", "--wandb", "disabled"]
    search = started("search", QUICK, *given, "--output", "out", until=r"epoch 2/40")
    os.kill(search.pid, signal.SIGINT)
    time.sleep(0.3)
    os.kill(search.pid, signal.SIGINT)
    began = time.monotonic()
    search.communicate(timeout=60)
    assert time.monotonic() - began < 15
    assert search.returncode == 130
    assert (tmp_path / "err").read_text().splitlines()[-1] == "interrupted"
    before = (tmp_path / "out/trials.jsonl").read_text()
    resumed = process("search", "--resume", "out", "--wandb", "disabled", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert [trial["state"] for trial in json.loads(resumed.out)["trials"]] == ["COMPLETE"] * 3
    lines = [json.loads(line) for line in (tmp_path / "out/trials.jsonl").read_text().splitlines()]
    assert (tmp_path / "out/trials.jsonl").read_text().startswith(before)
    assert len({(line["trial"], line["epoch"]) for line in lines}) == len(lines) == 3 * 40


def test_a_search_is_continued_by_so_many_more_or_to_so_many_in_all(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/search.yaml").write_text(dump_yaml(search_to_dict(load_search(QUICK))))
    (tmp_path / "out/study.sqlite3").touch()
    told = one_error(run("search", "--resume", "out", "--extend", 2, "--trials", 9))
    assert "--extend and --trials must not be given together: so many more trials, or so many in all" in told
    assert "scheduler.grace would change; only budget.* and confirm.* may" in one_error(run("search", "--resume", "out", "scheduler.grace=1"))
    assert "out/search.yaml" in one_error(run("search", QUICK, "--resume", "out"))
    assert "--output must be left out with --resume" in one_error(run("search", "--resume", "out", "--output", "x"))


@pytest.mark.slow
def test_a_search_in_a_database_of_the_user_s_is_continued_and_teaches_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    given = [QUICK, *SEARCH, "--concurrency", 2, "--wandb", "disabled"]
    first = process("search", *given, "--trials", 3, "--output", "out", "--study", url, cwd=tmp_path)
    assert first.code == 0, first.err
    assert not (tmp_path / "out/study.sqlite3").exists()
    refused = process("search", "--resume", "out", "--extend", 1, cwd=tmp_path)
    assert "the study of out is in a database: give --study with its URL" in one_error(refused)
    more = process("search", "--resume", "out", "--extend", 1, "--study", url, "--wandb", "disabled", "--json", cwd=tmp_path)
    assert more.code == 0, more.err
    assert [each["number"] for each in json.loads(more.out)["trials"]] == [0, 1, 2, 3]
    taught = process("search", *given, "--trials", 3, "--output", "old", cwd=tmp_path)
    assert taught.code == 0, taught.err
    new = process("search", *given, "--trials", 2, "--output", "new", "--warm-start", "old", cwd=tmp_path)
    assert new.code == 0, new.err
    assert "old: the sampler starts from 2 trials" in new.err


def test_too_few_seeds_for_a_confirmation_are_refused_before_the_search(run: Cli, tmp_path: Path) -> None:
    told = one_error(run("search", QUICK, *SEARCH, "--output", "out", "confirm.seeds=6"))
    assert "confirm.seeds: `2 / 2^seeds x comparisons <= 0.05` must hold, but 6 seeds and " in told
    assert "nothing could win, however large the gain; set 8" in told or "; set 7" in told
    assert "confirm: must be left out with score_on val" in one_error(
        run("search", QUICK, *SEARCH, "score_on=val", "--confirm", "metric.name=val/miou")
    )
    assert not (tmp_path / "out").exists()


def test_the_option_keeps_what_the_file_says_of_a_confirmation(run: Cli, tmp_path: Path) -> None:
    """Read from what is refused: 12 configurations with the file's seeds, 3 with its own."""
    said = Path(QUICK).read_text()
    (tmp_path / "own.yaml").write_text(f"{said}\nconfirm: {{top: 12, seeds: 4}}\n")
    (tmp_path / "half.yaml").write_text(f"{said}\nconfirm: {{seeds: 3}}\n")
    assert "(12 configurations and " in one_error(run("search", "own.yaml", *SEARCH, "--confirm", "--output", "out"))
    assert "(3 configurations and " in one_error(run("search", "half.yaml", *SEARCH, "--confirm", "--output", "out"))
    assert "(2 configurations and " in one_error(run("search", "own.yaml", *SEARCH, "--confirm", "confirm.top=2", "--output", "out"))
    assert "--confirm and confirm=null must not be given together" in one_error(run("search", QUICK, "--confirm", "confirm=null"))


def test_a_finished_search_is_confirmed_when_it_is_continued_so(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    held = search_to_dict(load_search(QUICK))
    (tmp_path / "out/search.yaml").write_text(dump_yaml({**held, "seeds": [0, 1]}))
    (tmp_path / "out/study.sqlite3").touch()
    assert "confirm.seeds: `2 / 2^seeds" in one_error(run("search", "--resume", "out", "--confirm", "confirm.seeds=2"))
    found, given = _resumed(tmp_path / "out", None, [], None, confirm=True)
    assert found.confirm == Confirm()
    assert given == ["confirm.top=3"]
    assert _resumed(tmp_path / "out", None, [], None, confirm=False)[0].confirm is None


def test_a_search_with_nothing_to_confirm_keeps_its_own_result(tmp_path: Path) -> None:
    failed = trial(1, "FAIL", value=None, error="no")
    make(tmp_path / "s", [BASELINE, failed], best=0)
    (tmp_path / "s/search.yaml").write_text(dump_yaml(search_to_dict(load_search(QUICK))))
    summary = json.loads((tmp_path / "s/summary.json").read_text())
    found, why, lines = confirm_search(tmp_path / "s", summary, Confirm(), wandb="disabled", project="x", style="quiet")
    assert (found, lines) == (None, [])
    assert why.startswith("the confirmation: a sampled trial must have finished, or an arm must stand beside the baseline")
    assert not (tmp_path / "s/confirm").exists()


HALF = """run:
  data: {kind: scenes, size: [32, 32], num_train: 16, num_val: 4}
  model: {import: "half:make", is_bad: false}
  optimizer: {epochs: 2, batch_size: 4}
space: {model.is_bad: {choice: [true]}, method.alpha: {float: [0.1, 1.0]}}
scheduler: {kind: none}
selection: {blocks: 2, guard: 0}
budget: {trials: 3, concurrency: 2}
"""


@pytest.mark.slow
def test_a_search_whose_sampled_trials_all_failed_is_told_whole_and_not_confirmed(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "from torch import nn\n"
        "class Model(nn.Sequential):\n"
        "    is_bad = False\n"
        "    def forward(self, x):\n"
        "        if self.is_bad and self.training and len(x) == 4:\n"
        "            raise KeyError('a fault')\n"
        "        return super().forward(x)\n"
        "def make(num_classes, is_bad):\n"
        "    model = Model(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))\n"
        "    model.is_bad = is_bad\n"
        "    return model\n"
    )
    (tmp_path / "half.yaml").write_text(HALF)
    ran = process("search", "half.yaml", "--output", "out", "--wandb", "disabled", "--confirm", "--json", cwd=tmp_path)
    assert ran.code == 1, ran.err
    found = json.loads(ran.out)
    assert [each["state"] for each in found["trials"]] == ["COMPLETE", "FAIL", "FAIL"]
    assert (found["finished"], found["confirm"]) == (True, None)
    assert ran.err.splitlines()[-1].startswith("failed: the confirmation: a sampled trial must have finished")


@pytest.mark.slow
def test_a_confirmation_that_is_interrupted_leaves_the_result_of_the_search(started: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    given = [QUICK, *SEARCH, "--trials", 3, "--concurrency", 1, "--output", "out", "--wandb", "disabled", "run.data.num_val=4", "scheduler.kind=none"]
    searching = started(
        "search", *given, "confirm.top=1", "confirm.seeds=6", "--json-lines", until=r"confirming quickstart: trial-000\d against .*\n(.*\n)*"
    )
    out: list[str] = []
    assert searching.stdout is not None
    for line in searching.stdout:
        out.append(line)
        if json.loads(line)["event"] == "confirmation":
            os.kill(searching.pid, signal.SIGINT)
            break
    rest, _ = searching.communicate(timeout=120)
    assert searching.returncode == 130
    events = [json.loads(line) for line in [*out, *rest.splitlines()]]
    assert {each["number"] for each in events if each["event"] == "trial"} == {0, 1, 2}
    assert (events[-1]["event"], events[-1]["finished"], events[-1]["confirm"]) == ("summary", True, None)
    assert (tmp_path / "out/confirm/plan.json").exists()
    assert not (tmp_path / "out/confirm/confirm.json").exists()


@pytest.mark.slow
def test_a_search_confirms_itself_and_goes_on_with_that_when_it_was_killed(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    given = [QUICK, *SEARCH, "--trials", 3, "--concurrency", 1, "--output", "out", "--wandb", "disabled", "run.data.num_val=4", "scheduler.kind=none"]
    searching = started(
        "search", *given, "confirm.top=1", "confirm.seeds=6", until=r"confirming quickstart: trial-000\d against .*\n(.*\n)*.*running, epoch 1/2"
    )
    searching.send_signal(signal.SIGKILL)
    searching.wait()
    assert json.loads((tmp_path / "out/summary.json").read_text())["finished"]
    assert not (tmp_path / "out/confirm/confirm.json").exists()
    before = (tmp_path / "out/trials.jsonl").read_text()
    resumed = process("search", "--resume", "out", "--wandb", "disabled", "--json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    found = json.loads(resumed.out)
    assert (tmp_path / "out/trials.jsonl").read_text() == before
    assert found["confirm"]["best"] in {each["name"] for each in found["confirm"]["configurations"]}
    assert [len(each["values"]) for each in found["confirm"]["configurations"]] == [6, 6]
    rows = [json.loads(line) for line in (tmp_path / "out/confirm/trials.jsonl").read_text().splitlines()]
    assert len({(row["trial"], row["epoch"]) for row in rows}) == len(rows) == 24
    again = process("search", "--resume", "out", "--wandb", "disabled", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "holds a confirmation already; to confirm again, move it away" in again.err
