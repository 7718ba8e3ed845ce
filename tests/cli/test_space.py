import json
from pathlib import Path

import pytest

from imachsr.search.space import load_search
from tests.cli.command import QUICK, Cli, one_error

SPACE = """\
space:
  recipe:
    choice:
      light: {method.alpha: 0.1, optimizer.weight_decay: 0.1}
      strong: {method.alpha: 1.0}
  method.beta: {float: [0.1, 1.0], step: 0.3}
  method.loss: {choice: [dice, prototype]}
  method.loss.temperature: {float: [0.1, 1.0], num: 2, when: {method.loss: prototype}}
constraints:
  - {sum: [method.alpha, method.beta], at_most: 1.2}
  - {forbid: {recipe: light, method.loss: dice}}
points:
  - {recipe: strong, method.beta: 0.1, method.loss: dice}
sampler: {kind: grid}
scheduler: {kind: none}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SPACE)
    return path


def test_the_space_is_told_for_machines(run: Cli, file: Path) -> None:
    ran = run("space", file, "--sample", 20, "--json")
    assert (ran.code, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert [knob["key"] for knob in found["knobs"]] == ["recipe", "method.beta", "method.loss", "method.loss.temperature"]
    assert found["knobs"][0]["sets"] == ["method.alpha", "optimizer.weight_decay"]
    assert found["knobs"][3]["when"] == "method.loss prototype"
    assert found["grid"] == 2 * 4 * (1 + 2)
    assert (found["most_at_once"], found["points"], found["arms"], found["endless"]) == (4, 1, ["baseline"], [])
    # Evenly: light with dice is a quarter; strong breaks the sum unless beta is 0.1, three in eight; they exclude each other.
    assert found["rejected"] == pytest.approx(0.25 + 0.375, abs=0.04)
    assert len(found["sample"]) == 20
    search = load_search(file)
    assert all(search.excess(values) == {} for values in found["sample"])
    assert json.loads(run("space", file, "--sample", 20, "--json").out) == found
    assert json.loads(run("space", file, "--sample", 20, "--seed", 1, "--json").out)["sample"] != found["sample"]


def test_the_space_is_told_for_people(run: Cli, file: Path) -> None:
    ran = run("space", file, "--sample", 3)
    assert "4 knobs, at most 4 at once; 24 configurations\n" in ran.out
    assert "before anything is sampled: baseline, 1 points\n" in ran.out
    assert "constraints.0: method.alpha + method.beta <= 1.2\n" in ran.out
    assert "constraints.1: not recipe light with method.loss dice\n" in ran.out
    assert "random configurations break a constraint and are drawn again (constraints.0 " in ran.out
    assert "3 random samples" in ran.out


def test_what_a_sampler_draws_by_itself_is_told(run: Cli) -> None:
    ran = run("space", QUICK, "sampler.kind=gp", "--sample", 0)
    assert "8 knobs, at most 8 at once; infinite, 3 real ranges\n" in ran.out
    assert "sampler gp draws these at random, each by itself: method.loss.temperature; tpe models them too\n" in ran.out
    assert "samples" not in ran.out


def test_a_mistake_is_told_with_its_line(run: Cli, file: Path) -> None:
    file.write_text(SPACE.replace("prototype]", "prototip]"))
    assert one_error(run("space", file)).startswith(f"{file}:7: space.method.loss: 'prototip': ")
    file.write_text("optimizer: {lr: 1e-3}\n")
    assert "must hold a search, but holds one run" in one_error(run("space", file))
