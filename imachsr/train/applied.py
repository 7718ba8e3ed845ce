"""Proof that what is trained is what was asked for: the live objects against the settings."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from imachsr.config.schema import ByDepth, Run
from imachsr.core.layers import Trace
from imachsr.models import SmpModel
from imachsr.train.state import Training

Facts = dict[str, Any]
_DRAWN = ("address", "cls", "channels", "height", "width", "stride", "depth", "params")


def live(training: Training) -> Facts:
    """What the objects of a training say of themselves, read from them and not from the settings; plain values.

    ``taps`` are the addresses that fire, ``network`` is what they were chosen from (None where none were to be); the other keys are those of
    :func:`wanted`.
    """
    net, options = training.net, training.optimizer.param_groups
    groups = sorted({float(group["weight_decay"]) for group in options})
    return {
        "taps": [tap.layer.address for tap in net.taps],
        "network": _network(net.traced, type(net.backbone).__name__),
        "model": type(net.backbone).__name__.lower(),
        "classes": net.num_classes,
        "output_loss": _spec(net.output_loss),
        "losses": [_spec(loss) for loss in net.losses],
        "alpha": net.objective.alpha,
        "entropy": _spec(net.entropy),
        "beta": net.objective.beta,
        "profile": net.objective.profile,
        "schedule": _spec(net.objective.schedule),
        "grad_ratio": net.objective.grad_ratio,
        "seed": net.seed,
        "lr": [float(group["initial_lr"]) for group in options],
        "weight_decay": groups,
        "ema": training.ema is not None,
        "steps": training.steps_per_epoch,
    }


def _network(traced: Trace | None, name: str) -> Facts | None:
    """The candidate layers in execution order, as far as a drawing shows them."""
    if traced is None:
        return None
    layers = [{key: getattr(layer, key) for key in _DRAWN} for layer in traced.layers]
    return {"name": name, "input_size": list(traced.input_size), "layers": layers}


def wanted(run: Run, *, num_taps: int) -> Facts:
    """What :func:`live` must say, from the settings alone; what only a build can know (taps, steps) and the user's own parts are left out.

    Args:
        run: The settings.
        num_taps: That were found, for losses that are given a tap.
    """
    method = run.method
    facts: Facts = {
        "classes": run.data.num_classes if run.data.kind != "import" else None,
        "output_loss": _spec(run.output_loss),
        "alpha": method.alpha,
        "beta": method.beta,
        "profile": method.profile,
        "schedule": _spec(method.schedule),
        "grad_ratio": method.grad_ratio,
        "seed": run.seed,
        "entropy": _spec(method.entropy) if method.entropy is not None and method.beta > 0 else None,
        "losses": _losses(run, num_taps) if method.alpha > 0 else [],
        "ema": run.optimizer.ema is not None,
    }
    if isinstance(run.model, SmpModel):
        facts["model"] = run.model.architecture
    return {key: fact for key, fact in facts.items() if not _is_own(fact) and not (key == "classes" and fact is None)}


def differences(run: Run, found: Mapping[str, Any]) -> list[str]:
    """Where the live objects are not what was asked for, in words; none when all is as it should be."""
    lines = []
    for key, fact in wanted(run, num_taps=len(found["taps"])).items():
        if found.get(key) != fact:
            lines.append(f"{key} must be {fact!r}, but the trained one is {found.get(key)!r}")
    if any(lr != run.optimizer.lr for lr in found["lr"]):
        lines.append(f"lr must be {run.optimizer.lr!r}, but the trained one is {found['lr']!r}")
    if set(found["weight_decay"]) - {0.0, run.optimizer.weight_decay} or (run.optimizer.weight_decay not in found["weight_decay"]):
        lines.append(f"weight_decay must be {run.optimizer.weight_decay!r}, but the trained ones are {found['weight_decay']!r}")
    most = getattr(run.method.standard, "max_taps", None)
    if most is not None and len(found["taps"]) > most:
        lines.append(f"at most {most} layers must be tapped, but {len(found['taps'])} are")
    if bool(found["taps"]) == run.is_output_only:
        lines.append("layers must be tapped exactly when method.alpha or method.beta is above 0, but " + f"{len(found['taps'])} are")
    return lines


def _losses(run: Run, num_taps: int) -> list[Any]:
    loss = run.method.loss
    if isinstance(loss, tuple):
        return [_spec(each) for each in loss]
    if isinstance(loss, ByDepth):
        early = max(1, int(loss.share * num_taps))
        return [_spec(loss.early)] * early + [_spec(loss.late)] * (num_taps - early)
    return [_spec(loss)] * num_taps


def _spec(part: Any) -> Any:
    """A part as plain values; a user's own one as its name."""
    if part is None or isinstance(part, (str, int, float)):
        return part
    if is_dataclass(part) and not isinstance(part, type):
        return {"class": type(part).__name__, **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(part).items()}}
    return {"class": getattr(part, "__name__", type(part).__name__), "own": True}


def _is_own(fact: Any) -> bool:
    """Whether a fact is about something that the user wrote, which is built from the settings in ways not known here."""
    if isinstance(fact, list):
        return any(_is_own(each) for each in fact)
    return isinstance(fact, dict) and (fact.get("own", False) or fact.get("class") == "ImportedPart")
