"""The project's requirements, the lock that scripts install, and the files that need them."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT: dict[str, Any] = tomllib.loads(TEXT)["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
# What benchmarks compare with is not locked.
ALL = [*RUNTIME, *(Requirement(text) for extra, texts in PROJECT["optional-dependencies"].items() if extra != "bench" for text in texts)]
MODULES = {
    "nvidia-ml-py": "pynvml",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "wandb-workspaces": "wandb_workspaces",
}

# What is needed by a part of another library that we use, and by that only.
THROUGH = {"cmaes": "optuna.samplers import BaseSampler, CmaEsSampler"}


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line[0].isspace() and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return specifier.version


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text())
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("wanted", ALL, ids=lambda each: each.name)
def test_the_lock_pins_every_requirement_to_a_version_that_it_takes(wanted: Requirement) -> None:
    found = pins().get(canonicalize_name(wanted.name), [])
    assert found
    for pin in found:
        assert wanted.specifier.contains(version(pin), prereleases=True)


def test_every_line_of_the_lock_is_one_exact_version() -> None:
    for name, found in pins().items():
        assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version(pin)) for pin in found), name
        assert not any(pin.url for pin in found), name
        # Several only where their markers tell them apart.
        assert sum(pin.marker is None or pin.marker.evaluate() for pin in found) <= 1, name


def test_the_lock_is_complete_for_what_is_installed_here() -> None:
    """Scripts install it with --no-deps: what it lacks would be missing on a fresh machine."""
    found, todo, missing = pins(), [canonicalize_name(each.name) for each in RUNTIME], []
    extras = {canonicalize_name(each.name): each.extras for each in RUNTIME}
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in found:
            missing.append(name)
            continue
        for text in importlib.metadata.distribution(name).requires or []:
            need = Requirement(text)
            names = extras.get(name) or {""}
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *names}):
                todo.append(canonicalize_name(need.name))
                extras.setdefault(canonicalize_name(need.name), need.extras)
    assert missing == []
    assert len(seen) > len(RUNTIME)


def test_the_lock_is_for_the_python_that_the_project_needs() -> None:
    assert "--python-version 3.11" in (ROOT / "requirements.lock").read_text().partition("\n\n")[0][:400]
    assert PROJECT["requires-python"] == ">=3.11"
    assert sys.version_info >= (3, 11)


@pytest.mark.parametrize("wanted", RUNTIME, ids=lambda each: each.name)
def test_every_dependency_names_files_that_need_it(wanted: Requirement) -> None:
    (line,) = (line for line in TEXT.splitlines() if re.match(rf'\s+"{re.escape(wanted.name)}[\[><=]', line))
    places = re.findall(r"imachsr/[\w/.]*\w", line.partition("#")[2])
    assert places, line
    module = MODULES.get(wanted.name, wanted.name)
    for place in places:
        path = ROOT / place
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        assert files, f"{place} does not exist"
        is_used = any(module in imports(file) or (module in THROUGH and THROUGH[module] in file.read_text()) for file in files)
        assert is_used, f"{place} does not import {module}"


def test_every_package_that_is_imported_is_a_dependency() -> None:
    known = {MODULES.get(each.name, each.name) for each in RUNTIME} | set(sys.stdlib_module_names) | {"imachsr"}
    # Imported where they are used, with a hint when they are missing.
    known |= {Requirement(text).name for text in PROJECT["optional-dependencies"]["onnx"]}
    # timm is segmentation_models_pytorch's own: its encoders named tu-... are timm's.
    known |= {"timm"} & {Requirement(text).name for text in importlib.metadata.requires("segmentation-models-pytorch") or []}
    strange = {(str(path.relative_to(ROOT)), name) for path in (ROOT / "imachsr").rglob("*.py") for name in imports(path) - known}
    assert strange == set()
