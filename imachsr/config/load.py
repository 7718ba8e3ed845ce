"""Read YAML and command-line overrides into a checked :class:`Run`, and write it back."""

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from imachsr.config.schema import ConfigError, Method, Run, near, normalized, validate


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
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
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
        raise ConfigError(f"{path} must hold settings, but is empty; {{}} stands for the defaults")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, but holds {type(raw).__name__}")
    return raw


def lines_of(path: str | Path) -> dict[str, int]:
    """Line, from 1, of every key and list item of a YAML file, by dotted keys; empty if it cannot be read."""
    found: dict[str, int] = {}

    def walk(node: Any, above: tuple[str, ...]) -> None:
        pairs: list[tuple[str, Any, Any]] = []
        if isinstance(node, yaml.MappingNode):
            pairs = [(key.value, key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
        elif isinstance(node, yaml.SequenceNode):
            pairs = [(str(index), value, value) for index, value in enumerate(node.value)]
        for name, where, value in pairs:
            found.setdefault(".".join([*above, name]), where.start_mark.line + 1)
            walk(value, (*above, name))

    try:
        walk(yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=_Loader), ())
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    return found


_BLAMED = re.compile(r"(?P<key>[\w.\-]+)(?: \([^)]*\))?:(?: (?P<inner>[\w.\-]+):)?")


def located(message: str, path: str | Path, lines: Mapping[str, tuple[str | Path, int]], overridden: Collection[str] = ()) -> str:
    """A message with ``file:line:`` before each of its lines; ``file:`` where the key that is blamed stands in no file.

    Args:
        message: One line a mistake, each of which begins with its dotted key.
        path: The file that is blamed for the others.
        lines: Where each dotted key stands.
        overridden: Dotted keys that were given besides the file.
    """
    return "\n".join(f"{_place(line, path, lines, overridden)}: {line}" for line in message.split("\n"))


def _place(line: str, path: str | Path, lines: Mapping[str, tuple[str | Path, int]], overridden: Collection[str]) -> str:
    found = _BLAMED.match(line)
    if found is None:
        return str(path)
    key, inner = found["key"], found["inner"]
    if any(f"{key}.".startswith(f"{given}.") for given in overridden):
        return str(path)
    parts = key.split(".")
    above = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    for candidate in (*((f"{key}.set.{inner}", f"{key}.{inner}") if inner else ()), *above):
        if candidate in lines:
            where, number = lines[candidate]
            return f"{where}:{number}"
    return str(path)


def dump_yaml(value: Any) -> str:
    """YAML text that :func:`parse_yaml` reads back."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def merge(base: Any, new: Any) -> Any:
    """``new`` over ``base``, key by key.

    A mapping with ``kind`` is replaced as a whole when the new kind is another: a temperature of one loss must not survive in the next. A mapping of
    places, ``{"0": ..., "1": ...}``, goes into a list, or makes one of what was none.

    Raises:
        ConfigError: If a place lies behind the list's next one.
    """
    if isinstance(new, Mapping) and new and all(isinstance(key, str) and key.isdigit() for key in new):
        return _placed(base if isinstance(base, (list, tuple)) else (), new)
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


def _placed(base: Sequence[Any], new: Mapping[str, Any]) -> list[Any]:
    found = list(base)
    for key, value in sorted(new.items(), key=lambda item: int(item[0])):
        place = int(key)
        if place > len(found):
            raise ConfigError(f"a list must be given in order, but got place {place} of one with {len(found)} (the first is 0)")
        found[place : place + 1] = [merge(found[place] if place < len(found) else None, value)]
    return found


def nested(dotted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One nested mapping for each dotted key; kinds and imports come first, since they decide what the others mean, and places of lists in order."""
    ordered = sorted(dotted.items(), key=lambda item: (_places(item[0]), not item[0].endswith((".kind", ".import")), item[0].count(".")))
    found = []
    for key, value in ordered:
        tree: Any = value
        for part in reversed(key.split(".")):
            tree = {part: tree}
        found.append(tree)
    return found


def _places(key: str) -> tuple[int, ...]:
    return tuple(int(part) for part in key.split(".") if part.isdigit())


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted keys and their values from ``key=value`` texts; values are YAML. Of a key that is given twice the last holds, with a warning.

    Raises:
        ConfigError: If one has no "=", or no key.
    """
    found: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            raise ConfigError(f"an override must have the form key=value, as in optimizer.epochs=2, but got {text!r}")
        if key.strip() in found:
            warnings.warn(f"{key.strip()} is given more than once, of which the last holds: {text}", stacklevel=2)
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
        places = {key: (path, line) for key, line in lines_of(path).items()}
        raise ConfigError(located(str(error), path, places, dotted)) from None
    for line in _without_effect(run):
        warnings.warn(line, stacklevel=2)
    return run


def _without_effect(run: Run) -> list[str]:
    """What the user must have set, since it is not the default, and what switches it off."""
    method, default = run.method, Method()
    lines = []
    if method.alpha == 0 and method.loss != default.loss:
        lines.append("method.loss has no effect while method.alpha is 0")
    if run.is_output_only:
        changed = [name for name in ("profile", "schedule") if getattr(method, name) != getattr(default, name)]
        lines += [f"method.{name} has no effect while nothing but the output is supervised (method.alpha and method.beta)" for name in changed]
    if method.alpha == 0 and method.grad_ratio is not None:
        lines.append("method.grad_ratio has no effect while method.alpha is 0")
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


def one_of(name: str, value: str, choices: Any) -> Any:
    """The value, as one of a Literal type.

    Args:
        name: What the user set by it, as they write it.
        value: What they gave.
        choices: The Literal type.

    Raises:
        ConfigError: If it is none of them; names the nearest.
    """
    known = list(get_args(choices))
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, but got {value!r}; {near(value, known)}")
    return value
