"""The frozen foundation model whose patch tokens a student learns from."""

from __future__ import annotations

import difflib
import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dinomix_monai.teacher.fingerprint import fingerprint
from dinomix_monai.teacher.hub import hub_file
from dinomix_monai.teacher.weights import load_strictly, matching_variant, read_weights

__all__ = ["FoundationTeacher", "MissingWeightsError"]

logger = logging.getLogger(__name__)

_UNTRAINED_SEED = 0
# Modules of timm whose models all give a grid of patch tokens.
_VITS, _CONVNEXT = ("vision_transformer", "eva"), "convnext"
_DINOV3 = "dinov3-license"
_DINOV3_DOWNLOADS = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/"
_LICENSES = {_DINOV3: "Meta's DINOv3 License (https://ai.meta.com/resources/models-and-libraries/dinov3-license/)"}


class MissingWeightsError(RuntimeError):
    """
    Weights that were looked for and are nowhere.

    Args:
        message: the sentences for whoever wants a teacher.
        found: where they are not, as a clause, for whoever has other ways out.
    """

    def __init__(self, message: str, found: str) -> None:
        super().__init__(message)
        self.found = found


class FoundationTeacher(nn.Module):
    """
    Patch tokens of a frozen foundation model: a ViT or a ConvNeXt of timm, such as DINOv3 or DINOv2.

    It stays in evaluation mode whatever ``train()`` is called with, has no parameter that requires a gradient, runs
    under ``no_grad``, and normalizes its input by the mean and standard deviation that belong to its weights. Keep it
    outside the network that is trained, so that it is never optimized, saved in a checkpoint or sent to a server;
    ``fingerprint`` says there which teacher it was. The weights come under a license of their own, which depends on the
    model, travels with them and is not this project's.

    Position embeddings, where the model has any, are resized to each image as timm does, bicubic and antialiased.

    References: Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104; Oquab et al., "DINOv2", 2023,
    https://arxiv.org/abs/2304.07193; Darcet et al., "Vision Transformers Need Registers", 2023,
    https://arxiv.org/abs/2309.16588.

    Args:
        model_name: a ViT or ConvNeXt of timm, with or without the tag of its weights; ``timm.list_models("*dino*",
            pretrained=True)`` lists those of DINOv2 and DINOv3. It says what a local file holds. A file with DINOv3's
            satellite weights needs the tag ``.sat493m``, since mean and deviation come with it. Which of two variants
            of a DINOv3, with or without ``_qkvb``, is decided by the weights where there are any.
        weights: ``"auto"`` for the cache of the Hugging Face hub, else the hub; ``"none"`` for an untrained teacher;
            else the path of a local file (``.pth``, ``.pt``, ``.bin``, ``.safetensors``), see
            :func:`~dinomix_monai.teacher.weights.read_weights`.
        allow_untrained: whether ``"auto"`` may end, with a warning, in an untrained teacher. Untrained weights are
            always the same, and drawing them leaves the global random state alone.
        layer: index, from 0, of the block of a ViT whose output gives the tokens, after the model's final norm as in
            timm's ``forward_intermediates(norm=True)``; or of the stage of a ConvNeXt, whose norm fits the last stage
            alone and is left out for others. ``None`` for the last one, which an index may name as well. Of a ViT there
            may be several, in ascending order, whose channels are put one after another.
        image_mean: mean of the three channels of images in [0, 1] that the weights expect, ``None`` for what timm says
            of the model. Weights that others have trained on in the same architecture may expect another.
        image_std: likewise, the standard deviation.

    Attributes:
        model_name: the variant that was built.
        layer: as given, ``None`` where that is the last one alone.
        is_convnext: whether it is a ConvNeXt and no ViT.
        num_layers: number of layers that may be chosen.
        embed_dim: channels C of the tokens.
        stride: side of the square of pixels that a token stands for: that of a patch for a ViT, 32 for a ConvNeXt's
            last stage.
        pretrained: whether weights were loaded.
        source: name of the file, id of the hub's repository, or ``"untrained"``.
        fingerprint: SHA-256 over weights, mean, deviation and, unless it is the last one, the layer: all that the
            tokens of an image depend on. See :func:`~dinomix_monai.teacher.fingerprint`.

    Raises:
        TypeError: When ``weights`` is neither text nor a path.
        ValueError: When timm has no ViT or ConvNeXt ``model_name``, the file does not hold that model, the model has no
            ``layer`` of this index, or ``image_mean`` or ``image_std`` are not three numbers, those of the latter > 0.
        FileNotFoundError: When ``weights`` is a path without a file.
        MissingWeightsError: When ``"auto"`` finds no weights and ``allow_untrained`` is false.

    Example:
        >>> import torch
        >>> from dinomix_monai.teacher import FoundationTeacher
        >>> teacher = FoundationTeacher("vit_small_patch16_dinov3", weights="none")
        >>> teacher(torch.rand(2, 3, 32, 48)).shape
        torch.Size([2, 384, 2, 3])
        >>> teacher = FoundationTeacher("vit_small_patch14_dinov2", weights="none", layer=8)
        >>> teacher(torch.rand(2, 3, 28, 42)).shape
        torch.Size([2, 384, 2, 3])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model_name: str = "vit_small_patch16_dinov3",
        weights: str | os.PathLike = "auto",
        allow_untrained: bool = False,
        layer: int | Sequence[int] | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(weights, (str, os.PathLike)):
            raise TypeError(f"weights must be 'auto', 'none' or a path, got {weights!r}.")
        _check_model_name(model_name)
        _check_channels("image_mean", image_mean, least=-math.inf)
        _check_channels("image_std", image_std, least=0)
        state, self.source = _find_weights(model_name, weights, allow_untrained)
        self.pretrained = state is not None
        self.model_name = model_name if state is None else matching_variant(model_name, state)
        self.model = _build_untrained(self.model_name)
        self.is_convnext = _is_convnext(self.model_name)
        levels = self.model.feature_info
        self.num_layers = len(levels)
        self._indices = _layer_indices(layer, self.num_layers, self.model_name)
        if state is not None:
            load_strictly(self.model, state, self.model_name, self.source)
        self.model.requires_grad_(False)
        self.layer: int | list[int] | None = self._indices if len(self._indices) > 1 else self._indices[0]
        if self.layer == self.num_layers - 1:
            self.layer = None
        self.embed_dim: int = sum(levels[index]["num_chs"] for index in self._indices)
        self.stride: int = levels[self._indices[-1]]["reduction"]
        for name, given in (("mean", image_mean), ("std", image_std)):
            values = self.model.pretrained_cfg[name] if given is None else given
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False)
        # With the normalization and the layer, which the tokens depend on as much as on the weights.
        seen = {**self.model.state_dict(), "image_mean": self.mean, "image_std": self.std}
        if self.layer is not None:
            seen["layer"] = torch.tensor(self.layer)
        self.fingerprint = fingerprint(seen)
        self.train(False)
        logger.info("Teacher: %s.", self.describe())

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: images in [0, 1], shape (N, 3, H, W) with H and W multiples of ``stride``; the range is not checked.

        Returns:
            Patch tokens of the layer, shape (N, C, H / stride, W / stride), as a plain tensor in float32. Class and
            storage (register) tokens are left out. Autocast is left to the caller.

        Raises:
            TypeError: When ``x`` does not hold floats.
            ValueError: When ``x`` has another shape.
        """
        if not x.is_floating_point():
            raise TypeError(f"x must hold floats in [0, 1], got {x.dtype}.")
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(f"x must be (N, 3, H, W), H and W multiples of {self.stride}, got {tuple(x.shape)}.")
        # A MetaTensor would carry the meta data of the image on to its tokens, where they are wrong.
        x = (x.as_subclass(torch.Tensor) - self.mean) / self.std
        options = {"indices": self._indices, "norm": True, "stop_early": True, "intermediates_only": True}
        if self.is_convnext:
            [tokens] = self.model.forward_intermediates(x, **options)
            if self.layer is None:
                # timm stops before the norm that Meta's patch tokens include; one of its ConvNeXts has no such norm.
                tokens = getattr(self.model.head, "norm", nn.Identity())(tokens)
            return tokens.float()
        # Without the prefix tokens.
        tokens = torch.cat(self.model.forward_intermediates(x, **options, output_fmt="NLC"), dim=2)
        # (N, h * w, C) -> (N, C, h, w)
        return tokens.transpose(1, 2).unflatten(2, (x.shape[2] // self.stride, x.shape[3] // self.stride)).float()

    def train(self, mode: bool = True) -> FoundationTeacher:
        """Stay in evaluation mode, whatever ``mode``."""
        return super().train(False)

    def describe(self) -> str:
        """One line for logs and reports: model, layer, where the weights came from, and how the fingerprint begins."""
        layers = ", ".join(map(str, self._indices))
        layer = "" if self.layer is None else f", layer{'s' if len(self._indices) > 1 else ''} {layers}"
        origin = f"weights from {self.source}" if self.pretrained else "UNTRAINED (random weights)"
        return f"{self.model_name}{layer}, {origin}, fingerprint {self.fingerprint[:12]}"


def _check_model_name(model_name: str) -> None:
    names = [name for module in (*_VITS, _CONVNEXT) for name in timm.list_models(module=module)]
    base, _, tag = str(model_name).partition(".")
    if base not in names or (tag and not timm.is_model_pretrained(model_name)):
        similar = ", ".join(difflib.get_close_matches(base, names, 3))
        raise ValueError(
            "model_name must be a ViT or ConvNeXt of timm, with or without the tag of its weights, got "
            f"{model_name!r}. {f'Similar names are {similar}. ' if similar else ''}"
            "timm.list_models('*dino*', pretrained=True) lists those of DINOv2 and DINOv3."
        )


def _layer_indices(layer: int | Sequence[int] | None, num_layers: int, model_name: str) -> list[int]:
    if layer is None:
        return [num_layers - 1]
    found = list(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
    are_known = found and all(type(index) is int and 0 <= index < num_layers for index in found)
    if not are_known or found != sorted(set(found)) or (len(found) > 1 and _is_convnext(model_name)):
        raise ValueError(
            f"layer must be an index from 0 to {num_layers - 1} of {model_name}, or None for the last one, or of a ViT "
            f"several in ascending order, got {layer!r}."
        )
    return found


def _check_channels(name: str, values: Sequence[float] | None, least: float) -> None:
    if values is None:
        return
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    if len(numbers) != 3 or not all(isinstance(n, (int, float)) and least < n < math.inf for n in numbers):
        above = "" if least < 0 else f" > {least}"
        raise ValueError(f"{name} must be three finite numbers{above} or None, got {values!r}.")


def _is_convnext(model_name: str) -> bool:
    return model_name.partition(".")[0] in timm.list_models(module=_CONVNEXT)


def _find_weights(
    model_name: str, weights: str | os.PathLike, allow_untrained: bool
) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Tensors, or None for an untrained teacher, and where they came from."""
    config: Any = timm.get_pretrained_cfg(model_name)
    if weights == "none":
        return None, "untrained"
    if weights != "auto":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"weights must be 'auto', 'none' or an existing file, got {weights}. {_origin(model_name, config)}"
            )
        return read_weights(path), path.name
    remedies = ["a local file, teacher_weights=PATH"]
    if config.hf_hub_id:
        try:
            return read_weights(hub_file(config.hf_hub_id)), config.hf_hub_id
        except ConnectionError as error:
            found = f"neither the hub's cache nor the hub has {config.hf_hub_id} ({error})"
        remedies.append(
            "the hub's cache, filled where there is network by `hf download "
            f"{config.hf_hub_id} model.safetensors` and copied here"
        )
    else:
        found = f"timm knows of none for {model_name}"
    remedies.append("teacher_weights='none', an untrained teacher on purpose")
    remedy = f"Ways out: {'; or '.join(remedies)}. {_origin(model_name, config)}"
    if not allow_untrained:
        raise MissingWeightsError(f"weights='auto' must find weights, but {found}. {remedy}", found)
    warnings.warn(
        f"The teacher is UNTRAINED: {found}. FKD then distills random features, and no result of this run says "
        f"anything about the weights of {model_name}. {remedy}",
        UserWarning,
        stacklevel=3,
    )
    return None, "untrained"


def _origin(model_name: str, config: Any) -> str:
    """Sentences on where the weights of a model come from and what they ask for."""
    if not config.hf_hub_id:
        return f"timm lists no weights of {model_name}."
    terms = _LICENSES.get(config.license, f"the license {config.license!r}")
    own = f" and, under Meta's own names, from {_DINOV3_DOWNLOADS}" if config.license == _DINOV3 else ""
    text = (
        f"Weights of {model_name} come from https://huggingface.co/{config.hf_hub_id}{own}, under {terms}, which "
        "travels with them."
    )
    if config.license == _DINOV3:
        text += " Where they are refused, DINOv2 is open: teacher#model_name=vit_small_patch14_dinov2."
    return text


def _build_untrained(model_name: str) -> Any:
    # A ConvNeXt takes images of any size as it is.
    sizes: dict[str, Any] = {} if _is_convnext(model_name) else {"dynamic_img_size": True}
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would seed the GPUs too, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(_UNTRAINED_SEED)
        return timm.create_model(model_name, pretrained=False, num_classes=0, **sizes)
