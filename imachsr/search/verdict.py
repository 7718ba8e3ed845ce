"""What a confirmation says: paired differences, their tests, and words that do not say more than these."""

from collections.abc import Mapping, Sequence
from typing import Any

from imachsr.search.paired import ALPHA, LEAST_FOR_INTERVAL, bootstrap_interval, holm, power, prediction_interval, sign_flip, smallest_p, wilcoxon


def judge(facts: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Compare every configuration of a confirmation with its baseline, over the seeds that both have.

    A configuration that failed with a seed is not judged, and counts in Holm's family with p = 1: its failures are no accident that could be
    left out. A seed with which the baseline failed is left out for all: that is to the baseline's advantage.

    Args:
        facts: Of the plan.
        summary: summary.json of the confirmation, all of whose trials have ended.

    Returns:
        The content of confirm.json: the facts, ``configurations`` with ``values`` and ``differences`` by seed, ``mean``, ``difference``,
        ``interval`` (95 %, of the mean difference, not adjusted), ``p`` (exact sign-flip, two-sided), ``p_wilcoxon``, ``p_holm``, ``verdict``
        (baseline, better, worse, open or failed), ``words`` and ``expected`` (95 %, of one more run); ``comparisons``, ``best`` (by mean),
        ``notes``, ``versions``.
    """
    names = [each["name"] for each in facts["configurations"]]
    values = {name: _values(summary, name) for name in names}
    baseline = names[0]
    found = [_compared(each, facts, values[each["name"]], values[baseline], is_baseline=each["name"] == baseline) for each in facts["configurations"]]
    others = found[1:]
    adjusted = holm([1.0 if each["p"] is None else each["p"] for each in others])
    for each, p in zip(others, adjusted, strict=True):
        each["p_holm"] = p if each["p"] is not None else None
        each["verdict"] = _verdict(each, facts["mode"])
        each["words"] = _words(each, baseline, facts["confirmed"])
    found[0] |= {"verdict": "failed" if found[0]["failed"] else "baseline"}
    found[0]["words"] = _of_baseline(found[0], facts["confirmed"])
    sign = 1 if facts["mode"] == "max" else -1
    means = {each["name"]: sign * each["mean"] for each in found if not each["failed"]}
    return {
        **facts,
        "configurations": found,
        "comparisons": len(others),
        "best": max(means, key=lambda name: means[name], default=None),
        "notes": _notes(facts, summary, len(values[baseline]), len(others)),
        "versions": summary["versions"],
    }


def _values(summary: Mapping[str, Any], name: str) -> dict[int, float]:
    return {trial["seed"]: trial["value"] for trial in summary["trials"] if trial["arm"] == name and trial["state"] == "COMPLETE"}


def _compared(
    each: Mapping[str, Any], facts: Mapping[str, Any], values: Mapping[int, float], baseline: Mapping[int, float], *, is_baseline: bool
) -> dict[str, Any]:
    seeds = facts["seeds"]
    ordered = [values[seed] for seed in seeds if seed in values]
    paired = {seed: values[seed] - baseline[seed] for seed in seeds if seed in values and seed in baseline}
    found = {
        **each,
        "values": {str(seed): values[seed] for seed in seeds if seed in values},
        "failed": [seed for seed in seeds if seed not in values],
        "mean": sum(ordered) / len(ordered) if ordered else None,
        "expected": prediction_interval(ordered) if len(ordered) > 1 else None,
    }
    if is_baseline:
        return found
    differences = list(paired.values())
    is_judged = bool(differences) and not found["failed"]
    return found | {
        "differences": {str(seed): difference for seed, difference in paired.items()},
        "difference": sum(differences) / len(differences) if differences else None,
        "interval": bootstrap_interval(differences) if len(differences) >= LEAST_FOR_INTERVAL else None,
        "p": sign_flip(differences).p if is_judged else None,
        "p_wilcoxon": wilcoxon(differences).p if is_judged else None,
    }


def _verdict(each: Mapping[str, Any], mode: str) -> str:
    if each["p_holm"] is None:
        return "failed"
    if each["p_holm"] >= ALPHA:
        return "open"
    return "better" if (each["difference"] > 0) == (mode == "max") else "worse"


def other_data(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is to be said where a confirmation has other data than its search, by their fingerprints; "" where it has the same."""
    strange = [f"{split} has the fingerprint {found} and had {before[split]}" for split, found in now.items() if before.get(split, found) != found]
    return f"The data are not those of the search: {'; '.join(strange)}. What it found there may not hold here." if strange else ""


def is_percent(metric: str) -> bool:
    """Whether a metric is in percent, so that differences are points."""
    return "iou" in metric or metric.endswith(("accuracy", "ece"))


def number(value: float, metric: str, *, signed: bool = False) -> str:
    """A value, or a difference, of a metric in as many digits as are worth reading."""
    return f"{value:{'+' if signed else ''}{'.2f' if is_percent(metric) else '.4g'}}"


def between(bounds: Sequence[float | None], metric: str, *, signed: bool = False) -> str:
    """An interval; a bound that is not finite, or null, is none."""
    low, high = (None if bound is None or abs(bound) == float("inf") else number(bound, metric, signed=signed) for bound in bounds)
    return f"{low or 'no bound'} to {high or 'no bound'}"


def _words(each: Mapping[str, Any], baseline: str, metric: str) -> str:
    name, pairs = each["name"], len(each["differences"])
    if each["verdict"] == "failed":
        if not each["failed"]:
            return f"{name}: not judged, since {baseline} finished with no seed"
        return f"{name}: not judged, since it failed with {len(each['failed'])} of the seeds ({', '.join(map(str, each['failed']))})"
    unit = " points" if is_percent(metric) else ""
    mean = f"{number(each['difference'], metric, signed=True)}{unit} in the mean of {pairs} pair{'s' * (pairs > 1)}"
    if each["interval"] is not None:
        mean += f" (95 % interval {between(each['interval'], metric, signed=True)})"
    p = f"p {each['p']:.3g}, adjusted {each['p_holm']:.3g}"
    if each["verdict"] == "open":
        return f"{name}: neither better nor worse than {baseline} as far as these runs can tell: {mean}, {p}"
    return f"{name}: {each['verdict']} than {baseline}: {mean}, {p}"


def _of_baseline(each: Mapping[str, Any], metric: str) -> str:
    if each["mean"] is None:
        return f"{each['name']}: finished with no seed, so that nothing can be compared"
    failed = f"; it failed with {', '.join(map(str, each['failed']))}, which are left out for all" if each["failed"] else ""
    return f"{each['name']}: {number(each['mean'], metric)} in the mean of {len(each['values'])} runs, what the others are compared with{failed}"


def _notes(facts: Mapping[str, Any], summary: Mapping[str, Any], pairs: int, comparisons: int) -> list[str]:
    is_other = facts["metric"] != facts["confirmed"]
    several = f"{comparisons} comparisons" if comparisons > 1 else "1 comparison"
    notes = [strange] if (strange := other_data(facts.get("data", {}), summary.get("data", {}))) else []
    if pairs > 1:
        chance, least = power(pairs, 1.0, comparisons=comparisons), min(1.0, comparisons * smallest_p(pairs))
        notes.append(
            f"{several} over {pairs} seeds that the search never used: exact sign-flip test, two-sided, and Holm. The smallest adjusted p "
            f"possible is {least:.2g}; a true gain of one standard deviation of the differences would be found with probability {chance:.2f} or so."
        )
    if is_other:
        notes.append(
            f"The search scored {facts['metric']} on a part of train; {facts['confirmed']} is another split, and trained on all of train: "
            "compare the differences, not the levels."
        )
    if any(each["trial"] is not None for each in facts["configurations"]) and facts["candidates"] > 1:
        notes.append(
            f"Sampled configurations were the best of {facts['candidates']}, so that some of their gain in the search was luck; the confirmed "
            "difference of each has none of that, the best of several confirmed ones a little."
        )
    notes.append(
        f"This holds for these data, {facts['epochs']} epochs and these settings. Intervals are of one comparison each, not adjusted for "
        f"{'their number' if comparisons > 1 else 'others'}."
    )
    return notes
