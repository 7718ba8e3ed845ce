"""Relations between settings that every sampled configuration keeps, as data."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field, model_validator

from imachsr.search.space.conditions import Part, is_number, meets, words

Look = Callable[[str], Any]
MISSING = object()
# A sum of decimal fractions may miss its bound by a rounding, and two equal numbers break `less` by nothing.
_ROUNDING = 1e-9


class Constraint(Part):
    """One relation; where a setting that it names does not exist, it says nothing.

    Attributes:
        sum: Settings whose sum has the bounds ``at_least``, ``at_most``, or one of them.
        product: Likewise of their product.
        at_least: Lower bound, included.
        at_most: Upper bound, included.
        less: Settings of which each is below the next.
        differ: Settings of which no two are equal.
        forbid: Settings and values, as in ``when``, that must not all be met.
        when: Settings and values under which the relation matters at all.
    """

    sum: tuple[str, ...] | None = Field(None, min_length=1)
    product: tuple[str, ...] | None = Field(None, min_length=1)
    at_least: float | None = Field(None, allow_inf_nan=False)
    at_most: float | None = Field(None, allow_inf_nan=False)
    less: tuple[str, ...] | None = Field(None, min_length=2)
    differ: tuple[str, ...] | None = Field(None, min_length=2)
    forbid: dict[str, Any] | None = Field(None, min_length=1)
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> "Constraint":
        forms = ("sum", "product", "less", "differ", "forbid")
        given = [name for name in forms if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"one of {', '.join(forms)} must be given, but got {' and '.join(given) or 'none'}")
        has_bounds = self.at_least is not None or self.at_most is not None
        if has_bounds != (given[0] in ("sum", "product")):
            raise ValueError("`at_least` or `at_most` must go with sum and product" + ("" if has_bounds else ", but neither is given"))
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"`at_least <= at_most` must hold, but got {self.at_least:g} and {self.at_most:g}")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that it names."""
        listed = self.sum or self.product or self.less or self.differ or tuple(self.forbid or ())
        return (*listed, *self.when)

    def excess(self, look: Look) -> float:
        """How far settings are beyond the relation: 0 or less where they keep it, > 0 where they break it.

        Args:
            look: Gives a setting's value, or :data:`MISSING`.
        """
        values = {key: look(key) for key in self.keys}
        if any(value is MISSING for value in values.values()) or not all(meets(values[key], wanted) for key, wanted in self.when.items()):
            return 0.0
        if self.forbid is not None:
            return float(all(meets(values[key], wanted) for key, wanted in self.forbid.items()))
        if self.differ is not None:
            listed = [values[key] for key in self.differ]
            return float(any(value in listed[:index] for index, value in enumerate(listed)))
        numbers = [values[key] for key in self.sum or self.product or self.less or ()]
        if not all(map(is_number, numbers)):
            return 0.0
        if self.less is not None:
            return max(_beyond(low - high, strict=True) for low, high in zip(numbers, numbers[1:], strict=False))
        total = math.fsum(numbers) if self.sum is not None else math.prod(numbers)
        over = total - self.at_most if self.at_most is not None else -math.inf
        under = self.at_least - total if self.at_least is not None else -math.inf
        return _beyond(max(over, under), scale=abs(total))

    @property
    def words(self) -> str:
        """The relation in words."""
        head = f"when {words(self.when)}: " if self.when else ""
        if self.forbid is not None:
            return f"{head}not {words(self.forbid, ' with ')}"
        if self.less is not None:
            return f"{head}{' < '.join(self.less)}"
        if self.differ is not None:
            return f"{head}{', '.join(self.differ)} differ"
        bounds = [f"{sign} {bound:g}" for sign, bound in ((">=", self.at_least), ("<=", self.at_most)) if bound is not None]
        return f"{head}{' + '.join(self.sum) if self.sum else ' x '.join(self.product or ())} {' and '.join(bounds)}"


def _beyond(excess: float, *, scale: float = 1.0, strict: bool = False) -> float:
    if strict:
        return max(excess, _ROUNDING) if excess >= 0 else excess
    return excess if excess > _ROUNDING * max(1.0, scale) else min(excess, 0.0)


def looked_up(tree: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings and lists, or :data:`MISSING`."""
    for part in key.split("."):
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, (list, tuple)) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return MISSING
    return tree
