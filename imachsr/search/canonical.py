"""One form for all ways to write a configuration, and its hash: what trains the same is told apart from nothing but itself."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from imachsr.config.load import run_to_dict
from imachsr.config.schema import Run
from imachsr.data.subset import Subset

# Numbers that agree in so many digits are one: 3 x 0.1 is meant to be 0.3.
_DIGITS = 12
# Where results lie, how fast and how safely they come; none of it is in them.
_COMPUTE = ("threads", "loader_workers")
_RECOVERY = ("checkpoint_steps", "checkpoint_minutes", "keep", "hang_minutes", "max_restarts", "wait_minutes")
# Standards that pick no more layers than asked for, as far apart as asked for.
_EXACT = ("depth", "flops", "params", "receptive_field", "probe", "gradient", "entropy", "bottleneck")
_SCHEDULE_OF_ONE = {"kind": "constant"}


def canonical(run: Run) -> dict[str, Any]:
    """The settings that a training depends on, apart from its seed: defaults filled in, settings without an effect left out, numbers in one form.

    A setting is left out only where the code shows that it has no effect: what it would change is not built (losses at ``alpha`` 0), or comes out
    the same (a schedule from 1 to 1, one loss by depth for both halves, shares among a single tap).
    """
    tree = run_to_dict(run)
    tree.pop("name")
    tree.pop("seed")
    tree.pop("scoring")
    tree["data"].pop("cache", None)
    if run.subset == Subset():  # as in folders that are older than this setting
        tree.pop("subset")
    for part, names in (("compute", _COMPUTE), ("recovery", _RECOVERY)):
        tree[part] = {key: value for key, value in tree[part].items() if key not in names}
    if run.recovery.nonfinite == "raise":
        tree["recovery"].pop("max_nonfinite")
    tree["optimizer"]["warmup_epochs"] = min(run.optimizer.warmup_epochs, run.optimizer.epochs)
    tree["method"] = _method(tree["method"])
    found: dict[str, Any] = _plain(tree)
    return found


def fingerprint(run: Run) -> str:
    """Sixteen hexadecimal digits that are equal for configurations that train the same, apart from the seed."""
    return fingerprint_of(canonical(run))


def fingerprint_of(values: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that are equal for equal plain values, in any order, and whether a number is written 1 or 1.0."""
    return hashlib.sha256(json.dumps(_plain(values), sort_keys=True).encode()).hexdigest()[:16]


def words_of_twins(one: str, other: str) -> str:
    """What is wrong with two arms that train the same."""
    hint = "a mapping is laid over that of the run unless its `kind` is another, so that what it leaves out stays"
    return f"arms must differ in what they train, but {one} and {other} do not ({hint})"


def _method(method: Mapping[str, Any]) -> dict[str, Any]:
    has_side, has_entropy = method["alpha"] > 0, method["beta"] > 0 and method["entropy"] is not None
    found = {"alpha": method["alpha"], "beta": method["beta"] if has_entropy else 0}
    if not has_side and not has_entropy:
        return found
    found["standard"] = _standard(method["standard"])
    most = _most_taps(method["standard"])
    found["profile"] = "uniform" if most == 1 else method["profile"]
    found["schedule"] = _schedule(method["schedule"])
    if has_entropy:
        found["entropy"] = method["entropy"]
    if has_side:
        found["loss"] = _loss(method["loss"], most)
        found["grad_ratio"] = method["grad_ratio"]
        # `warn` and `off` train the same; `strict` may refuse to.
        found["heterogeneity"] = "strict" if method["heterogeneity"] == "strict" else "off"
    return found


def _standard(standard: Mapping[str, Any]) -> dict[str, Any]:
    kind, found = standard["kind"], dict(standard)
    if kind == "entropy" or kind == "gradient" and standard["take"] == "minima":
        found.pop("placement")  # the best of a ranking are taken wherever they lie
    if kind in _EXACT and standard["max_taps"] == 1:
        found.pop("min_gap")
    if kind == "explicit":
        found["layers"] = sorted(set(standard["layers"]))
    if kind == "union":
        parts = {json.dumps(_plain(_standard(part)), sort_keys=True) for part in standard["standards"]}
        found["standards"] = [json.loads(part) for part in sorted(parts)]
    return found


def _most_taps(standard: Mapping[str, Any]) -> int | None:
    """The most taps that a standard can choose; None where that depends on the network."""
    if standard["kind"] == "explicit":
        layers = set(standard["layers"])
        is_name = all(not layer.startswith("re:") and not set(layer) & set("*?[") for layer in layers)
        return len(layers) if is_name else None
    count: int | None = standard.get("max_taps")
    return count


def _loss(loss: Any, most: int | None) -> Any:
    if isinstance(loss, list):
        return loss[0] if most == 1 and len(loss) == 1 else loss
    if loss["kind"] != "by_depth":
        return loss
    if loss["early"] == loss["late"] or most == 1:
        return loss["early"]
    if most is None:
        return loss
    # How many of 1, 2, ... taps are early is all that the share says.
    firsts = [max(1, int(loss["share"] * count)) for count in range(1, most + 1)]
    return {**loss, "share": firsts}


def _schedule(schedule: Mapping[str, Any]) -> Mapping[str, Any]:
    kind = schedule["kind"]
    if kind in ("linear", "cosine") and schedule["end"] == 1 or kind == "stop_at" and schedule["share"] == 1:
        return _SCHEDULE_OF_ONE
    return schedule


def _plain(value: Any) -> Any:
    """The value with its numbers in one form: 1.0 as 1, -0.0 as 0, others in twelve digits."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        rounded = float(f"{value:.{_DIGITS}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
    return value
