"""Where a backbone comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imachsr.importing import call_object

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_WRAPPERS = ("state_dict", "model")
"""Keys below which training programs put the state dict that they save."""


def _unknown(field_name: str, got: str, known: list[str]) -> ValueError:
    near = get_close_matches(got, known, n=3, cutoff=0.3) or known[:3]
    return ValueError(f"`{field_name}` must be a known name, but got {got!r}; nearest: {', '.join(map(repr, near))}")


@dataclass(frozen=True, kw_only=True)
class SmpModel:
    """A model of segmentation_models_pytorch.

    Args:
        architecture: unet, unetplusplus, manet, linknet, fpn, pspnet, pan, deeplabv3, deeplabv3plus, upernet, segformer or dpt.
        encoder: resnet18, mobilenet_v2, efficientnet-b0, mit_b0, ..., or tu-NAME for an encoder of timm.
        encoder_weights: imagenet, or another name that the encoder has (downloaded once); the path of a file (.pth, .pt, .bin, .safetensors) that
            holds the encoder's state dict, or that of a whole model with this encoder; or None to train from scratch.
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
        path = _weights_path(self.encoder_weights)
        if path is not None:  # before the model, which takes longer to build than a wrong file to find
            state = _read_state(path)
        elif self.encoder_weights is not None:
            return self._download(num_classes)
        model = self._create(None, num_classes)
        if path is not None:
            _load_encoder(model.get_submodule("encoder"), state, path=path, name=self.encoder)
        return model

    def _create(self, weights: str | bool | None, num_classes: int) -> nn.Module:
        import segmentation_models_pytorch as smp

        try:
            model: nn.Module = smp.create_model(self.architecture, self.encoder, encoder_weights=weights, classes=num_classes)
        except OSError as error:
            if weights is not None:
                raise
            raise ValueError(f"`encoder={self.encoder!r}` must be downloadable, but: {_first_line(error)}") from error
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"architecture {self.architecture!r} with encoder {self.encoder!r} must build, but: {error}") from error
        return model

    def _download(self, num_classes: int) -> nn.Module:
        """The model with the weights of that name, from the user's cache once they are there."""
        known = _pretrained(self.encoder)
        if self.encoder_weights not in known:
            near = get_close_matches(str(self.encoder_weights), known, n=1, cutoff=0.5)
            names = f"one of {', '.join(map(repr, known))}" if known else "null, since none are published,"
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise ValueError(
                f"`encoder_weights` of encoder {self.encoder!r} must be {names} or the path of a file ({', '.join(_SUFFIXES)}), "
                f"but got {self.encoder_weights!r}{hint}"
            )
        with torch.random.fork_rng(devices=[]):  # whether all but the weights is well
            self._create(None, num_classes)
        try:
            # Encoders of timm have their weights' name in their own, and take a switch.
            return self._create(True if self.encoder.startswith("tu-") else self.encoder_weights, num_classes)
        except Exception as error:  # of the hub, of its client for HTTP, or of the system
            source = known[str(self.encoder_weights)]
            raise ValueError(
                f"`encoder_weights={self.encoder_weights!r}` must be downloadable, but {source} was not to be had: {_first_line(error)}; "
                "copy that file to this machine and give its path as model.encoder_weights, or use null to train from scratch"
            ) from error


def _first_line(error: BaseException) -> str:
    """Its name, and its message as far as the first full stop."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.partition('. ')[0]}" if line else type(error).__name__


def _pretrained(encoder: str) -> dict[str, str]:
    """What can be downloaded for an encoder, and from where, by name."""
    import segmentation_models_pytorch as smp
    import timm

    if not encoder.startswith("tu-"):
        settings = smp.encoders.encoders[encoder]["pretrained_settings"]
        return {name: f"model.safetensors of {one['repo_id']} (revision {one['revision'][:7]})" for name, one in settings.items()}
    name = encoder.removeprefix("tu-")
    if name.startswith("hf-hub:"):
        return {"imagenet": name.removeprefix("hf-hub:")}
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # no such tag behind the full stop
        raise _unknown("encoder", encoder, [f"tu-{one}" for one in timm.list_pretrained()]) from None
    if config is None or not timm.models.is_model_pretrained(name):
        return {}
    return {"imagenet": f"model.safetensors of {config.hf_hub_id}" if config.hf_hub_id else str(config.url)}


def _weights_path(weights: str | None) -> Path | None:
    """The file that a setting means, unless it is a name."""
    if weights is None or not (weights.lower().endswith(_SUFFIXES) or "/" in weights or "\\" in weights or weights.startswith("~")):
        return None
    return Path(weights).expanduser()


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors by name in a file of torch or safetensors.

    Raises:
        ValueError: If it is missing, truncated, or no state dict.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"`encoder_weights` must be a file that exists, but {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        state: Any = load_file(path) if path.suffix.lower() == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle may raise anything
        # torch's advice, to load what may run code, is none that we would give.
        is_more = "Weights only load failed" in str(error)
        told = "it holds other objects, perhaps a whole module; save model.state_dict()" if is_more else _first_line(error)
        raise ValueError(
            f"`encoder_weights` must be a whole file of tensors by name, but {path} ({path.stat().st_size} bytes) is not: {told}"
        ) from None
    if isinstance(state, Mapping):
        state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping):
        raise ValueError(f"`encoder_weights` must be a state dict, tensors by name, but {path} holds a {type(state).__name__}")
    if not state or (others := [f"{key!r}: {type(one).__name__}" for key, one in state.items() if not isinstance(one, Tensor)]):
        raise ValueError(f"`encoder_weights` must be a state dict, tensors by name, but {path} holds {_some(others) if state else 'nothing'}")
    if broken := [key for key, one in state.items() if not torch.isfinite(one).all()]:
        raise ValueError(f"`encoder_weights` must be finite, but {path} holds NaN or infinity in {_some(broken)}")
    return dict(state)


def _load_encoder(encoder: nn.Module, state: dict[str, Tensor], *, path: Path, name: str) -> None:
    """Put the weights into an encoder; raises ValueError unless every one fits, but for the classifier of the network that the encoder is of."""
    prefix = "encoder."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): one for key, one in state.items() if key.startswith(prefix)}
    wanted = encoder.state_dict()
    if name.startswith("tu-"):
        state = _of_timm(state, list(wanted), name.removeprefix("tu-"))
    try:
        encoder.load_state_dict(state)
        return
    except RuntimeError:
        pass  # smp renamed keys and left the classifier out in `state` itself; what does not fit is looked up below
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in wanted]
    shapes = [
        f"{key} {list(one.shape)} for {list(wanted[key].shape)}" for key, one in state.items() if key in wanted and one.shape != wanted[key].shape
    ]
    wrong = {"it lacks": missing, "it has also": surplus, "other shapes": shapes}
    told = "; ".join(f"{what} {_some(keys)}" for what, keys in wrong.items() if keys)
    raise ValueError(f"`encoder_weights` must fit encoder {name!r}, but {path} does not: {told}")


def _of_timm(state: dict[str, Tensor], wanted: list[str], name: str) -> dict[str, Tensor]:
    """The weights of a whole network of timm by the names that its encoder has: ``stages.0.`` is ``model.stages_0.`` there, and there is no head."""
    import timm

    if any(key in wanted for key in state):
        return state
    flat = {key.removeprefix("model.").replace(".", "_"): key for key in wanted}
    with torch.device("meta"):
        whole = set(timm.create_model(name).state_dict())
    renamed = {flat.get(key.replace(".", "_"), key): one for key, one in state.items()}
    return {key: one for key, one in renamed.items() if key in wanted or key not in whole}


def _some(names: list[str], most: int = 3) -> str:
    """The first names, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


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
