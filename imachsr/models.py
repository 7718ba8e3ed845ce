"""Where a backbone comes from."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal
from urllib.error import URLError

from torch import nn

from imachsr.importing import call_object


def _unknown(field_name: str, got: str, known: list[str]) -> ValueError:
    near = get_close_matches(got, known, n=3, cutoff=0.3) or known[:3]
    return ValueError(f"`{field_name}` must be a known name, but got {got!r}; nearest: {', '.join(map(repr, near))}")


@dataclass(frozen=True, kw_only=True)
class SmpModel:
    """A model of segmentation_models_pytorch.

    Args:
        architecture: unet, unetplusplus, manet, linknet, fpn, pspnet, pan, deeplabv3, deeplabv3plus, upernet, segformer or dpt.
        encoder: resnet18, mobilenet_v2, efficientnet-b0, mit_b0, ..., or tu-NAME for an encoder of timm.
        encoder_weights: "imagenet" (downloaded), or None to train from scratch.
    """

    kind: Literal["smp"] = "smp"
    architecture: str = "unet"
    encoder: str = "resnet18"
    encoder_weights: str | None = None

    def build(self, num_classes: int) -> nn.Module:
        """The model with K outputs; draws from the global random state.

        Raises:
            ValueError: If a name is unknown, the two do not fit, or weights cannot be had.
        """
        import segmentation_models_pytorch as smp
        import timm  # which smp depends on

        architectures = list(smp.MODEL_ARCHITECTURES_MAPPING)
        if self.architecture.lower() not in architectures:
            raise _unknown("architecture", self.architecture, architectures)
        encoders = smp.encoders.get_encoder_names()
        if self.encoder.startswith("tu-"):
            encoders = [f"tu-{name}" for name in timm.list_models()]
        if self.encoder.partition(".")[0] not in encoders and not self.encoder.startswith("tu-hf-hub:"):
            raise _unknown("encoder", self.encoder, encoders)
        try:
            model: nn.Module = smp.create_model(self.architecture, self.encoder, encoder_weights=self.encoder_weights, classes=num_classes)
        except (URLError, OSError) as error:
            raise ValueError(
                f"`encoder_weights={self.encoder_weights!r}` must be downloadable, but: {error}; use null to train from scratch"
            ) from error
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"architecture {self.architecture!r} with encoder {self.encoder!r} must build, but: {error}") from error
        return model


@dataclass(frozen=True, kw_only=True)
class TorchvisionModel:
    """A segmentation model of torchvision, without pretrained weights.

    Args:
        name: fcn_resnet50, deeplabv3_resnet50, deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large, ...
        aux_loss: Build the auxiliary head (fcn and deeplabv3 only); the output loss weighs it by its ``aux_weight``.
    """

    kind: Literal["torchvision"] = "torchvision"
    name: str
    aux_loss: bool = False

    def build(self, num_classes: int) -> nn.Module:
        """The model with K outputs, a mapping with "out".

        Raises:
            ValueError: If the name is unknown.
        """
        from torchvision.models import get_model, list_models, segmentation

        known = list_models(module=segmentation)
        if self.name not in known:
            raise _unknown("name", self.name, known)
        options: dict[str, Any] = {} if self.name.startswith("lraspp") else {"aux_loss": self.aux_loss}
        if self.aux_loss and not options:
            raise ValueError(f"`aux_loss` must be false for {self.name!r}, which has no auxiliary head, but got true")
        model: nn.Module = get_model(self.name, weights=None, weights_backbone=None, num_classes=num_classes, **options)
        return model


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """The user's own model; in YAML ``import: package.module:factory`` with the factory's arguments beside it.

    Args:
        path: ``package.module:factory``, called with ``num_classes=K``.
        kwargs: Passed to the factory too.
    """

    kind: Literal["import"] = "import"
    path: str
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, num_classes: int) -> nn.Module:
        """What the factory gives.

        Raises:
            ValueError: If the path or the arguments are wrong, or that is no module.
        """
        if "num_classes" in self.kwargs:
            raise ValueError(f"`num_classes` of {self.path!r} must be left to the data set, but got {self.kwargs['num_classes']!r}")
        model = call_object(self.path, {"num_classes": num_classes, **self.kwargs})
        if not isinstance(model, nn.Module):
            raise ValueError(f"{self.path!r} must give a torch.nn.Module, but gave {type(model).__name__}")
        return model


ModelSpec = SmpModel | TorchvisionModel | ImportedModel
