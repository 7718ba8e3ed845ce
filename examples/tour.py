# %% [markdown]
# # A tour of imachsr
#
# Cells as VS Code, PyCharm and Jupytext read them; `python examples/tour.py` runs them all on a CPU in some seconds.

# %%
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, TensorDataset

import imachsr
from imachsr.data.scenes import Scenes

torch.manual_seed(0)
scenes = Scenes(size=(64, 96), num_train=16, num_val=4)
train, val = scenes.load("train"), scenes.load("val")
print(f"{len(train)} street scenes of {tuple(train.images.shape[-2:])} pixels, {scenes.num_classes} classes")

# %% [markdown]
# ## Wrap a model
# One line; the model stays as it is, with the same keys and the same speed without labels.

# %%
images, labels = train.images.float() / 255, train.labels.long()
model = smp.Unet("resnet18", encoder_weights=None, classes=scenes.num_classes)
net = imachsr.IMacHSR(model, example=images[:2], num_classes=scenes.num_classes)
for tap in net.taps:
    print(f"{tap.layer.address}: {tap.reason}")

# %% [markdown]
# ## Train it as ever
# The optimizer takes the net's parameters: the adapters of the side losses are among them.

# %%
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
history = []
for _ in range(3):
    for batch, target in DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True):
        losses = net(batch, target)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append(losses.output.item())
print(f"loss of the output {history[0]:.2f} -> {history[-1]:.2f}; side losses {', '.join(f'{value:.2f}' for value in losses.side.values())}")

# %% [markdown]
# ## What remains is the model

# %%
model.eval()
with torch.no_grad():
    predicted = model(val.images.float() / 255).argmax(1)
is_valid = val.labels != 255
accuracy = (predicted == val.labels)[is_valid].float().mean()
print(f"{accuracy:.0%} of the pixels are right after {len(history)} steps")

# %% [markdown]
# ## Other layers, another loss

# %%
other = imachsr.IMacHSR(
    smp.Unet("resnet18", encoder_weights=None, classes=scenes.num_classes),
    example=images[:2],
    num_classes=scenes.num_classes,
    standard=imachsr.ResolutionStandard(max_taps=2, placement="early"),
    loss=imachsr.Dice(),
    alpha=0.3,
)
print([tap.layer.address for tap in other.taps], float(other(images[:4], labels[:4]).total))
