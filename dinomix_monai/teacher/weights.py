"""Weight files of foundation models: opening them with distrust, and loading all that they hold."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from dinomix_monai.core.tensor_file import load_tensors
from dinomix_monai.teacher.weight_names import timm_names

__all__ = ["load_strictly", "matching_variant", "read_weights"]

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_WRAPPERS = ("teacher", "model_ema", "model", "state_dict")
_PREFIXES = ("module.", "teacher.", "model.", "backbone.")
_TRAINING_HEADS = ("dino_head.", "ibot_head.")

# (channels, blocks, gated MLP) of a ViT, and (channels, blocks of the third stage) of a ConvNeXt.
_DINOV3 = {
    (192, 12, False): "vit_tiny_patch16_dinov3_qkvb",
    (384, 12, False): "vit_small_patch16_dinov3",
    (384, 12, True): "vit_small_plus_patch16_dinov3",
    (768, 12, False): "vit_base_patch16_dinov3",
    (1024, 24, False): "vit_large_patch16_dinov3",
    (1280, 32, True): "vit_huge_plus_patch16_dinov3",
    (4096, 40, True): "vit_7b_patch16_dinov3",
    (96, 9): "convnext_tiny.dinov3_lvd1689m",
    (96, 27): "convnext_small.dinov3_lvd1689m",
    (128, 27): "convnext_base.dinov3_lvd1689m",
    (192, 27): "convnext_large.dinov3_lvd1689m",
}
# (channels, blocks)
_DINOV2 = {(384, 12): "small", (768, 12): "base", (1024, 24): "large", (1536, 40): "giant"}


def read_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Tensors of a ViT or a ConvNeXt, on the CPU and under timm's names.

    Takes the names that Meta has published DINOv3 and DINOv2 under, those of the transformers library for DINOv2, and
    timm's for any model, bare or inside a training checkpoint (``{"model": ...}``, ``{"state_dict": ...}``,
    ``{"teacher": ...}``, with ``backbone.``, ``module.`` or ``model.`` before each name). Pickled objects other than
    tensors and plain containers are refused.

    Args:
        path: ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``.

    Raises:
        ValueError: When the file is of another kind, is damaged, or does not hold such a model.
    """
    path = Path(path)
    state = _unwrap(_read(path), path)
    try:
        named = timm_names(state, str(path))
    except (IndexError, KeyError, RuntimeError) as error:  # of tensors that others go with
        raise ValueError(
            f"weights must be those of a whole model, got {path}, where tensors are missing or of another shape "
            f"({type(error).__name__}: {error}). Fetch the file anew."
        ) from error
    if named is None:
        raise ValueError(
            "weights must be a ViT or a ConvNeXt under timm's names, DINOv3 or DINOv2 under Meta's, or DINOv2 under "
            f"those of transformers, got {path} with {_some(list(state))}. Take a file from one of these."
        )
    return named


def matching_variant(model_name: str, state: Mapping[str, torch.Tensor]) -> str:
    """
    The name under which timm builds a ViT with a query and value bias exactly if the weights have one.

    timm lists most ViTs twice, with and without ``_qkvb``, and its own loader puts weights with a bias into the variant
    without one in silence.

    Args:
        model_name: either variant, with or without a tag; the tag is kept if timm lists it for the other variant.
        state: tensors under timm's names.

    Returns:
        ``model_name``, or its other variant.
    """
    base, _, tag = model_name.partition(".")
    plain = _plain(model_name)
    wanted = f"{plain}_qkvb" if any(name.endswith("attn.q_bias") for name in state) else plain
    if wanted == base or not timm.is_model(wanted):
        return model_name
    tagged = f"{wanted}.{tag}"
    return tagged if timm.is_model_pretrained(tagged) else wanted


def load_strictly(model: nn.Module, state: Mapping[str, torch.Tensor], model_name: str, source: str) -> None:
    """
    Load weights of which none is missing, none is left over and each has the right shape.

    Position embeddings may be those of a square grid of any size: the model then takes on this grid, and nothing is
    resized before it sees an image.

    Args:
        model: timm's model.
        state: tensors under timm's names.
        model_name: what timm calls the model, for the message.
        source: where the tensors came from, for the message.

    Raises:
        ValueError: When the weights are those of another architecture or are incomplete.
    """
    _take_grid(model, state)
    expected = model.state_dict()
    differences = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [name for name in expected if name in state and state[name].shape != expected[name].shape],
    }
    if any(differences.values()):
        found = _architecture(state)
        same = found is not None and _plain(found) == _plain(model_name)
        looks = "is incomplete or altered" if same else f"looks like {found or 'neither a DINOv2 nor a DINOv3 of timm'}"
        counts = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in differences.items() if names)
        if same:
            remedy = "Fetch the file anew."
        elif found is None:
            remedy = "Pass the model_name of what the file holds, or fetch it anew."
        else:
            remedy = f"Pass model_name={found!r}, or another file."
        raise ValueError(f"weights must be those of {model_name}, got {source}, which {looks} ({counts}). {remedy}")
    model.load_state_dict(state)


def _read(path: Path) -> Any:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"weights must end in one of {', '.join(_SUFFIXES)}, got {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return load_tensors(path)
    except Exception as error:  # Of any kind: unpickling bytes that have been changed may raise whatever it likes.
        raise ValueError(
            f"weights must be a file of tensors, got {path}, which is damaged, incomplete or holds something else "
            f"({type(error).__name__}). Compare its size with the original, or fetch it anew."
        ) from error


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(content, Mapping) and (wrapped := [k for k in _WRAPPERS if isinstance(content.get(k), Mapping)]):
        content = content[wrapped[0]]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"weights must be tensors by name, got {path} with something else among them.")
    while True:
        content = {name: value for name, value in content.items() if not name.startswith(_TRAINING_HEADS)}
        prefix = next((p for p in _PREFIXES if content and all(name.startswith(p) for name in content)), None)
        if prefix is None:
            return content
        content = {name.removeprefix(prefix): value for name, value in content.items()}


def _take_grid(model: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Gives the model the grid that the position embeddings of these weights are for."""
    own, found = getattr(model, "pos_embed", None), state.get("pos_embed")
    if own is None or found is None or found.ndim != 3 or found.shape[1] == own.shape[1]:
        return
    prefix = own.shape[1] - model.patch_embed.num_patches
    side = math.isqrt(max(found.shape[1] - prefix, 0))
    if side > 0 and side**2 == found.shape[1] - prefix:
        model.set_input_size(img_size=tuple(side * pixels for pixels in model.patch_embed.patch_size))


def _architecture(state: Mapping[str, torch.Tensor]) -> str | None:
    patches, stem = state.get("patch_embed.proj.weight"), state.get("stem.0.weight")
    if patches is not None and patches.ndim == 4:
        channels, patch, blocks = patches.shape[0], patches.shape[3], _count(state, r"blocks\.(\d+)\.")
        if "pos_embed" not in state:
            gated = any(".mlp.fc1_g." in name for name in state)
            return _DINOV3.get((channels, blocks, gated)) if patch == 16 else None
        size = _DINOV2.get((channels, blocks)) if patch == 14 and "blocks.0.ls1.gamma" in state else None
        return size and f"vit_{size}_patch14_{'reg4_' if 'reg_token' in state else ''}dinov2"
    if stem is not None and stem.ndim == 4:
        return _DINOV3.get((stem.shape[0], _count(state, r"stages\.2\.blocks\.(\d+)\.")))
    return None


def _count(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _plain(model_name: str) -> str:
    return model_name.partition(".")[0].removesuffix("_qkvb")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "no tensors"
