"""A training as it stands between two steps: what moves, and how it becomes a checkpoint and comes back."""

import json
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imachsr.config.continued import changed
from imachsr.config.load import run_to_dict
from imachsr.config.plan import Plan
from imachsr.config.schema import ConfigError, Run
from imachsr.core.wrapper import IMacHSR
from imachsr.train.parallel import Row, agree, gathered, rank_and_world, share_buffers, whole


@dataclass(kw_only=True)
class Progress:
    """Sums over the steps of the epoch that is under way, on this rank.

    Attributes:
        sums: Of each number over the steps that gave it.
        counts: Those steps.
        times: Seconds of each step.
        seconds: Of the epoch so far.
        lr: Of the last step.

    """

    sums: Row = field(default_factory=dict)
    counts: Row = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    seconds: float = 0.0
    lr: float = 0.0

    def add(self, row: Row) -> None:
        """Take up one step's numbers."""
        for key, value in row.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
            self.counts[key] = self.counts.get(key, 0) + 1

    def means(self) -> Row:
        """Mean of each number."""
        return {key: value / self.counts[key] for key, value in self.sums.items()}


@dataclass(kw_only=True)
class Training:
    """Everything that changes while a run is trained.

    Attributes:
        run: The settings.
        net: What is trained.
        wrapped: The same, shared between ranks; forwards go through it.
        optimizer: Of its parameters.
        scheduler: Of the optimizer.
        scaler: Of the loss under float16.
        ema: Exponential mean of the backbone.
        steps_per_epoch: Optimisation steps over all samples.
        size: (H, W) of the images.
        began_at: Of the clock ``time.monotonic``, when this process began with the training.
        spent_s: Seconds that the processes before it took, each up to its last checkpoint.
        step: Steps done, over all epochs.
        nonfinite: Steps that were not finite.
        history: A row an epoch that is over.
        progress: Of the epoch that is under way.

    """

    run: Run
    net: IMacHSR
    wrapped: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler | None
    ema: AveragedModel | None
    steps_per_epoch: int
    size: tuple[int, int]
    began_at: float = field(default_factory=time.monotonic)
    spent_s: float = 0.0
    step: int = 0
    nonfinite: int = 0
    history: list[Row] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    @property
    def plan(self) -> Plan:
        """The steps of each epoch."""
        return Plan(run=self.run, full=self.steps_per_epoch)

    @property
    def scored(self) -> nn.Module:
        """The module whose scores count: images to logits."""
        return self.net if self.ema is None else self.ema.module

    @property
    def wall_s(self) -> float:
        """Seconds of the training, over all processes that it took."""
        return self.spent_s + time.monotonic() - self.began_at

    @property
    def is_fsdp(self) -> bool:
        """Whether its state goes by the names of parameters, so that it fits a group that shrinks to one, where nothing is sharded, and grows."""
        return self.run.compute.parallel == "fsdp"

    def share_buffers(self) -> None:
        """Give every rank rank 0's buffers, also those of the mean; every rank must call."""
        share_buffers(self.net)
        if self.ema is not None:
            share_buffers(self.ema.module)

    def is_sound(self) -> bool:
        """Whether all weights that are trained are finite; every rank must call."""
        largest = nn.utils.get_total_norm([p.detach() for p in self.net.parameters() if p.requires_grad], math.inf)
        (is_spoilt,) = agree(not math.isfinite(float(whole(largest))))
        return not is_spoilt

    def capture(self) -> dict[str, Any]:
        """All of it as tensors and texts, the same on all ranks; every rank must call."""
        self.share_buffers()
        if self.is_fsdp:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict  # takes long to import

            net, optimizer = get_state_dict(self.net, self.optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        else:
            net, optimizer = self.net.state_dict(), self.optimizer.state_dict()
        return {
            "run": json.dumps(run_to_dict(self.run)),
            "num_classes": self.run.data.num_classes,
            "net": net,
            "optimizer": optimizer,
            "is_sharded": self.is_fsdp,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "ema_updates": 0 if self.ema is None else int(self.ema.n_averaged),
            "balance": [] if self.net.balance is None else gathered(self.net.balance.get_extra_state().cpu()),
            "wall_s": self.wall_s,
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "size": list(self.size),
            "nonfinite": self.nonfinite,
            "history": json.dumps(self.history),
            "progress": json.dumps(gathered(vars(self.progress))),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`capture` gave, with as many ranks or another number.

        Raises:
            ConfigError: If the settings, or the number of steps an epoch, are others.

        """
        if differing := changed(json.loads(state["run"]), run_to_dict(self.run)):
            raise ConfigError(
                f"a training must be continued with the settings that it began with, but {', '.join(differing)} changed; see run.yaml in its folder"
            )
        if state["steps_per_epoch"] != self.steps_per_epoch:
            raise ConfigError(
                f"a training must be continued with its data, but an epoch had {state['steps_per_epoch']} steps and now has {self.steps_per_epoch}"
            )
        self.restore_weights(state)
        self.step, self.nonfinite, self.spent_s = state["step"], state["nonfinite"], state.get("wall_s", 0.0)
        self.history = json.loads(state["history"])
        self.progress = _own(json.loads(state["progress"]))
        self.place_schedule()

    def restore_weights(self, state: dict[str, Any]) -> None:
        """Weights, buffers and the optimizer's moments only.

        Raises:
            ConfigError: If the optimizer's state is that of the other kind of data parallelism.

        """
        if state["is_sharded"] != self.is_fsdp:
            was, now = ("fsdp", "ddp") if state["is_sharded"] else ("ddp", "fsdp")
            raise ConfigError(f"a training must be continued with `compute.parallel` = {was}, but got {now}")
        if self.is_fsdp:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

            options = StateDictOptions(full_state_dict=True)
            set_state_dict(self.net, self.optimizer, model_state_dict=state["net"], optim_state_dict=state["optimizer"], options=options)
        else:
            self.net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
        _lay_out(self.optimizer)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.fill_(state["ema_updates"])
        if self.net.balance is not None:
            self.net.balance.set_extra_state(_own_norms(state["balance"]))

    def place_schedule(self) -> None:
        """Set learning rates and the method's schedule to what they are at ``step``."""
        self.scheduler.last_epoch = self.step
        shares = zip(self.optimizer.param_groups, self.scheduler.lr_lambdas, self.scheduler.base_lrs, strict=True)
        for group, share, peak in shares:
            group["lr"] = peak * share(self.step)
        self.scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        self.net.set_extra_state(torch.tensor(self.step * self.run.optimizer.accumulate))


def _lay_out(optimizer: Optimizer) -> None:
    """Lay moments out in memory like their parameters, NCHW or NHWC: a fused optimizer goes through both as they lie, and would mix them up."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _own(saved: list[dict[str, Any]]) -> Progress:
    """This rank's sums; with another number of ranks, the mean over those that were, so that a step that is done counts like one to come."""
    rank, world = rank_and_world()
    if len(saved) == world:
        return Progress(**saved[rank])
    first = Progress(**saved[0])
    for key in dict.fromkeys(key for each in saved for key in each["sums"]):
        first.sums[key] = math.fsum(each["sums"].get(key, 0.0) for each in saved) / len(saved)
        first.counts[key] = sum(each["counts"].get(key, 0) for each in saved) / len(saved)
    return first


def _own_norms(saved: list[Tensor]) -> Tensor:
    """What this rank's last backward showed; with another number of ranks, the mean over all of them, which is what the next step takes."""
    rank, world = rank_and_world()
    if len(saved) == world:
        return saved[rank]
    return torch.stack(saved).mean(0)


def make_ema(net: IMacHSR, decay: float | None) -> AveragedModel | None:
    """Exponential mean of the backbone's weights and buffers, or None."""
    if decay is None:
        return None
    return AveragedModel(net.backbone, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class Buffers:
    """A copy of what a step writes besides weights: buffers, and what the balance has seen; to take back a step that was not finite."""

    def __init__(self, net: IMacHSR) -> None:
        self._net = net
        self._owners = list(net.named_modules())
        self._kept: dict[str, Tensor] = {}
        self._seen = torch.zeros(0)

    @torch.no_grad()
    def keep(self) -> None:
        """Copy them."""
        # Looked up each time, in the modules that there are: a model may replace a buffer, or let it grow.
        live = {f"{path}.{name}": item for path, owner in self._owners if owner._buffers for name, item in owner._buffers.items() if item is not None}
        if [buffer.shape for buffer in live.values()] != [buffer.shape for buffer in self._kept.values()]:
            self._kept = {name: buffer.clone() for name, buffer in live.items()}
        elif live:
            torch._foreach_copy_(list(self._kept.values()), list(live.values()))
        if self._net.balance is not None:
            self._seen = self._net.balance.get_extra_state()

    @torch.no_grad()
    def put_back(self) -> None:
        """Take the copies."""
        for name, kept in self._kept.items():
            path, _, leaf = name.rpartition(".")
            owner = self._net.get_submodule(path)
            live = owner._buffers.get(leaf)
            if live is not None and live.shape == kept.shape:
                live.copy_(kept)
            else:
                owner._buffers[leaf] = kept.clone()
        if self._net.balance is not None:
            self._net.balance.set_extra_state(self._seen)
