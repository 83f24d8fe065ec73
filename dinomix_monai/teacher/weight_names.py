"""Names of weights: from those of Meta and of the transformers library to those that timm's models use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

__all__ = ["timm_names"]

# What no patch token depends on. Everything else that a model does not ask for is an error.
_DINOV3_DROPPED = (
    "mask_token",  # stands in for masked patches, in pre-training only
    # A constant of the architecture, which timm computes anew; rounded to bfloat16 in Meta's files, it moves tokens by
    # about a thousandth.
    "rope_embed.periods",
    "local_cls_norm.",  # normalizes class tokens of local crops, in pre-training only (ViT-7B and satellite ViT-L)
    "projectors.",  # heads that some distilled models were trained with
)
_META_CONVNEXT_DROPPED = (
    "norms.",  # the same tensors as "norm.", listed a second time
    "projectors.",
)
_VIT_DROPPED = ("mask_token", "head.weight", "head.bias")
_CONVNEXT_DROPPED = ("head.fc.",)

# From Meta's names to timm's, applied in this order.
_DINOV3_RENAMED = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_META_CONVNEXT_RENAMED = (
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
)
# DINOv2's names are timm's but for these. In pre-training its blocks lie in chunks, and keep their numbers there.
_DINOV2_RENAMED = (
    (r"^register_tokens$", "reg_token"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
# From the names of transformers' DINOv2 to Meta's.
_TRANSFORMERS_RENAMED = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"^layernorm\.", "norm."),
)
_TRANSFORMERS_QKV = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)$")


def timm_names(state: Mapping[str, torch.Tensor], file: str) -> dict[str, torch.Tensor] | None:
    """
    The tensors of a ViT or a ConvNeXt under timm's names, without classification heads and pre-training's leftovers.

    Args:
        state: DINOv3 or DINOv2 under Meta's names, DINOv2 under those of transformers, or any model under timm's.
        file: where they came from, for the message.

    Returns:
        The tensors, or ``None`` for names that are none of these.

    Raises:
        ValueError: When a DINOv3 has a key bias, which timm's has not.
    """
    if "embeddings.patch_embeddings.projection.weight" in state:
        state = _rename(_join_qkv(state), (), _TRANSFORMERS_RENAMED)
    if "storage_tokens" in state:
        return _split_qkv_bias(_rename(state, _DINOV3_DROPPED, _DINOV3_RENAMED), file)
    if "downsample_layers.0.0.weight" in state:
        return _rename(state, _META_CONVNEXT_DROPPED, _META_CONVNEXT_RENAMED)
    if "patch_embed.proj.weight" in state:
        renamed = _rename(state, _VIT_DROPPED, _DINOV2_RENAMED)
        return _without_prefix_positions(renamed) if "register_tokens" in state else renamed
    if "stem.0.weight" in state:
        return _rename(state, _CONVNEXT_DROPPED, ())
    return None


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


def _split_qkv_bias(state: dict[str, torch.Tensor], file: str) -> dict[str, torch.Tensor]:
    for name in [name for name in state if name.endswith("attn.qkv.bias")]:
        bias = state.pop(name)
        # Meta multiplies the bias by a mask in every forward pass: ones, and zeros for the key.
        query, key, value = (bias * state.pop(f"{name}_mask", torch.ones(()))).chunk(3)
        if key.any():
            raise ValueError(f"weights must have no key bias, as timm's DINOv3 has none, got {file} with {name}.")
        stem = name.removesuffix("qkv.bias")
        state[f"{stem}q_bias"], state[f"{stem}v_bias"] = query, value
    return state


def _without_prefix_positions(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With registers, timm's DINOv2 has no position for the class token: it is a part of the token itself."""
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    return state


def _join_qkv(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    joined = dict(state)
    for name in state:
        if match := _TRANSFORMERS_QKV.match(name):
            parts = [joined.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            joined[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
    return joined
