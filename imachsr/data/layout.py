"""Which splits of a data set are there, and why others are not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imachsr.data.images import Source
from imachsr.data.inspection import Findings
from imachsr.data.samples import NoSplitError, OnError, Split

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("training", "Train", "TRAIN"),
    "val": ("valid", "validation", "dev", "Val", "VAL"),
    "test": ("testing", "Test", "TEST"),
}
"""What others call the splits."""


def find_sources(
    data: Any, splits: Sequence[Split], *, is_asked: bool, on_error: OnError = "skip"
) -> tuple[dict[Split, Source], dict[Split, Findings]]:
    """The files of each split, and of each that is not there what is to be told.

    A data set may do without test. It is a problem that train or val are missing, or one that is asked for, or that of test there is something, be it
    under another name, but not what is to be read.

    Args:
        data: A data set that has ``source``.
        splits: Which.
        is_asked: Whether they were named.
        on_error: With "skip" files without a partner are kept, for the inspection to tell.

    Raises:
        ValueError: If none is there: why the first is not.
    """
    sources: dict[Split, Source] = {}
    findings: dict[Split, Findings] = {}
    lenient = replace(data, on_error=on_error)
    for split in splits:
        try:
            sources[split] = lenient.source(split)
        except ValueError as error:
            hint = _hint(Path(data.root), split)
            missing = f"{error}{hint}"
            findings[split] = Findings(split=split, missing=missing)
            if is_asked or split != "test" or hint or not isinstance(error, NoSplitError):
                findings[split].tell("split missing", missing)
    if not sources:
        raise ValueError(next(iter(findings.values())).missing)
    return sources, findings


def _hint(root: Path, split: str) -> str:
    """A folder that seems to be the split by another name."""
    root = root.expanduser()
    inside = [path for pattern in ("*", "*/*") for path in sorted(root.glob(pattern)) if path.is_dir()]
    like = next((path for path in inside if path.name in OTHER_NAMES[split]), None)
    return "" if like is None else f"; {like} seems to be it: rename it to {split}"
