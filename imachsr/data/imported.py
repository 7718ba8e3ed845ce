"""The user's own data set, by import path."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from imachsr.data.samples import Dataset, Samples, Split, check_split
from imachsr.importing import import_object


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A factory that gives an object with ``num_classes``, ``class_names`` and ``load(split) -> Samples``.

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
        made = import_object(self.path)(**self.kwargs)
        missing = [name for name in ("num_classes", "class_names", "load") if not hasattr(made, name)]
        if missing:
            raise ValueError(f"what {self.path!r} gives must have num_classes, class_names and load(split), but has no {', '.join(missing)}")
        dataset: Dataset = made
        return dataset

    @property
    def num_classes(self) -> int:
        return self._made.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self._made.class_names)

    def load(self, split: Split) -> Samples:
        """The split as the user's object gives it.

        Raises:
            ValueError: If it gives no :class:`Samples`.
        """
        check_split(split)
        samples = self._made.load(split)
        if not isinstance(samples, Samples):
            raise ValueError(f"load({split!r}) of {self.path!r} must give imachsr.data.Samples, but gave {type(samples).__name__}")
        return samples
