"""DINOv3 and DINOv2 written down plainly, on random weights under Meta's names: an oracle without timm."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
DIM, DEPTH, HEADS = 384, 12, 6  # ViT-S
DEPTHS, DIMS = (3, 3, 9, 3), (96, 192, 384, 768)  # ConvNeXt tiny


@pytest.fixture(scope="session", params=["qkv bias", "no qkv bias"])
def vit(request, tmp_path_factory):
    """Meta's ViT-S/16 with random weights, and a file of it."""
    state = _random_vit(request.param == "qkv bias")
    path = tmp_path_factory.mktemp("meta") / "dinov3_vits16.pth"
    torch.save(state, path)
    return SimpleNamespace(state=state, path=path, has_bias=request.param == "qkv bias", tokens=_vit_tokens)


@pytest.fixture(scope="session", params=["registers", "no registers"])
def dinov2(request, tmp_path_factory):
    """Meta's ViT-S/14 with random weights, and a file of it."""
    state = _random_dinov2(registers=4 if request.param == "registers" else 0)
    path = tmp_path_factory.mktemp("meta") / "dinov2_vits14.pth"
    torch.save(state, path)
    name = f"vit_small_patch14_{'reg4_' if request.param == 'registers' else ''}dinov2"
    return SimpleNamespace(state=state, path=path, name=name, tokens=_dinov2_tokens)


@pytest.fixture(scope="session")
def convnext(tmp_path_factory):
    """Meta's ConvNeXt tiny with random weights, and a file of it."""
    state = _random_convnext()
    path = tmp_path_factory.mktemp("meta") / "dinov3_convnext_tiny.pth"
    torch.save(state, path)
    return SimpleNamespace(state=state, path=path, tokens=_convnext_tokens)


def _vit_tokens(state, images, layer=DEPTH - 1):
    """Patch tokens (N, C, h, w) of images (N, 3, H, W) in [0, 1], of a DINOv3."""
    x = (images - MEAN) / STD
    rows, columns = x.shape[2] // 16, x.shape[3] // 16
    x = torch.cat([_prefix(state, "storage_tokens", len(x)), _patches(state, x)], dim=1)
    x = _blocks(state, x, layer, eps=1e-5, rotation=_rotation(rows, columns))
    return x[:, -rows * columns :].transpose(1, 2).reshape(len(x), DIM, rows, columns)


def _dinov2_tokens(state, images, layer=DEPTH - 1, mean=MEAN, std=STD):
    """The same of a DINOv2."""
    x = (images - mean) / std
    rows, columns = x.shape[2] // 14, x.shape[3] // 14
    place = state["pos_embed"][:, 1:]
    side = math.isqrt(place.shape[1])
    if (side, side) != (rows, columns):
        place = place.transpose(1, 2).reshape(1, DIM, side, side)
        place = F.interpolate(place, (rows, columns), mode="bicubic", align_corners=False, antialias=True)
        place = place.flatten(2).transpose(1, 2)
    prefix = _prefix(state, "register_tokens", len(x))
    # The class token has a position, the registers have none.
    prefix = torch.cat([prefix[:, :1] + state["pos_embed"][:, :1], prefix[:, 1:]], dim=1)
    x = _blocks(state, torch.cat([prefix, _patches(state, x) + place], dim=1), layer, eps=1e-6)
    return x[:, -rows * columns :].transpose(1, 2).reshape(len(x), DIM, rows, columns)


def _patches(state, x):
    weight = state["patch_embed.proj.weight"]
    return F.conv2d(x, weight, state["patch_embed.proj.bias"], stride=weight.shape[2:]).flatten(2).transpose(1, 2)


def _prefix(state, registers, number):
    tokens = [state["cls_token"], *([state[registers]] if registers in state else [])]
    return torch.cat(tokens, dim=1).expand(number, -1, -1)


def _blocks(state, x, layer, eps, rotation=None):
    for i in range(layer + 1):
        block = {name.removeprefix(f"blocks.{i}."): t for name, t in state.items() if name.startswith(f"blocks.{i}.")}
        x = x + block["ls1.gamma"] * _attention(block, _norm(x, block, "norm1", eps), rotation)
        hidden = F.gelu(F.linear(_norm(x, block, "norm2", eps), block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + block["ls2.gamma"] * F.linear(hidden, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return _norm(x, state, "norm", eps)


def _attention(block, x, rotation):
    bias = block["attn.qkv.bias"] * block.get("attn.qkv.bias_mask", 1) if "attn.qkv.bias" in block else None
    qkv = F.linear(x, block["attn.qkv.weight"], bias)
    # (N, tokens, 3 * C) -> 3 of (N, heads, tokens, C / heads)
    query, key, value = qkv.unflatten(2, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)
    if rotation is not None:
        prefix = x.shape[1] - len(rotation)
        query, key = (torch.cat([t[:, :, :prefix], _rotate(t[:, :, prefix:], rotation)], dim=2) for t in (query, key))
    weights = (query @ key.transpose(2, 3) / math.sqrt(DIM // HEADS)).softmax(dim=3)
    out = (weights @ value).transpose(1, 2).flatten(2)
    return F.linear(out, block["attn.proj.weight"], block["attn.proj.bias"])


def _rotation(rows, columns):
    """Unit complex numbers (rows * columns, C / heads / 2): half of them turn with the row, half with the column."""
    quarter = DIM // HEADS // 4
    out = torch.empty(rows, columns, 2 * quarter, dtype=torch.complex64)
    for j in range(quarter):
        period = 100 ** (j / quarter)
        for r in range(rows):
            angle = 2 * math.pi * (2 * (r + 0.5) / rows - 1) / period
            out[r, :, j] = complex(math.cos(angle), math.sin(angle))
        for c in range(columns):
            angle = 2 * math.pi * (2 * (c + 0.5) / columns - 1) / period
            out[:, c, quarter + j] = complex(math.cos(angle), math.sin(angle))
    return out.flatten(0, 1)


def _rotate(x, rotation):
    """Channel i and channel i + half are the real and the imaginary part of one number."""
    real, imaginary = x.chunk(2, dim=-1)
    turned = torch.complex(real.contiguous(), imaginary.contiguous()) * rotation
    return torch.cat([turned.real, turned.imag], dim=-1)


def _norm(x, state, name, eps):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def _convnext_tokens(state, images, stages=4):
    x = (images - MEAN) / STD
    for stage in range(stages):
        down = f"downsample_layers.{stage}"
        if stage == 0:
            x = F.conv2d(x, state[f"{down}.0.weight"], state[f"{down}.0.bias"], stride=4)
            x = _channel_norm(x, state, f"{down}.1")
        else:
            x = _channel_norm(x, state, f"{down}.0")
            x = F.conv2d(x, state[f"{down}.1.weight"], state[f"{down}.1.bias"], stride=2)
        for i in range(DEPTHS[stage]):
            at = f"stages.{stage}.{i}"
            y = F.conv2d(x, state[f"{at}.dwconv.weight"], state[f"{at}.dwconv.bias"], padding=3, groups=DIMS[stage])
            y = _norm(y.permute(0, 2, 3, 1), state, f"{at}.norm", eps=1e-6)
            y = F.gelu(F.linear(y, state[f"{at}.pwconv1.weight"], state[f"{at}.pwconv1.bias"]))
            y = F.linear(y, state[f"{at}.pwconv2.weight"], state[f"{at}.pwconv2.bias"]) * state[f"{at}.gamma"]
            x = x + y.permute(0, 3, 1, 2)
    return _channel_norm(x, state, "norm") if stages == 4 else x


def _channel_norm(x, state, name):
    return _norm(x.permute(0, 2, 3, 1), state, name, eps=1e-6).permute(0, 3, 1, 2)


class _Random(dict):
    """Tensors by name, each drawn large enough to be seen in the result."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name, *shape, std=0.5, mean=0.0):
        self[name] = mean + std * torch.randn(*shape, generator=self.generator)

    def linear(self, name, *shape, bias=True):
        self.draw(f"{name}.weight", *shape, std=1 / math.sqrt(math.prod(shape[1:])))
        if bias:
            self.draw(f"{name}.bias", shape[0])

    def norm(self, name, dim):
        self.draw(f"{name}.weight", dim, std=0.2, mean=1)
        self.draw(f"{name}.bias", dim)

    def blocks(self, has_bias):
        for i in range(DEPTH):
            at = f"blocks.{i}"
            self.norm(f"{at}.norm1", DIM)
            self.linear(f"{at}.attn.qkv", 3 * DIM, DIM, bias=has_bias)
            self.linear(f"{at}.attn.proj", DIM, DIM)
            self.draw(f"{at}.ls1.gamma", DIM)
            self.norm(f"{at}.norm2", DIM)
            self.linear(f"{at}.mlp.fc1", 4 * DIM, DIM)
            self.linear(f"{at}.mlp.fc2", DIM, 4 * DIM)
            self.draw(f"{at}.ls2.gamma", DIM)
        self.norm("norm", DIM)


def _random_vit(has_bias):
    state = _Random(seed=1)
    state.draw("cls_token", 1, 1, DIM)
    state.draw("storage_tokens", 1, 4, DIM)
    state.draw("mask_token", 1, DIM)
    state["rope_embed.periods"] = 100 ** (torch.arange(16) / 16)
    state.linear("patch_embed.proj", DIM, 3, 16, 16)
    state.blocks(has_bias)
    if has_bias:
        mask = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(DIM)
        state.update({f"blocks.{i}.attn.qkv.bias_mask": mask for i in range(DEPTH)})
    return dict(state)


def _random_dinov2(registers):
    state = _Random(seed=3)
    state.draw("cls_token", 1, 1, DIM)
    state.draw("mask_token", 1, DIM)
    state.draw("pos_embed", 1, 1 + 37 * 37, DIM)
    if registers:
        state.draw("register_tokens", 1, registers, DIM)
    state.linear("patch_embed.proj", DIM, 3, 14, 14)
    state.blocks(has_bias=True)
    return dict(state)


def _random_convnext():
    state = _Random(seed=2)
    for stage, dim in enumerate(DIMS):
        down = f"downsample_layers.{stage}"
        if stage == 0:
            state.linear(f"{down}.0", dim, 3, 4, 4)
            state.norm(f"{down}.1", dim)
        else:
            state.norm(f"{down}.0", DIMS[stage - 1])
            state.linear(f"{down}.1", dim, DIMS[stage - 1], 2, 2)
        for i in range(DEPTHS[stage]):
            at = f"stages.{stage}.{i}"
            state.linear(f"{at}.dwconv", dim, 1, 7, 7)
            state.norm(f"{at}.norm", dim)
            state.linear(f"{at}.pwconv1", 4 * dim, dim)
            state.linear(f"{at}.pwconv2", dim, 4 * dim)
            state.draw(f"{at}.gamma", dim)
    state.norm("norm", DIMS[-1])
    state["norms.3.weight"], state["norms.3.bias"] = state["norm.weight"], state["norm.bias"]
    return dict(state)
