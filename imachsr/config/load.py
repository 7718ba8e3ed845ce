"""Read YAML and command-line overrides into a checked :class:`Run`, and write it back."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imachsr.config.schema import ConfigError, Method, Run, normalized, validate


class _Loader(yaml.SafeLoader):
    """YAML without its surprises: ``1e-3`` is a number, only true and false are booleans, and a key is given once."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    ]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """Quotes each text that this loader, or an ordinary one, would read as something else."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _mapping_once(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be a name, but is a structure")
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node)
        if key in seen:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} must be given once, but is given again")
        seen.add(key)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_once)


def parse_yaml(text: str) -> Any:
    """The structure that a YAML text holds.

    Raises:
        ConfigError: If it is no YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"must be YAML, but: {' '.join(str(error).split())}") from None


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: If there is no such file, or it holds something else.
    """
    path = Path(path)
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        there = sorted(str(found) for found in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigError(f"{path} must be a readable file, but: {error.strerror}" + (f"; beside it: {', '.join(there)}" if there else "")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8 text, but: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, but holds {type(raw).__name__}")
    return raw


def dump_yaml(value: Any) -> str:
    """YAML text that :func:`parse_yaml` reads back."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def merge(base: Any, new: Any) -> Any:
    """``new`` over ``base``, key by key.

    A mapping with ``kind`` is replaced as a whole when the new kind is another: a temperature of one loss must not survive in the next.
    """
    if isinstance(new, Mapping):
        base = normalized(base)
    if isinstance(base, Mapping) and "kind" in base:
        new = normalized(new)
        if isinstance(new, Mapping) and (new.get("kind", base["kind"]) != base["kind"] or new.get("kind") == "import"):
            return dict(new)
        if base["kind"] == "import" and isinstance(new, Mapping):
            given = {"import": base["path"], **base["kwargs"], **normalized({**new, "import": None})["kwargs"]}
            if base["path"] is None:  # data.kind=import data.path=package.module:name
                given["import"] = given.pop("path", None)
            return normalized(given)
    if isinstance(base, Mapping) and isinstance(new, Mapping):
        return {**base, **{key: merge(base.get(key), value) for key, value in new.items()}}
    return new


def nested(dotted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One nested mapping for each dotted key; kinds and imports come first, since they decide what the others mean."""
    ordered = sorted(dotted.items(), key=lambda item: (not item[0].endswith((".kind", ".import")), item[0].count(".")))
    found = []
    for key, value in ordered:
        tree: Any = value
        for part in reversed(key.split(".")):
            tree = {part: tree}
        found.append(tree)
    return found


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted keys and their values from ``key=value`` texts; values are YAML.

    Raises:
        ConfigError: If one has no "=", or no key.
    """
    found: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise ConfigError(f"an override must have the form key=value, as in optimizer.epochs=2, but got {text!r}")
        try:
            found[key.strip()] = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
    return found


def resolve(raw: Mapping[str, Any], dotted: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The defaults, with ``raw`` over them, and the dotted keys over both; not checked yet."""
    full: Any = run_to_dict(Run())
    for layer in (raw, *nested(dotted or {})):
        full = merge(full, layer)
    tree: dict[str, Any] = full
    return tree


def make_run(raw: Mapping[str, Any], dotted: Mapping[str, Any] | None = None) -> Run:
    """The run that a mapping over the defaults describes.

    Raises:
        ConfigError: One line a mistake, each with the key.
    """
    run: Run = validate(Run, resolve(raw, dotted))
    return run


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The run of a YAML file, with ``key=value`` overrides; warns of settings without an effect.

    Raises:
        ConfigError: For anything that the user got wrong; names file and key.
    """
    dotted = parse_overrides(overrides)
    raw = load_yaml(path)
    try:
        run = make_run(raw, dotted)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).replace(chr(10), f'{chr(10)}{path}: ')}") from None
    for line in _without_effect(run):
        warnings.warn(line, stacklevel=2)
    return run


def _without_effect(run: Run) -> list[str]:
    """What the user must have set, since it is not the default, and what switches it off."""
    method, default = run.method, Method()
    lines = []
    if method.alpha == 0 and method.loss != default.loss:
        lines.append("method.loss has no effect while method.alpha is 0")
    if method.entropy is None and method.beta not in (0, default.beta):
        lines.append("method.beta has no effect while method.entropy is null")
    if method.beta == 0 and method.entropy not in (None, default.entropy):
        lines.append("method.entropy has no effect while method.beta is 0")
    if run.optimizer.warmup_epochs > run.optimizer.epochs:
        lines.append(f"optimizer.warmup_epochs is cut to the run's {run.optimizer.epochs} epochs, in which the learning rate only rises")
    return lines


def run_to_dict(run: Run) -> dict[str, Any]:
    """Plain values, every default written out; :func:`make_run` reads them back."""
    return run.model_dump(mode="json")
