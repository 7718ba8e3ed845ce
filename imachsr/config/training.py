"""Settings of the training itself: how weights move, where numbers are computed, what is kept against faults."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Of which nothing may change, and no other key is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Progressive(Settings):
    """Beginning with less: epochs on a part of the samples, or on smaller images, cost less.

    Attributes:
        of: data (samples) or resolution (pixels of an image).
        until: Last epochs (1-based) of the stages, ascending; after the last one everything is there.
        shares: Of each stage, in (0, 1]; of the samples, drawn anew each epoch, or of the pixels.
    """

    of: Literal["data", "resolution"]
    until: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Progressive":
        if len(self.until) != len(self.shares):
            raise ValueError(f"`until` and `shares` must have one entry a stage, but have {len(self.until)} and {len(self.shares)}")
        if any(one >= other for one, other in zip(self.until, self.until[1:], strict=False)):
            raise ValueError(f"`until` must ascend, but got {list(self.until)}")
        return self


class Optimizer(Settings):
    """AdamW with a linear warm-up and a cosine decay to 0 over ``epochs``.

    Attributes:
        epochs: Passes over the training samples, >= 1; the schedule's length, whether or not a search stops the run earlier.
        batch_size: Samples a step, >= 1, over all workers.
        lr: Peak learning rate > 0.
        weight_decay: Decoupled, >= 0; not on biases and norms.
        warmup_epochs: Length of the warm-up, >= 0.
        grad_clip: Largest norm of the backbone's gradient, and of the adapters' by itself, > 0, or null.
        accumulate: Micro-batches that a worker's share of a step is split into, >= 1, to save memory.
        progressive: Stages of a training that begins with fewer samples or smaller images, or null.
        ema: Decay in (0, 1) of an exponential mean of the weights, which is then what is scored and exported, or null.
    """

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(8, ge=1)
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(1e-2, ge=0, allow_inf_nan=False)
    warmup_epochs: float = Field(1.0, ge=0, allow_inf_nan=False)
    grad_clip: float | None = Field(None, gt=0, allow_inf_nan=False)
    accumulate: int = Field(1, ge=1)
    ema: float | None = Field(None, gt=0, lt=1)
    progressive: Progressive | None = None


class Compute(Settings):
    """Where and how numbers are computed; none of it is part of the method.

    Attributes:
        device: auto (a GPU when there is one), cpu or cuda.
        precision: auto, float32, bfloat16 or float16 (autocast; weights stay float32; float16 with a loss scaler).
        channels_last: Memory layout of images and weights: auto, on or off.
        threads: CPU threads a worker, >= 1, or null for torch's choice.
        loader_workers: Processes a worker that augment batches ahead, >= 0; auto: none on a CPU, whose cores train; with a GPU up to 8, of
            which there are `threads` where that is given.
        compile: Whether the net is compiled by torch.compile: the first steps take minutes, the others less time.
        recompute: Activation checkpointing: compute the activations of blocks again in the backward, to save memory.
        parallel: How several workers share the net: ddp (each has all of it) or fsdp (each has a part).
        sync_batch_norm: Whether BatchNorm's statistics are those of all workers; GPUs only.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    channels_last: Literal["auto", "on", "off"] = "auto"
    threads: int | None = Field(None, ge=1)
    loader_workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    compile: bool = False
    recompute: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    sync_batch_norm: bool = False


class Scoring(Settings):
    """When and how a training is scored; none of it is part of the method.

    Attributes:
        every: Epochs from one score to the next, >= 1; the last epoch always has one. In a search 1, which judges its trials by every epoch.
        batch_size: Images at a time, >= 1, of each worker; null: twice those of a training step, whose backward takes more, and at most 16.
    """

    every: int = Field(1, ge=1)
    batch_size: int | None = Field(None, ge=1)

    def is_due(self, epoch: int, last: int) -> bool:
        """Whether an epoch, from 1, of ``last`` is scored."""
        return epoch % self.every == 0 or epoch == last


class Recovery(Settings):
    """What is kept against faults, and what happens when a number is not finite; none of it is part of the method.

    Attributes:
        checkpoint_steps: Steps between two checkpoints within an epoch, >= 1, or null for those after each epoch only.
        checkpoint_minutes: Time between them, > 0, or null.
        keep: Checkpoints that are kept, >= 1, beside the best one.
        nonfinite: When a loss is NaN or infinite: raise; skip the step; or rollback to the last checkpoint and go on behind the step. The latter two
            look at the gradient too, which costs 1 % of a step; raise does so under optimizer.grad_clip only. Without it, a NaN in the gradient of a
            finite loss spoils the weights, and the next step's loss tells: the last checkpoint is that of before.
        max_nonfinite: Such steps in one training before it ends all the same, >= 1.
        hang_minutes: On Ray Train workers, the longest time for a step or a validation, > 0; a worker that needs more is replaced. null: none.
        max_restarts: Times that lost Ray Train workers are replaced before the training ends, >= 0; nodes taken away with notice do not count.
        wait_minutes: Time that is waited for a cluster to have room for the workers again, > 0, before the training ends.
    """

    checkpoint_steps: int | None = Field(None, ge=1)
    checkpoint_minutes: float | None = Field(10.0, gt=0, allow_inf_nan=False)
    keep: int = Field(2, ge=1)
    nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    max_nonfinite: int = Field(10, ge=1)
    hang_minutes: float | None = Field(30.0, gt=0, allow_inf_nan=False)
    max_restarts: int = Field(3, ge=0)
    wait_minutes: float = Field(5.0, gt=0, allow_inf_nan=False)
