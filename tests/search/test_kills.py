"""A search that is killed at moments of chance: its driver, everything at once as in a power cut, or a trial's process alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import psutil
import pytest

from imachsr.search.database import FILE
from tests.search.kill_me import EPOCHS, LOG, MARK, worth

pytestmark = pytest.mark.xdist_group("ray")
LATEST_S = 12.0
"""Kills come up to so late: before Ray has started, while it does, and while trials run."""


@dataclass(kw_only=True)
class Victim:
    """A search of so many trials that is begun again whenever it was killed."""

    folder: Path
    root: Path
    trials: int
    generator: random.Random
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def output(self) -> Path:
        return self.folder / "result"

    @property
    def lines(self) -> list[str]:
        path = self.output / "trials.jsonl"
        return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []

    def calls(self) -> Counter[str]:
        """How often each trial was begun, by its x."""
        path = self.folder / LOG
        return Counter(path.read_text().split()) if path.exists() else Counter()

    def ended(self) -> dict[int, tuple[str, str]]:
        """State and x of the trials that the study holds as ended."""
        if not (self.output / FILE).exists():
            return {}
        study = optuna.load_study(study_name="search", storage=f"sqlite:///{self.output / FILE}")
        return {trial.number: (trial.state.name, repr(trial.params["x"])) for trial in study.trials if trial.state.is_finished()}

    def start(self) -> subprocess.Popen[str]:
        mode = "resume" if (self.output / FILE).exists() else "new"
        command = [sys.executable, "-m", "tests.search.kill_me", str(self.folder), str(self.trials), mode]
        environment = {**os.environ, "PYTHONPATH": str(self.root), MARK: str(self.folder)}
        with (self.folder / "said").open("a") as said:
            return subprocess.Popen(command, env=environment, cwd=self.root, stdout=said, stderr=said, text=True)

    def processes(self) -> list[psutil.Process]:
        """All that the search has started and that are still there."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def strike(self, driver: subprocess.Popen[str], kind: str) -> bool:
        """Kill at a moment of chance; whether anything was there to be killed."""
        try:
            driver.wait(timeout=self.generator.uniform(0.0, LATEST_S))
            return False
        except subprocess.TimeoutExpired:
            pass
        if kind == "trial":
            workers = [process for process in self.processes() if "ImplicitFunc" in " ".join(process.cmdline() or [])]
            if not workers:
                return False
            self.generator.choice(workers).kill()
        elif kind == "all":
            for process in self.processes():
                process.kill()
            driver.wait(timeout=30)
        else:
            driver.send_signal(signal.SIGKILL)
            driver.wait(timeout=30)
        self.kills[kind] += 1
        return True

    def is_quiet(self) -> bool:
        """Whether what a dead driver has left ends by itself."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if not self.processes():
                return True
            time.sleep(0.2)
        return False


def kill_often(victim: Victim, kinds: list[str]) -> None:
    """Strike as often as kinds are named, and look each time at what was known before."""
    left = list(kinds)
    driver = victim.start()
    before = victim.lines, victim.ended(), victim.calls()
    while True:
        if left and victim.strike(driver, left[0]):
            left.pop(0)
        if driver.poll() is None and left:
            continue
        if driver.poll() is None:
            driver.wait(timeout=300)
        assert victim.is_quiet(), [process.cmdline() for process in victim.processes()]
        lines, ended, calls = before
        assert victim.lines[: len(lines)] == lines, "a line was lost or changed"
        assert ended.items() <= victim.ended().items(), "what had ended was not left alone"
        assert all(victim.calls()[x] == calls[x] for _, x in ended.values()), "a trial that had ended was begun again"
        before = victim.lines, victim.ended(), victim.calls()
        if driver.returncode == 0:
            assert not left, f"the search ended before it was killed {len(kinds)} times"
            return
        assert driver.returncode == -signal.SIGKILL, (victim.folder / "said").read_text()[-4000:]
        driver = victim.start()


def assert_whole(victim: Victim) -> None:
    summary = json.loads((victim.output / "summary.json").read_text())
    trials = summary["trials"]
    assert summary["finished"]
    assert [trial["number"] for trial in trials] == list(range(victim.trials))
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}
    assert len({trial["params"]["x"] for trial in trials}) == victim.trials, "the sampler repeated itself"
    lines = [json.loads(line) for line in victim.lines]
    assert Counter((line["trial"], line["epoch"]) for line in lines) == Counter(
        (trial["number"], epoch) for trial in trials for epoch in range(1, trial["epochs"] + 1)
    )
    assert all(line["score"] == worth(trials[line["trial"]]["params"]["x"], line["epoch"]) for line in lines)
    assert all(trial["epochs"] == EPOCHS for trial in trials if trial["state"] == "COMPLETE")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{victim.output / FILE}")
    assert [trial.state.name for trial in study.trials] == [trial["state"] for trial in trials]


@pytest.mark.long
def test_a_search_killed_with_all_that_it_started_loses_and_repeats_nothing(tmp_path: Path, root: Path) -> None:
    victim = Victim(folder=tmp_path, root=root, trials=8, generator=random.Random(0))
    kill_often(victim, ["all"])
    assert_whole(victim)


@pytest.mark.slow
def test_a_search_killed_at_twenty_moments_loses_and_repeats_nothing(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(1)
    kinds = [*["driver"] * 8, *["all"] * 8, *["trial"] * 4]
    generator.shuffle(kinds)
    victim = Victim(folder=tmp_path, root=root, trials=160, generator=generator)
    kill_often(victim, kinds)
    assert_whole(victim)
    with capsys.disabled():
        again = sum(victim.calls().values()) - victim.trials
        print(f"\n{dict(victim.kills)} kills: all {victim.trials} trials ended once, {again} begun again from their first epoch")
