"""The frozen DINOv3 whose patch tokens a student learns from."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from dinomix_monai.teacher.fingerprint import fingerprint
from dinomix_monai.teacher.hub import hub_file
from dinomix_monai.teacher.weights import load_strictly, matching_variant, read_weights

__all__ = ["DINOv3Teacher"]

logger = logging.getLogger(__name__)

_UNTRAINED_SEED = 0
_DOWNLOADS = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/"
_LICENSES = {
    "dinov3-license": "Meta's DINOv3 License (https://ai.meta.com/resources/models-and-libraries/dinov3-license/)"
}


class DINOv3Teacher(nn.Module):
    """
    Patch tokens of a frozen DINOv3, a ViT or a ConvNeXt of timm.

    It stays in evaluation mode whatever ``train()`` is called with, has no parameter that requires a gradient, runs
    under ``no_grad``, and normalizes its input by the mean and standard deviation that belong to its weights. Keep it
    outside the network that is trained, so that it is never optimized, saved in a checkpoint or sent to a server;
    ``fingerprint`` says there which teacher it was. The weights come under a license of their own, Meta's DINOv3
    License for most, which travels with them and is not this project's.

    Reference: Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.

    Args:
        model_name: a name that ``timm.list_models("*dinov3*", pretrained=True)`` lists, with or without its tag. A
            local file with satellite weights needs the tag ``.sat493m``, since mean and deviation come with it.
            Which of two variants, with or without ``_qkvb``, is decided by the weights where there are any.
        weights: ``"auto"`` for the cache of the Hugging Face hub, else the hub; ``"none"`` for an untrained teacher;
            else the path of a local file under Meta's names or timm's (``.pth``, ``.pt``, ``.bin``, ``.safetensors``).
        allow_untrained: whether ``"auto"`` may end, with a warning, in an untrained teacher. Untrained weights are
            always the same, and drawing them leaves the global random state alone.

    Attributes:
        model_name: the variant that was built.
        embed_dim: channels C of the tokens.
        stride: side of the square of pixels that a token stands for: 16 for ViTs, 32 for ConvNeXts.
        pretrained: whether weights were loaded.
        source: name of the file, id of the hub's repository, or ``"untrained"``.
        fingerprint: SHA-256 over the weights, see :func:`~dinomix_monai.teacher.fingerprint`.

    Raises:
        TypeError: When ``weights`` is neither text nor a path.
        ValueError: When timm lists no DINOv3 ``model_name``, or the file does not hold that model.
        FileNotFoundError: When ``weights`` is a path without a file.
        RuntimeError: When ``"auto"`` finds no weights and ``allow_untrained`` is false.

    Example:
        >>> import torch
        >>> from dinomix_monai.teacher import DINOv3Teacher
        >>> teacher = DINOv3Teacher("vit_small_patch16_dinov3", weights="none")
        >>> teacher(torch.rand(2, 3, 32, 48)).shape
        torch.Size([2, 384, 2, 3])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model_name: str = "vit_small_patch16_dinov3",
        weights: str | os.PathLike = "auto",
        allow_untrained: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(weights, (str, os.PathLike)):
            raise TypeError(f"weights must be 'auto', 'none' or a path, got {weights!r}.")
        available = {*timm.list_models("*dinov3*"), *timm.list_models("*dinov3*", pretrained=True)}
        if model_name not in available:
            raise ValueError(f"model_name must be one of {', '.join(sorted(available))}, got {model_name!r}.")
        state, self.source = _find_weights(model_name, weights, allow_untrained)
        self.pretrained = state is not None
        self.model_name = model_name if state is None else matching_variant(model_name, state)
        self.model = _build_untrained(self.model_name)
        if state is not None:
            load_strictly(self.model, state, self.model_name, self.source)
        self.model.requires_grad_(False)
        self.embed_dim: int = self.model.num_features
        self.stride: int = self.model.feature_info[-1]["reduction"]
        for name in ("mean", "std"):
            values = torch.tensor(self.model.pretrained_cfg[name]).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        # With the normalization, which a model's name decides and its tokens depend on.
        self.fingerprint = fingerprint({**self.model.state_dict(), "image_mean": self.mean, "image_std": self.std})
        self.train(False)
        logger.info("Teacher: %s.", self.describe())

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: images in [0, 1], shape (N, 3, H, W) with H and W multiples of ``stride``; the range is not checked.

        Returns:
            Patch tokens after the final norm, shape (N, C, H / stride, W / stride), as a plain tensor in float32.
            Class and storage (register) tokens are left out. Autocast is left to the caller.

        Raises:
            TypeError: When ``x`` does not hold floats.
            ValueError: When ``x`` has another shape.
        """
        if not x.is_floating_point():
            raise TypeError(f"x must hold floats in [0, 1], got {x.dtype}.")
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % self.stride or x.shape[3] % self.stride:
            raise ValueError(f"x must be (N, 3, H, W), H and W multiples of {self.stride}, got {tuple(x.shape)}.")
        # A MetaTensor would carry the meta data of the image on to its tokens, where they are wrong.
        features = self.model.forward_features((x.as_subclass(torch.Tensor) - self.mean) / self.std)
        if features.ndim == 4:
            # timm's ConvNeXt stops before the norm that Meta's patch tokens include.
            return self.model.head.norm(features).float()
        grid = (x.shape[2] // self.stride, x.shape[3] // self.stride)
        # (N, prefix + h * w, C) -> (N, C, h, w)
        return features[:, self.model.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid).float()

    def train(self, mode: bool = True) -> DINOv3Teacher:
        """Stay in evaluation mode, whatever ``mode``."""
        return super().train(False)

    def describe(self) -> str:
        """One line for logs and reports: the model, where its weights came from and the start of the fingerprint."""
        origin = f"weights from {self.source}" if self.pretrained else "UNTRAINED (random weights)"
        return f"{self.model_name}, {origin}, fingerprint {self.fingerprint[:12]}"


def _find_weights(
    model_name: str, weights: str | os.PathLike, allow_untrained: bool
) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Tensors, or None for an untrained teacher, and where they came from."""
    config: Any = timm.get_pretrained_cfg(model_name)
    terms = _LICENSES.get(config.license, f"the license {config.license!r}")
    if weights == "none":
        return None, "untrained"
    if weights != "auto":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"weights must be 'auto', 'none' or an existing file, got {weights}. Meta's own files come from "
                f"{_DOWNLOADS}, timm's from https://huggingface.co/{config.hf_hub_id}, both under {terms}."
            )
        return read_weights(path), path.name
    try:
        return read_weights(hub_file(config.hf_hub_id)), config.hf_hub_id
    except ConnectionError as error:
        found = f"neither the hub's cache nor the hub has {config.hf_hub_id} ({error})"
        remedy = (
            "a local file, teacher_weights=PATH; or the hub's cache, filled where there is network by `hf download "
            f"{config.hf_hub_id} model.safetensors` and copied here; or teacher_weights='none', an untrained teacher "
            f"on purpose. The weights come under {terms}, which travels with them."
        )
        if not allow_untrained:
            raise RuntimeError(f"weights='auto' must find weights, but {found}. Three ways out: {remedy}") from None
    warnings.warn(
        f"The teacher is UNTRAINED: {found}. FKD then distills random features, and no result of this run says "
        f"anything about DINOv3. Three ways out: {remedy}",
        UserWarning,
        stacklevel=3,
    )
    return None, "untrained"


def _build_untrained(model_name: str) -> Any:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would seed the GPUs too, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(_UNTRAINED_SEED)
        return timm.create_model(model_name, pretrained=False, num_classes=0)
