"""How tests are shared out to processes: what must not run side by side is told from the rest."""

from tests.conftest import ROOT, starts_cluster


def test_files_that_start_clusters_are_told_from_all_others() -> None:
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")]
    found = {file for file in files if starts_cluster(file)}
    assert found >= {
        f"tests/{name}.py" for name in ("launch/test_job", "launch/test_slurm", "search/test_tuner", "train/test_nodes", "train/test_ray_train")
    }
    assert found.isdisjoint({f"tests/{name}.py" for name in ("core/test_losses", "cli/test_train", "train/test_loop", "test_sharing")})
    assert len(found) < len(files) / 4, "the rest must be shared out"
