"""The user's own data set, by import path."""

from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

from imachsr.core.types import IGNORE_INDEX
from imachsr.data.classes import Parts, parts_of
from imachsr.data.samples import Dataset, NoSplitError, Progress, Samples, Split, check_split, untold
from imachsr.importing import blaming, call_object


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A factory that gives an object with ``num_classes``, ``class_names`` and ``load(split) -> Samples``, and perhaps ``parts``.

    ``parts``: what some of its classes hold that other data sets tell apart, such as ``{"car": ("truck", "bus")}``, for scores across data sets.

    In YAML: ``import: package.module:factory`` with the factory's arguments beside it.

    Args:
        path: ``package.module:factory``.
        kwargs: Passed to the factory.
    """

    kind: Literal["import"] = "import"
    path: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _made(self) -> Dataset:
        made = call_object(self.path, self.kwargs)
        with blaming(f"num_classes and class_names of {self.path!r}", self.path):
            missing = [name for name in ("num_classes", "class_names", "load") if not hasattr(made, name)]
            count, names = (None, []) if missing else (made.num_classes, list(made.class_names))
        if missing:
            raise ValueError(f"what {self.path!r} gives must have num_classes, class_names and load(split), but has no {', '.join(missing)}")
        if not isinstance(count, Integral):
            raise ValueError(f"`num_classes` of {self.path!r} must be an integer, but got {count!r}")
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"`class_names` of {self.path!r} must be texts, but got {names}")
        if not 2 <= int(count) <= IGNORE_INDEX or len(set(names)) != len(names) or len(names) != int(count):
            raise ValueError(
                f"`class_names` of {self.path!r} must be `num_classes` (2 to {IGNORE_INDEX}) different names, but got {count} and {names}"
            )
        with blaming(f"parts of {self.path!r}", self.path):
            parts = {name: list(some) for name, some in dict(parts_of(made)).items()}
        if unknown := [name for name in parts if name not in names]:
            raise ValueError(f"`parts` of {self.path!r} must be of its classes ({', '.join(names)}), but got {unknown[0]!r}")
        dataset: Dataset = made
        return dataset

    @property
    def num_classes(self) -> int:
        return int(self._made.num_classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._made.class_names)

    @property
    def parts(self) -> Parts:
        return parts_of(self._made)

    def load(self, split: Split, *, progress: Progress = untold) -> Samples:
        """The split as the user's object gives it.

        Args:
            split: Which.
            progress: Not called: the object tells nothing.

        Raises:
            NoSplitError: If the object says so.
            ValueError: If it fails, or gives no :class:`Samples`, none at all, or a label outside the classes.
        """
        check_split(split)
        made, missing = self._made, None
        with blaming(f"load({split!r}) of {self.path!r}", self.path):
            try:
                samples = made.load(split)
            except NoSplitError as error:
                missing = error
        if missing is not None:
            raise missing
        if not isinstance(samples, Samples):
            raise ValueError(f"load({split!r}) of {self.path!r} must give imachsr.data.Samples, but gave {type(samples).__name__}")
        if not len(samples):
            raise ValueError(f"load({split!r}) of {self.path!r} must give at least one sample, but gave none")
        highest = int(samples.labels[samples.labels != IGNORE_INDEX].max()) if bool((samples.labels != IGNORE_INDEX).any()) else 0
        if highest >= self.num_classes:
            raise ValueError(
                f"labels of load({split!r}) of {self.path!r} must be in 0..{self.num_classes - 1} or {IGNORE_INDEX} (ignored), but got {highest}"
            )
        return samples
