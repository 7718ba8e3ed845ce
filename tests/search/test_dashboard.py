"""optuna-dashboard, as people start it, on the study of a search."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imachsr.search.database import FILE
from tests.search.play import play, toy_driver
from tests.search.test_crashes import answer, searched


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Its address, and what the search's own summary says."""
    driver = toy_driver(tmp_path, searched())
    play(driver, answer=answer)
    summary, _ = driver.close()
    port = free_port()
    command = [str(Path(sys.executable).parent / "optuna-dashboard"), f"sqlite:///{tmp_path / FILE}", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        end = time.monotonic() + 60
        while True:
            assert server.poll() is None, (tmp_path / "said").read_text()
            try:
                got(f"http://127.0.0.1:{port}/api/studies")
                break
            except urllib.error.URLError:
                assert time.monotonic() < end
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", summary
    finally:
        server.kill()
        server.wait()


def got(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answered:
        return str(answered.read().decode())


def test_it_shows_every_trial_with_its_state_curve_settings_and_what_did_not_fit(served: tuple[str, dict[str, Any]]) -> None:
    url, summary = served
    listed = json.loads(got(f"{url}/api/studies"))
    (study,) = listed["study_summaries"]
    assert study["study_name"] == "search"
    assert "<html" in got(f"{url}/dashboard/studies/{study['study_id']}")
    shown = json.loads(got(f"{url}/api/studies/{study['study_id']}?after=0"))["trials"]
    assert {trial["state"] for trial in shown} == {"Complete", "Pruned", "Fail"}
    assert len(shown) == len(summary["trials"])
    for trial, own in zip(sorted(shown, key=lambda each: each["number"]), summary["trials"], strict=True):
        assert (trial["number"], trial["state"].upper()) == (own["number"], own["state"])
        assert len(trial["intermediate_values"]) == own["epochs"]
        if own["arm"] is None:
            assert {param["name"]: float(param["param_external_value"]) for param in trial["params"]} == own["params"]
        if own["state"] == "COMPLETE":
            assert trial["values"] == [own["value"]]
        # It reads constraints as Optuna 4 wrote them; what did not fit is among the attributes.
        outcome = json.loads(next(each["value"] for each in trial["user_attrs"] if each["key"] == "outcome"))
        assert outcome["excess"] == ({} if own["feasible"] else {"memory_mib": 0.5})
