"""Activation checkpointing: blocks whose activations are computed again in the backward instead of being kept."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(model: nn.Module) -> list[str]:
    """Let the outermost blocks of the model compute their activations again in the backward.

    A block is a member, with parts of its own, of an ``nn.Sequential`` or ``nn.ModuleList``: a residual block, a transformer block, a decoder stage.
    Names, parameters and hooks stay as they are. BatchNorm sees a batch twice, so that its running statistics follow the data twice as fast.

    Args:
        model: Changed in place.

    Returns:
        Names of the blocks; empty when the model has none.

    """
    chosen: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Sequential, nn.ModuleList)) or any(name == done or name.startswith(f"{done}.") for done in chosen):
            continue
        for child_name, child in module.named_children():
            is_block = next(child.children(), None) is not None and next(child.parameters(), None) is not None
            if is_block and not isinstance(child, (nn.Sequential, nn.ModuleList)):
                chosen.append(f"{name}.{child_name}" if name else child_name)
    for name in chosen:
        block = model.get_submodule(name)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return chosen
