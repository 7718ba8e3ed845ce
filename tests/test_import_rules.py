"""Who may import whom."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "imachsr"
HEAVY = ("ray", "wandb", "optuna", "pydantic", "segmentation_models_pytorch", "typer", "rich", "torchvision", "yaml", "PIL")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of pyproject.toml, on the package in a folder."""
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_the_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def test_the_contracts_can_be_broken(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "imachsr", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in (
        ("core/types.py", "import numpy"),
        ("data/samples.py", "import imachsr.config.load"),
        ("train/loop.py", "import ray.tune"),
        ("report/table.py", "import optuna"),
        ("search/driver.py", "import ray"),
        ("train/batches.py", "import ray"),
        ("train/device.py", "import ray"),
        ("train/evaluate.py", "import ray"),
        ("console.py", "import ray"),
        ("importing.py", "import wandb"),
        ("files.py", "import imachsr.config.load"),
        ("cli/train.py", "import ray"),
        ("cli/doctor.py", "import imachsr.cli.layers"),
        ("doctor.py", "import wandb"),
        ("tracking/events.py", "import wandb"),
        ("cli/space.py", "import pyarrow"),
    ):
        path = tmp_path / "imachsr" / file
        path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "0 kept, 9 broken" in done.stdout
    for chain in ("driver", "batches", "device", "evaluate"):
        assert re.search(rf"imachsr\.(search|train)\.{chain} -> ray ", done.stdout), chain
    assert "imachsr.importing -> wandb" in done.stdout


def loaded_by(code: str, *names: str) -> set[str]:
    """Which of these packages are imported in a new process that runs the code."""
    program = f"{code}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_the_package_itself_imports_nothing_heavier_than_torch() -> None:
    assert loaded_by("import imachsr", "torch", "torch._dynamo", *HEAVY) == {"torch"}  # the compiler takes a second


@pytest.mark.long
def test_that_test_can_fail() -> None:
    assert loaded_by("import imachsr.config.load", *HEAVY) >= {"pydantic", "yaml"}
    assert loaded_by("import imachsr.cli", "typer", "ray", "wandb") == {"typer"}


def test_training_in_this_process_needs_neither_ray_nor_a_tracker_nor_what_takes_seconds_to_import() -> None:
    code = "import imachsr.data, imachsr.models, imachsr.train.loop, imachsr.train.evaluate"
    slow = ("segmentation_models_pytorch", "torchvision", "torch.distributed.fsdp", "torch.distributed.tensor", "torch._dynamo")
    assert loaded_by(code, "ray", "wandb", "optuna", "typer", *slow) == set()


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def importers(prefix: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name == prefix or name.startswith(f"{prefix}.") for name in imports_of(path))
    }


@pytest.mark.parametrize(
    ("library", "files"),
    [
        ("ray.tune", {"search/tuner.py"}),
        ("ray.train", {"train/ray_session.py", "train/ray_worker.py"}),
        ("wandb", {f"tracking/{path.name}" for path in (PACKAGE / "tracking").glob("*.py") if path.name != "events.py"}),
        (
            "optuna",
            {
                f"search/{name}.py"
                for name in ("database", "drafts", "grid", "samplers", "space/parameters", "space/search", "study", "tuner", "warm")
            },
        ),
        ("typer", {f"cli/{path.name}" for path in (PACKAGE / "cli").glob("*.py")}),
        ("yaml", {"config/load.py"}),
        ("PIL", {"data/coding.py", "data/images.py", "data/pictures.py", "data/scenes.py", "report/evidence.py"}),
        ("segmentation_models_pytorch", {"models.py"}),
    ],
)
def test_a_library_enters_through_its_files_only(library: str, files: set[str]) -> None:
    found = importers(library)
    assert found <= files
    assert found, f"{library} is no dependency any more"


def test_the_scan_sees_imports_inside_functions(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f():\n    from ray import tune as t\n    import wandb.sdk\n")
    assert imports_of(tmp_path / "x.py") >= {"ray.tune", "wandb.sdk"}


def test_every_file_that_the_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Follow one batch")[2].partition("\n## ")[0]
    steps = re.findall(r"`(imachsr/[\w/]+\.py)`", section)
    assert len(steps) >= 10
    for name in {*steps, *re.findall(r"`((?:imachsr|launch|search_spaces|benchmarks)/[\w/.]*)`", readme)}:
        assert (ROOT / name).exists(), name


def test_no_package_init_does_more_than_name_things() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            is_name = isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign))
            assert is_name or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)), (path, ast.unparse(node))
