"""How hard the side terms pull at a network, beside its output's own loss, for every arm of a search's file.

    python benchmarks/side_pull.py search_spaces/camvid_pull.yaml --data PATH/TO/camvid
    python benchmarks/side_pull.py search_spaces/camvid_pull.yaml --data PATH/TO/camvid run.model.architecture=unet \\
        run.model.encoder=tu-mobilenetv3_small_100

Every arm trains with its own settings for a few epochs, in float32. Before each of them, on the first batches of the epoch, the gradient of the side
terms and that of the output's loss are taken apart, over the parameters of the encoder and of the decoder: the ratio of their norms, and the cosine
between them, each of the means over the batches.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from imachsr.config.build import build_net, build_optimizer
from imachsr.config.schema import Run
from imachsr.core.wrapper import IMacHSR
from imachsr.search.space.load import load_search
from imachsr.train.batches import batches

PARTS = ("encoder", "decoder")


def pull(net: IMacHSR, given: Sequence[tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
    """Ratio of norms, and cosine, of the gradients of the side terms and of the output, for each part."""
    named = [(name, weight) for name, weight in net.backbone.named_parameters() if weight.requires_grad]
    weights = [weight for _, weight in named]
    sums = {key: {name: torch.zeros_like(weight) for name, weight in named} for key in ("output", "side")}
    for images, labels in given:
        losses = net(images, labels)
        for key, value in (("output", losses.output), ("side", losses.total - losses.output)):
            for (name, _), grad in zip(named, torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True), strict=True):
                if grad is not None:
                    sums[key][name] += grad
    found = {}
    for part in PARTS:
        output, side = (torch.cat([grad.flatten() for name, grad in sums[key].items() if name.startswith(part)]) for key in ("output", "side"))
        found[part] = (float(side.norm() / output.norm()), float(torch.nn.functional.cosine_similarity(side, output, dim=0)))
    return found


def of_run(run: Run, epochs: int, looked_at: int) -> list[dict[str, tuple[float, float]]]:
    """What pulls before each epoch."""
    samples = run.data.load("train")
    steps = len(samples) // run.optimizer.batch_size
    net = build_net(run, num_classes=run.data.num_classes, size=run.data.size, samples=samples, steps_per_epoch=steps).train()
    optimizer, schedule = build_optimizer(run, net, steps)
    rows = []
    for epoch in range(1, epochs + 1):
        given = [(images, labels.long()) for images, labels in batches(samples, run, epoch=epoch)]
        rows.append(pull(net, given[:looked_at]))
        for images, labels in given if epoch < epochs else ():
            optimizer.zero_grad()
            net(images, labels).total.backward()
            optimizer.step()
            schedule.step()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batches", type=int, default=4)
    args = parser.parse_args()
    search = load_search(args.search, [*args.overrides, f"run.data.root={args.data}"])
    print("| arm | epoch | " + " | ".join(f"{part}: ratio, cosine" for part in PARTS) + " |")
    print("|---|---|" + "---|" * len(PARTS))
    for arm in search.arms:
        run = search.run_of(arm.set_, name=arm.name, seed=0)
        if run.method.alpha == 0:
            continue
        for epoch, row in enumerate(of_run(run, args.epochs, args.batches), 1):
            print(f"| {arm.name} | {epoch} | " + " | ".join(f"{ratio:.2f}, {cosine:+.2f}" for ratio, cosine in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
