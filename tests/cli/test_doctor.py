import json
import re

import pytest

from tests.cli.command import Cli


def test_doctor_says_what_is_here(run: Cli) -> None:
    ran = run("doctor", "--json")
    assert ran.code == 0
    found = {check["name"]: check for check in json.loads(ran.out)}
    text = run("doctor").out
    for name, check in found.items():
        assert name in text
        assert check["finding"].split()[0] in text


def test_doctor_fails_when_something_is_missing(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imachsr.doctor.PACKAGES", ("imachsr-no-such-package",))
    ran = run("doctor")
    assert ran.code == 1
    assert re.search(r"error .*imachsr-no-such-package.*not installed", ran.out)
