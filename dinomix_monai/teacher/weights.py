"""DINOv3 weight files: reading them, and bringing them to the names that timm's models use."""

from __future__ import annotations

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

__all__ = ["load_strictly", "matching_variant", "read_weights"]

_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_WRAPPERS = ("teacher", "model_ema", "model", "state_dict")
_PREFIXES = ("module.", "teacher.", "model.", "backbone.")
_TRAINING_HEADS = ("dino_head.", "ibot_head.")

# What no patch token depends on. Everything else that a model does not ask for is an error.
_VIT_DROPPED = (
    "mask_token",  # stands in for masked patches, in pre-training only
    # A constant of the architecture, which timm computes anew; rounded to bfloat16 in Meta's files, it moves tokens by
    # about a thousandth.
    "rope_embed.periods",
    "local_cls_norm.",  # normalizes class tokens of local crops, in pre-training only (ViT-7B and satellite ViT-L)
    "projectors.",  # heads that some distilled models were trained with
)
_CONVNEXT_DROPPED = (
    "norms.",  # the same tensors as "norm.", listed a second time
    "projectors.",
)

# From Meta's names to timm's, applied in this order.
_VIT_RENAMED = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_CONVNEXT_RENAMED = (
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
)

# (channels, blocks, gated MLP) of a ViT, and (channels, blocks of the third stage) of a ConvNeXt.
_ARCHITECTURES = {
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


def read_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """
    Tensors of a DINOv3 file, on the CPU and under timm's names.

    Takes Meta's published names and timm's, bare or inside a training checkpoint (``{"model": ...}``,
    ``{"state_dict": ...}``, ``{"teacher": ...}``, with ``backbone.``, ``module.`` or ``model.`` before each name).
    Pickled objects other than tensors and plain containers are refused.

    Args:
        path: ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``.

    Raises:
        ValueError: When the file is of another kind, is damaged, or does not hold a DINOv3.
    """
    path = Path(path)
    state = _unwrap(_read(path), path)
    if "storage_tokens" in state:
        return _split_qkv_bias(_rename(state, _VIT_DROPPED, _VIT_RENAMED), path)
    if "downsample_layers.0.0.weight" in state:
        return _rename(state, _CONVNEXT_DROPPED, _CONVNEXT_RENAMED)
    if "reg_token" in state or "stem.0.weight" in state:
        return state
    raise ValueError(
        f"weights must be a DINOv3 under Meta's or timm's names, got {path} with {_some(list(state))}. "
        "Files of the transformers library (embeddings..., layer...) have other names: take timm's or Meta's."
    )


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

    Args:
        model: timm's model.
        state: tensors under timm's names.
        model_name: what timm calls the model, for the message.
        source: where the tensors came from, for the message.

    Raises:
        ValueError: When the weights are those of another architecture or are incomplete.
    """
    expected = model.state_dict()
    differences = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [name for name in expected if name in state and state[name].shape != expected[name].shape],
    }
    if any(differences.values()):
        found = _architecture(state)
        same = found is not None and _plain(found) == _plain(model_name)
        looks = "is incomplete or altered" if same else f"looks like {found or 'no architecture that timm lists'}"
        counts = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in differences.items() if names)
        remedy = "Fetch the file anew." if same or found is None else f"Pass model_name={found!r}, or another file."
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


def _rename(
    state: Mapping[str, torch.Tensor], dropped: tuple[str, ...], rules: Sequence[tuple[str, str]]
) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(dropped):
            for pattern, replacement in rules:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
    return renamed


def _split_qkv_bias(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    for name in [name for name in state if name.endswith("attn.qkv.bias")]:
        bias = state.pop(name)
        # Meta multiplies the bias by a mask in every forward pass: ones, and zeros for the key.
        query, key, value = (bias * state.pop(f"{name}_mask", torch.ones(()))).chunk(3)
        if key.any():
            raise ValueError(f"weights must have no key bias, as timm's DINOv3 has none, got {path} with {name}.")
        stem = name.removesuffix("qkv.bias")
        state[f"{stem}q_bias"], state[f"{stem}v_bias"] = query, value
    return state


def _architecture(state: Mapping[str, torch.Tensor]) -> str | None:
    if "patch_embed.proj.weight" in state:
        blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
        gated = any(".mlp.fc1_g." in name for name in state)
        return _ARCHITECTURES.get((state["patch_embed.proj.weight"].shape[0], len(blocks), gated))
    if "stem.0.weight" in state:
        blocks = {name.split(".")[3] for name in state if name.startswith("stages.2.blocks.")}
        return _ARCHITECTURES.get((state["stem.0.weight"].shape[0], len(blocks)))
    return None


def _plain(model_name: str) -> str:
    return model_name.partition(".")[0].removesuffix("_qkvb")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "no tensors"
