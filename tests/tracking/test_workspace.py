import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imachsr.tracking import workspace
from imachsr.tracking.recorded import Place, load
from imachsr.tracking.workspace import FILE, make, table_of
from tests.tracking.folders import METRIC, row, searched
from tests.tracking.server import Server

CONFIRMED = {
    "confirmed": "val/miou",
    "seeds": [1000, 1001, 1002],
    "configurations": [
        {"name": "baseline", "verdict": "baseline"},
        {"name": "trial-0001", "difference": 1.25, "interval": [0.5, 2.0], "p_holm": 0.03125, "verdict": "better"},
        {"name": "broken", "verdict": "failed", "p_holm": None},
    ],
}


def panels(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for section in spec["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            yield panel["viewType"], panel["config"]


def metrics(config: dict[str, Any]) -> list[str]:
    return [*config["metrics"], *([config["metricRegex"]] if config.get("metricRegex") else [])]


def test_the_dashboard_is_saved_over_the_one_that_was_saved_before(server: Server, tmp_path: Path) -> None:
    folder = searched(tmp_path / "s")
    place = Place(entity="tester", project="streets", is_online=True)
    (line,) = make(folder, None, place)
    assert line.startswith(f"W&B dashboard: {server.url}/tester/streets?nw=")
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"], view["type"]) == ("tester", "streets", "streets u1", "project-view")
    assert make(folder, CONFIRMED, place) == [line]
    again = server.views[1]
    assert (again["name"], again["id"]) == (view["name"], "view-1")
    assert "better" in again["spec"]
    assert "better" not in view["spec"]


def test_its_panels_show_what_runs_hold(server: Server, tmp_path: Path) -> None:
    make(searched(tmp_path / "s"), None, Place(entity="tester", project="streets", is_online=True))
    spec = json.loads(server.views[0]["spec"])
    found = list(panels(spec))
    kinds = [kind for kind, _ in found]
    expected = {"Parallel Coordinates Plot", "Parameter Importance", "Scatter Plot", "Weave", "Vega2", "Markdown Panel", "Run History Line Plot"}
    assert set(kinds) == expected | {"Media Browser", "Run Comparer"}
    of = {kind: config for kind, config in found}
    columns = [column["accessor"] for column in of["Parallel Coordinates Plot"]["columns"]]
    choices = ("standard", "loss", "entropy", "max_taps", "alpha", "beta")
    assert columns == [*(f"config:choice/{name}.value" for name in choices), "summary:trial/num_taps", f"summary:{METRIC}"]
    assert of["Parameter Importance"]["targetKey"] == METRIC
    assert (of["Scatter Plot"]["xAxis"], of["Scatter Plot"]["yAxis"]) == ("summary:time/step_ms", f"summary:{METRIC}")
    assert {key for kind, config in found if kind == "Media Browser" for key in config["mediaKeys"]} == {"images/final", "images/best"}
    curves = [config for kind, config in found if kind == "Run History Line Plot"]
    assert all(config["xAxis"] == "epoch" for config in curves)
    shown = [name for config in curves for name in metrics(config)]
    assert {METRIC, "train/side", "train/lr", "images_per_s", "memory/peak_mib"} <= set(shown)
    for key in row(0, 1).keys() - {"epoch"}:
        assert any(re.fullmatch(name, key) for name in shown), key
    runs = spec["section"]["runSets"][0]
    assert runs["filters"]["filters"] == [{"key": {"section": "run", "name": "group"}, "op": "IN", "value": ["streets-u1"], "disabled": False}]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": METRIC}, "ascending": False}]


@pytest.mark.usefixtures("own_wandb")
def test_offline_the_specification_lies_beside_the_results(tmp_path: Path) -> None:
    folder = searched(tmp_path / "my runs")
    (line,) = make(folder, None, Place(entity="", project="streets", is_online=False))
    assert line == f"W&B: the dashboard's specification is {folder / FILE}; once the runs are online: imachsr wandb workspace '{folder}'"
    held = json.loads((folder / FILE).read_text())
    assert (held["project"], held["url"]) == ("streets", "")
    assert "Parameter Importance" in [kind for kind, _ in panels(held["spec"])]


@pytest.mark.parametrize("fault", ["500", "malformed", "dead", "silent"])
def test_a_server_that_does_not_take_it_costs_a_line(fault: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "SAVE_S", 1.0)
    folder = searched(tmp_path / "s")
    if fault == "dead":
        server.stop()
    elif fault == "silent":
        server.delay_s = 3.0
    else:
        server.fault = fault
    (line,) = make(folder, None, Place(entity="tester", project="streets", is_online=True))
    assert line.startswith("W&B: the dashboard could not be saved (")
    assert line.endswith(f"its specification is {folder / FILE}; to try again: imachsr wandb workspace {folder}")


def test_a_training_has_no_dashboard(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"schema": 1, "metrics": {}}))
    assert make(tmp_path, None, Place(entity="", project="p", is_online=False)) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "summary.json"]


def test_the_differences_come_with_their_intervals_where_they_were_confirmed(tmp_path: Path) -> None:
    held = load(searched(tmp_path / "s"))
    assert held is not None
    assert table_of(held, None).splitlines()[-1] == "| trial 0001 | +1.000 |"
    lines = table_of(held, CONFIRMED).splitlines()
    assert lines[0] == "**val/miou minus the baseline's of the same seed**, mean over 3 fresh seeds."
    assert lines[-2:] == ["| trial-0001 | +1.250 | +0.500 to +2.000 | 0.0312 | better |", "| broken |  |  |  | failed |"]
