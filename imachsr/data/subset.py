"""Less to train on than there is: a share of the labels, or all sequences but one."""

from collections.abc import Callable
from dataclasses import dataclass

from imachsr.data.samples import Samples, Split
from imachsr.data.splits import Selection, sequences_of

_LEAST = 5
"""Frames; a share of fewer, rounded, would be off by more than a tenth."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Which of the training samples are trained on.

    Args:
        share: Of the samples of each sequence, in (0, 1], evenly spread over its frames: the same ones for every seed and method. Sequences of which
            that would be fewer than five frames, such as the single ones of Cityscapes, are shared as if they were one.
        hold_out: A sequence of train that is not trained on, and scored on in place of val: how a model does on a street that it has never seen
            (in quotes where YAML reads it as a number: "0016E5").
            null: val is scored on.
    """

    share: float = 1.0
    hold_out: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"`0 < share <= 1` must hold, but got {self.share}")

    def split(self, train: Samples, val: Callable[[], Samples], *, selection: Selection | None = None) -> tuple[Samples, Samples]:
        """The samples to train on, and those to score on.

        Args:
            train: All training samples.
            val: Gives the validation samples; called only where they are scored on.
            selection: Cut what is scored on out of train, so that neither val nor the held-out sequence is seen.

        Raises:
            ValueError: If there is no such sequence, nothing is left without it, or the share leaves nothing; names what there is.
        """
        held_out: Samples | None = None
        if self.hold_out is not None:
            train, held_out = self._without(self.hold_out, train)
        if selection is not None:
            train, held_out = selection.split(train)
        if self.share < 1:
            kept = sorted(index for frames in _parts(train, self.share) for index in _spread(frames, self.share))
            if not kept:
                raise ValueError(f"`share` must leave something to train on, but {self.share} of {len(train)} samples is nothing")
            train = train.subset(kept)
        return train, val() if held_out is None else held_out

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits of the data that a training is made and scored on; val need not be there where a sequence of train is held out."""
        return ("train", "val") if self.hold_out is None else ("train",)

    def scored(self, train: Callable[[], Samples], val: Callable[[], Samples]) -> Samples:
        """The samples to score on; either split is loaded only where it is needed.

        Args:
            train: Gives all training samples.
            val: Gives the validation samples.

        Raises:
            ValueError: If the sequence to be held out is none of train.
        """
        return val() if self.hold_out is None else self._without(self.hold_out, train())[1]

    @staticmethod
    def _without(name: str, train: Samples) -> tuple[Samples, Samples]:
        sequences = sequences_of(train.names)
        if name not in sequences or len(sequences) < 2:
            known = ", ".join(sequences) if len(sequences) <= 20 else f"{len(sequences)} others, such as {', '.join(list(sequences)[:5])}"
            raise ValueError(f"`hold_out` must be one of several sequences of train, but got {name!r}; train has {known}")
        out = set(sequences[name])
        return train.subset([index for index in range(len(train)) if index not in out]), train.subset(sorted(out))


def _parts(samples: Samples, share: float) -> list[list[int]]:
    """Frames that are shared out together: of each sequence, and of all together whose share, or what it leaves, would be rounded too much."""
    sequences = sequences_of(samples.names).values()
    short = [frames for frames in sequences if len(frames) * min(share, 1 - share) < _LEAST]
    return [*(frames for frames in sequences if frames not in short), *([[index for frames in short for index in frames]] if short else [])]


def _spread(frames: list[int], share: float) -> list[int]:
    """So many of the frames, each in the middle of an equal part of them."""
    count = round(len(frames) * share)
    return [frames[int((part + 0.5) * len(frames) / count)] for part in range(count)]
