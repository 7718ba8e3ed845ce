"""One optimisation step."""

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from imachsr.core.types import Losses
from imachsr.train.device import Placement


def train_step(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    placement: Placement,
    grad_clip: float | None = None,
) -> Losses:
    """Forward, backward and update on images ``[B, 3, H, W]`` and labels ``[B, H, W]``; the schedule advances by one step.

    Args:
        net: :class:`imachsr.IMacHSR`, or DistributedDataParallel around one.
        images: Of the batch, on any device.
        labels: Likewise.
        optimizer: Of the net's parameters.
        scheduler: Of the optimizer.
        placement: Where and in what format the step runs.
        grad_clip: Largest norm of the backbone's gradient, and of the adapters' by itself, so that adding adapters does not shorten the former.

    """
    optimizer.zero_grad(set_to_none=True)
    with placement.autocast():
        losses: Losses = net(placement.put_images(images), labels.to(placement.device))
    losses.total.backward()  # type: ignore[no-untyped-call]
    if grad_clip is not None:
        for part in (net.module if isinstance(net, DistributedDataParallel) else net).children():
            nn.utils.clip_grad_norm_(list(part.parameters()), grad_clip)
    optimizer.step()
    scheduler.step()
    return losses
