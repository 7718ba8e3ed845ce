"""A study from YAML and back, checked as a whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imachsr.config.load import lines_of, load_yaml, located, merge, nested, parse_overrides
from imachsr.config.schema import ConfigError, validate
from imachsr.study.checks import check
from imachsr.study.schema import StudyPlan


def make_study(raw: Mapping[str, Any]) -> StudyPlan:
    """The study that a mapping describes, checked as a whole.

    Raises:
        ConfigError: Names the key and what is wrong.
    """
    study: StudyPlan = validate(StudyPlan, raw)
    check(study)
    return study


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> StudyPlan:
    """The study of a YAML file, with ``key=value`` overrides (``run.optimizer.epochs=4``, ``seeds=[0,1]``).

    Raises:
        ConfigError: For anything that the user got wrong; names file and key.
    """
    dotted = parse_overrides(overrides)
    raw: Any = load_yaml(path)
    for layer in nested(dotted):
        raw = merge(raw, layer)
    try:
        return make_study(raw)
    except ConfigError as error:
        places: dict[str, tuple[str | Path, int]] = {key: (path, line) for key, line in lines_of(path).items()}
        raise ConfigError(located(str(error), path, places, dotted)) from None


def study_to_dict(study: StudyPlan) -> dict[str, Any]:
    """Plain values that :func:`make_study` reads back."""
    return study.model_dump(mode="json", by_alias=True, exclude_none=True)
