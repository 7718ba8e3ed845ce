"""Which command a YAML file is for."""

from pathlib import Path

_KINDS = {"train": "one run", "search": "a search", "study": "a study"}


def foreign_keys(config: Path, command: str) -> tuple[list[str], str]:
    """Keys by which a file shows that it is for another command of train, search and study, and that command; none when it may be for this one."""
    from imachsr.config.load import load_yaml
    from imachsr.config.schema import Run
    from imachsr.search.space import Search
    from imachsr.study.schema import StudyPlan

    kinds = {"train": set(Run.model_fields), "search": {"base", *Search.model_fields}, "study": set(StudyPlan.model_fields)}
    keys, own = set(load_yaml(config)), kinds[command]
    strange = {other: sorted(keys & fields - own) for other, fields in kinds.items() if other != command}
    likeliest = max(strange, key=lambda other: (len(strange[other]), len(keys & kinds[other])))
    # What no other kind has but this one shows that it is meant, whatever else is wrong.
    is_own = any(keys & own - fields for other, fields in kinds.items() if other == likeliest)
    return ([], command) if is_own or not strange[likeliest] else (strange[likeliest], likeliest)


def check_kind(config: Path, command: str) -> None:
    """A file of another kind would be answered by one complaint a key."""
    from imachsr.config.schema import ConfigError

    strange, right = foreign_keys(config, command)
    if strange:
        names = f"{_KINDS[right]} ({', '.join(strange)})"
        raise ConfigError(f"{config} must hold {_KINDS[command]}, but holds {names}; use: imachsr {right} {config}")
