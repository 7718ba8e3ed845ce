"""Data loaded under a bar."""

from typing import TYPE_CHECKING

from imachsr.console import Bar

if TYPE_CHECKING:
    from imachsr.data import DatasetSpec, Samples, Split


def decoded(data: "DatasetSpec", split: "Split") -> "Samples":
    """A split, with a bar where decoding its files takes a while; who loads it later maps what is decoded."""
    with Bar(f"decoding {split}") as bar:
        return data.load(split, progress=bar.update)
