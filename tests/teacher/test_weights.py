from __future__ import annotations

import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import convnext as timm_convnext
from timm.models import eva as timm_eva
from timm.models import vision_transformer as timm_vit
from torch import nn

from dinomix_monai.teacher.weights import load_strictly, matching_variant, read_weights

TIMM_VIT = {"patch_embed.proj.weight": torch.ones(2, 3, 16, 16), "norm.weight": torch.ones(2)}


def empty_model(name):
    """timm's model without memory for its weights."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def blank(name):
    return {key: torch.zeros(()).expand(value.shape) for key, value in empty_model(name).state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_vit_names_and_values_are_those_of_timms_own_filter(vit):
    name = "vit_small_patch16_dinov3_qkvb" if vit.has_bias else "vit_small_patch16_dinov3"
    assert_same(read_weights(vit.path), timm_eva.checkpoint_filter_fn(dict(vit.state), empty_model(name)))


def test_gated_mlp_and_pre_training_leftovers_are_as_in_timms_own_filter(tmp_path):
    state = {
        "storage_tokens": torch.rand(1, 4, 8),
        "mask_token": torch.rand(1, 8),
        "rope_embed.periods": torch.rand(2),
        "local_cls_norm.weight": torch.rand(8),
        "projectors.0.weight": torch.rand(8, 8),
        "blocks.10.ls1.gamma": torch.rand(8),
        "blocks.10.ls2.gamma": torch.rand(8),
        **{f"blocks.10.mlp.w{i}.{kind}": torch.rand(8) for i in (1, 2, 3) for kind in ("weight", "bias")},
    }
    torch.save(state, tmp_path / "vit.pth")
    read = read_weights(tmp_path / "vit.pth")
    assert_same(read, timm_eva.checkpoint_filter_fn(state, empty_model("vit_small_plus_patch16_dinov3")))
    assert "blocks.10.mlp.fc1_g.bias" in read


def test_dinov2_names_and_values_are_those_of_timms_own_filter(dinov2):
    assert_same(read_weights(dinov2.path), timm_vit.checkpoint_filter_fn(dict(dinov2.state), empty_model(dinov2.name)))


def test_the_gated_mlp_of_dinov2_is_as_in_timms_own_filter(tmp_path):
    state = {
        "patch_embed.proj.weight": torch.rand(8, 3, 14, 14),
        "mask_token": torch.rand(1, 8),
        **{f"blocks.10.mlp.{w}.{kind}": torch.rand(8) for w in ("w12", "w3") for kind in ("weight", "bias")},
    }
    torch.save(state, tmp_path / "vit.pth")
    read = read_weights(tmp_path / "vit.pth")
    assert_same(read, timm_vit.checkpoint_filter_fn(state, empty_model("vit_small_patch14_dinov2")))
    assert "blocks.10.mlp.fc1.bias" in read


@pytest.mark.parametrize(
    "state",
    [
        {"patch_embed.proj.weight": torch.ones(2, 3, 14, 14), "register_tokens": torch.ones(1, 4, 2)},
        {
            "embeddings.patch_embeddings.projection.weight": torch.ones(2, 3, 14, 14),
            "encoder.layer.0.attention.attention.query.weight": torch.ones(2, 2),
        },
        {
            "embeddings.patch_embeddings.projection.weight": torch.ones(2, 3, 14, 14),
            **{f"encoder.layer.0.attention.attention.{p}.weight": torch.tensor(1) for p in ("query", "key", "value")},
        },
    ],
    ids=["registers without a class token", "query without a key", "numbers"],
)
def test_tensors_that_belong_together_are_not_guessed(state, tmp_path):
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"weights must be those of a whole model, got .*vit\.pth, where tensors"):
        read_weights(tmp_path / "vit.pth")


def test_convnext_names_and_values_are_those_of_timms_own_filter(convnext):
    model = empty_model("convnext_tiny.dinov3_lvd1689m")
    assert_same(read_weights(convnext.path), timm_convnext.checkpoint_filter_fn(dict(convnext.state), model))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": {f"module.model.{k}": v for k, v in state.items()}},
        lambda state: {"teacher": {f"backbone.{k}": v for k, v in state.items()}, "student": {}},
        lambda state: {"teacher": {"dino_head.a": torch.ones(1)} | {f"backbone.{k}": v for k, v in state.items()}},
        lambda state: {f"module.backbone.{k}": v for k, v in state.items()} | {"module.ibot_head.a": torch.ones(1)},
    ],
    ids=["bare", "model", "state_dict", "two prefixes", "teacher", "training head", "prefixed training head"],
)
def test_wrappers_and_prefixes_are_taken_off(wrap, tmp_path):
    torch.save(wrap(TIMM_VIT), tmp_path / "vit.pt")
    assert_same(read_weights(tmp_path / "vit.pt"), TIMM_VIT)


def test_safetensors_are_read(tmp_path):
    save_file(TIMM_VIT, tmp_path / "vit.safetensors")
    assert_same(read_weights(tmp_path / "vit.safetensors"), TIMM_VIT)


def test_a_bias_without_a_mask_is_split(tmp_path):
    bias = torch.tensor([1.0, 2.0, 0.0, 0.0, 5.0, 6.0])
    torch.save({"storage_tokens": torch.ones(1, 4, 2), "blocks.0.attn.qkv.bias": bias}, tmp_path / "vit.pth")
    state = read_weights(tmp_path / "vit.pth")
    assert state["blocks.0.attn.q_bias"].tolist() == [1, 2]
    assert state["blocks.0.attn.v_bias"].tolist() == [5, 6]
    assert "blocks.0.attn.qkv.bias" not in state


def test_a_key_bias_is_refused(tmp_path):
    torch.save({"storage_tokens": torch.ones(1, 4, 2), "blocks.0.attn.qkv.bias": torch.ones(6)}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"weights must have no key bias.*vit\.pth with blocks\.0\.attn\.qkv\.bias"):
        read_weights(tmp_path / "vit.pth")


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weights must end in one of \.pth, .*vit\.onnx"):
        read_weights(tmp_path / "vit.onnx")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "web page", "empty"])
def test_a_damaged_file_is_named(ending, damage, tmp_path):
    path = tmp_path / f"vit{ending}"
    save_file(TIMM_VIT, path) if ending == ".safetensors" else torch.save(TIMM_VIT, path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "web page": b"<!DOCTYPE html>", "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"weights must be a file of tensors, got .*vit\{ending}, which is damaged"):
        read_weights(path)


def test_a_packed_archive_is_refused(tmp_path):
    torch.save({"a": torch.zeros(10**5)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "vit.pth", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"weights must be a file of tensors, got .*vit\.pth, .* \(ValueError\)"):
        read_weights(tmp_path / "vit.pth")


def test_a_pickled_object_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "vit.pth")
    with pytest.raises(
        ValueError, match=r"weights must be a file of tensors.*holds something else \(UnpicklingError\)"
    ):
        read_weights(tmp_path / "vit.pth")


@pytest.mark.parametrize("content", [[torch.ones(1)], {"model": {"epoch": 3}}], ids=["a list", "a number"])
def test_something_else_among_the_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"weights must be tensors by name, got .*vit\.pth with something else"):
        read_weights(tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (
            ["pos_embed", "cls_token", "conv_proj.weight", "norm.weight"],
            r"pos_embed, cls_token, conv_proj\.weight, \.\.\.",
        ),
        (["embeddings.cls_token", "layer.0.norm1.weight"], r"embeddings\.cls_token, layer\.0\.norm1\.weight\. Take a"),
        ([], "no tensors"),
    ],
    ids=["torchvision", "DINOv3 of transformers", "nothing"],
)
def test_a_file_under_other_names_is_refused(names, shown, tmp_path):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=rf"weights must be a ViT or a ConvNeXt .*got .*vit\.pth with {shown}"):
        read_weights(tmp_path / "vit.pth")


@pytest.mark.parametrize(
    ("asked", "with_bias", "without"),
    [
        ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3"),
        ("vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3_qkvb", "vit_small_patch16_dinov3"),
        (
            "vit_large_patch16_dinov3.sat493m",
            "vit_large_patch16_dinov3_qkvb.sat493m",
            "vit_large_patch16_dinov3.sat493m",
        ),
        ("vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m", None),
        ("vit_7b_patch16_dinov3", "vit_7b_patch16_dinov3", "vit_7b_patch16_dinov3"),
        ("convnext_tiny.dinov3_lvd1689m", "convnext_tiny.dinov3_lvd1689m", "convnext_tiny.dinov3_lvd1689m"),
        ("vit_small_patch14_dinov2", "vit_small_patch14_dinov2", "vit_small_patch14_dinov2"),
    ],
)
def test_the_weights_choose_the_variant(asked, with_bias, without):
    bias = {"blocks.0.attn.q_bias": torch.ones(2)}
    assert matching_variant(asked, TIMM_VIT | bias) == with_bias
    assert matching_variant(asked, TIMM_VIT) == (without or "vit_base_patch16_dinov3")


@pytest.mark.parametrize(
    "name",
    [*timm.list_models(["*dinov3", "*dinov2"], pretrained=False), *timm.list_models("*.dinov3*", pretrained=True)],
)
def test_a_file_of_any_other_architecture_is_recognized(name):
    other = "vit_tiny_patch16_dinov3_qkvb"
    with pytest.raises(ValueError, match=rf"got a\.pth, which looks like {name} \(.*Pass model_name='{name}', or"):
        load_strictly(empty_model(other), blank(name), other, "a.pth")


def test_the_message_counts_and_names_some_differences():
    state = blank("vit_small_patch16_dinov3")
    del state["blocks.3.norm1.bias"]
    state["extra"] = torch.ones(1)
    state["norm.weight"] = torch.ones(2)
    message = (
        r"got a\.pth, which is incomplete or altered \(1 missing: blocks\.3\.norm1\.bias; 1 unexpected: extra; "
        r"1 of another shape: norm\.weight\)\. Fetch the file anew\."
    )
    with pytest.raises(ValueError, match=message):
        load_strictly(empty_model("vit_small_patch16_dinov3"), state, "vit_small_patch16_dinov3", "a.pth")


def test_an_architecture_that_timm_does_not_list_is_refused():
    state = {name: value for name, value in blank("vit_small_patch16_dinov3").items() if "blocks.11" not in name}
    with pytest.raises(ValueError, match=r"neither a DINOv2 nor a DINOv3 of timm .*Pass the model_name of"):
        load_strictly(empty_model("vit_small_patch16_dinov3"), state, "vit_small_patch16_dinov3", "a.pth")
    with pytest.raises(ValueError, match=r"looks like neither .*1 unexpected: head"):
        load_strictly(
            empty_model("vit_small_patch16_dinov3"), {"head": torch.ones(1)}, "vit_small_patch16_dinov3", "a.pth"
        )
