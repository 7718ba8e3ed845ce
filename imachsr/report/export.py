"""A trial's settings as a run of its own."""

from pathlib import Path
from typing import Any

from imachsr.config.load import dump_yaml, load_run, load_yaml, run_to_dict
from imachsr.config.schema import ConfigError
from imachsr.files import write_text
from imachsr.report.table import arms, load_summary


def export(folder: Path, out: Path, *, trial: int | None = None) -> int:
    """Write the run of the best finished trial, or of a given one; it trains on all of train and is scored on val.

    An arm counts with the mean over its seeds.

    Args:
        folder: Result folder of a search.
        out: YAML file to write.
        trial: Number; the best finished one by default.

    Returns:
        The trial's number.

    Raises:
        ConfigError: If there is no such trial, none has finished, its run.yaml is missing or broken, or ``out`` exists or cannot be written.
    """
    summary = load_summary(folder)
    known = {item["number"]: item for item in summary["trials"]}
    number = summary["best"] if trial is None else trial
    if number is None:
        raise ConfigError(f"a trial of {folder} must have finished to be exported, but none has; continue the search, or name one with --trial")
    if number not in known:
        raise ConfigError(f"--trial must be one of {', '.join(map(str, sorted(known))) or 'none yet'}, but got {number}")
    if out.exists():
        raise ConfigError(f"{out} must not exist yet, but does; give another --out")
    path = folder / "trials" / f"{number:04d}" / "run.yaml"
    run = run_to_dict(load_run(path))
    if missing := run.keys() - load_yaml(path).keys():  # the rest would silently be defaults
        raise ConfigError(f"{path} must hold the trial's whole run, but lacks {', '.join(sorted(missing))}")
    item, metric = known[number], summary["metric"]
    # The share of one trial among others, and its device: as the search was given them.
    run["compute"] |= {"threads": None, "device": _device(folder, item["params"])}
    value = "no value" if item["value"] is None else f"{metric} {item['value']:.2f} after {item['epochs']} epochs"
    difference = "" if item["difference"] is None else f", {item['difference']:+.2f} against the output-only baseline"
    header = [f"# Trial {number} of search {summary['name']!r}: {value}{difference}."]
    mean = next((arm for arm in arms(summary) if arm.name == item["arm"]), None)
    if mean is not None:
        header.append(f"# Its arm, {mean.words}.")
    seeds = "One seed" if mean is None or len(mean.values) == 1 else f"{len(mean.values)} seeds"
    header.append(f"# {seeds} on the selection split: a candidate, not a finding. Training this file uses all of train and scores on val.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, "\n".join(header) + "\n" + dump_yaml(run))
    except OSError as error:
        raise ConfigError(f"--out must be a file that can be written, but {out}: {error.strerror}") from None
    return int(number)


def _device(folder: Path, params: dict[str, Any]) -> str:
    try:
        base = load_yaml(folder / "search.yaml").get("run")
    except ConfigError:
        base = None
    compute = base.get("compute") if isinstance(base, dict) else None
    return str(params.get("compute.device") or (compute.get("device") if isinstance(compute, dict) else None) or "auto")
