import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import imachsr
from imachsr.search.driver import Driver
from imachsr.search.networks import FILE, Networks
from imachsr.search.task import Function
from imachsr.train.applied import live
from tests.search.play import toy_search
from tests.search.test_driver import proposed, row, run_trial, search_of, trial
from tests.train.test_applied import built


def network(*channels: int) -> dict[str, Any]:
    layers = [{"address": f"layer{place}", "channels": each} for place, each in enumerate(channels)]
    return {"name": "Net", "input_size": [8, 8], "layers": layers}


def held(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text())["networks"]
    return found


def test_a_network_is_written_once_however_often_it_is_trained(tmp_path: Path) -> None:
    networks = Networks(tmp_path)
    first = networks.add(network(4, 8))
    before = (tmp_path / FILE).stat().st_mtime_ns
    assert networks.add(network(4, 8)) == first
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    other = networks.add(network(4, 9))
    assert held(tmp_path) == {first: network(4, 8), other: network(4, 9)}


def test_a_later_sitting_keeps_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    first = Networks(tmp_path).add(network(4))
    other = Networks(tmp_path).add(network(5))
    assert set(held(tmp_path)) == {first, other}


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9, "networks": {"a": {}}}'])
def test_a_file_that_cannot_be_read_is_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    key = Networks(tmp_path).add(network(4))
    assert held(tmp_path) == {key: network(4)}


@pytest.mark.parametrize("given", [None, "unet", {"layers": []}])
def test_what_is_no_network_leaves_no_file(given: object, tmp_path: Path) -> None:
    assert Networks(tmp_path).add(given) is None
    assert not (tmp_path / FILE).exists()


def test_the_layers_of_a_training_are_as_hooks_and_parameters_say() -> None:
    _, training = built()
    facts = json.loads(json.dumps(live(training)))
    layers = {layer["address"]: layer for layer in facts["network"]["layers"]}
    assert set(facts["taps"]) <= set(layers)
    modules, order = dict(training.net.backbone.named_modules()), []

    def look(name: str, output: Any) -> None:
        if name in layers and isinstance(output, torch.Tensor):
            order.append(name)
            assert list(output.shape[1:]) == [layers[name][key] for key in ("channels", "height", "width")]

    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, output, name=name: look(name, output))
    training.net.backbone(torch.zeros(2, 3, *facts["network"]["input_size"]))
    assert order == [address for address in layers if "#" not in address and "[" not in address]
    for address, layer in layers.items():
        assert layer["params"] == sum(p.numel() for p in modules[address.partition("#")[0]].parameters())


def test_a_net_without_taps_is_not_traced() -> None:
    net = imachsr.IMacHSR(nn.Conv2d(3, 2, 1), example=torch.zeros(1, 3, 8, 8), num_classes=2, alpha=0, beta=0)
    assert net.traced is None


def started(driver: Driver, **more: Any) -> int:
    """A trial whose worker has said what it trains; the run itself is not looked at."""
    number = int(proposed(driver)["number"])
    found = {"taps": ["layer1"], "losses": [{"class": "Dice", "kind": "dice"}, {"class": "mine", "own": True}], "network": network(4), **more}
    driver.on_start(number, {"live": found})
    return number


def test_a_trial_names_its_network_and_losses_and_keeps_them_when_the_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imachsr.search.task.differences", lambda run, found: [])
    driver = Driver(tmp_path, search_of(scheduler={"kind": "none"}))
    number = started(driver)
    for epoch in range(1, 5):
        driver.on_row(number, row(epoch, 1.0))
    driver.on_end(number)
    (key,) = held(tmp_path)
    assert (trial(driver, 0)["network"], trial(driver, 0)["losses"]) == (key, ["dice", "mine"])
    driver.close()
    again = Driver(tmp_path, search_of(scheduler={"kind": "none"}), resume=True)
    assert (trial(again, 0)["network"], trial(again, 0)["losses"]) == (key, ["dice", "mine"])
    again.close()


def test_values_of_a_function_may_be_called_taps_losses_or_network(tmp_path: Path) -> None:
    """What its worker says are the user's names."""
    driver = Driver(tmp_path, toy_search(), task=Function(train=lambda values, report: None, max_epochs=3))
    number = int(proposed(driver)["number"])
    config = driver.entries[number].config
    config |= {"taps": 3, "losses": 0.5, "network": {"layers": [1]}}
    assert driver.on_start(number, {"live": dict(config)}) is False
    assert (trial(driver, number)["taps"], trial(driver, number)["losses"], trial(driver, number)["network"]) == ([], [], None)
    assert not (tmp_path / FILE).exists()
    driver.close()


def test_restarts_losses_and_sittings_are_counted(tmp_path: Path) -> None:
    search = search_of(scheduler={"kind": "none"}, budget={"trials": 4})
    driver = Driver(tmp_path, search)
    first = int(proposed(driver)["number"])
    driver.on_restart(first)
    driver.on_restart(first)
    for epoch in range(1, 5):
        driver.on_row(first, row(epoch, 1.0))
    driver.on_end(first)
    lost = int(proposed(driver)["number"])
    driver.on_lost(lost)
    driver.on_end(lost, "the worker died")
    going_on = int(proposed(driver)["number"])
    driver.on_row(going_on, row(1, 1.0))
    driver.on_lost(lost)  # has ended already
    assert driver.close()[0]["sittings"] == 1
    again = Driver(tmp_path, search, resume=True)
    assert int(proposed(again)["number"]) == going_on
    for epoch in range(2, 5):
        again.on_row(going_on, row(epoch, 1.0))
    again.on_end(going_on)
    run_trial(again, [1.0] * 4)
    summary, _ = again.close()
    assert summary["sittings"] == 2
    expected = [(2, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    assert [tuple(item["troubles"][key] for key in ("restarts", "lost", "resumed")) for item in summary["trials"]] == expected


def test_a_search_that_an_older_version_began_has_no_count_of_its_sittings(tmp_path: Path) -> None:
    search = search_of(scheduler={"kind": "none"})
    driver = Driver(tmp_path, search)
    run_trial(driver, [1.0] * 4)
    driver.close()
    with sqlite3.connect(tmp_path / "study.sqlite3") as study:
        study.execute("delete from study_user_attributes where key = 'sittings'")
    again = Driver(tmp_path, search, resume=True)
    assert again.close()[0]["sittings"] is None
