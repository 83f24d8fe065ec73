from __future__ import annotations

import logging
import math
import re
import warnings

import pytest
import timm
import torch
from huggingface_hub import constants
from monai.data import MetaTensor
from safetensors.torch import save_file

from dinomix_monai.teacher import FoundationTeacher, SliceTokens, TokenCache, fingerprint, foundation_teacher

DINOV2 = "vit_small_patch14_dinov2"
VIT_S, VIT_S_BIAS = "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"
SMALLEST = "vit_tiny_patch16_dinov3_qkvb"


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit_teacher(vit):
    """Built under the name of the variant that the file is not of."""
    return FoundationTeacher(VIT_S if vit.has_bias else VIT_S_BIAS, weights=vit.path)


@pytest.fixture(scope="module")
def dinov2_teacher(dinov2):
    return FoundationTeacher(dinov2.name, weights=dinov2.path)


@pytest.fixture(scope="module")
def untrained():
    return FoundationTeacher(SMALLEST, weights="none")


def test_vit_gives_the_patch_tokens_of_metas_definition(vit, vit_teacher, images):
    tokens = vit_teacher(images)
    assert tokens.shape == (2, 384, 3, 4)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(tokens, vit.tokens(vit.state, images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("vit", ["qkv bias"], indirect=True)
def test_a_lost_qkv_bias_would_be_seen(vit, vit_teacher, images):
    lost = {name: tensor for name, tensor in vit.state.items() if "qkv.bias" not in name}
    assert (vit_teacher(images) - vit.tokens(lost, images)).abs().max() > 0.1


def test_the_file_chooses_the_variant(vit, vit_teacher):
    assert vit_teacher.model_name == (VIT_S_BIAS if vit.has_bias else VIT_S)
    assert (vit_teacher.embed_dim, vit_teacher.stride) == (384, 16)
    assert vit_teacher.pretrained
    assert vit_teacher.source == "dinov3_vits16.pth"
    short = vit_teacher.fingerprint[:12]
    assert vit_teacher.describe() == f"{vit_teacher.model_name}, weights from dinov3_vits16.pth, fingerprint {short}"


def test_timms_file_of_the_same_weights_gives_the_same_teacher(vit, vit_teacher, images, tmp_path):
    save_file(vit_teacher.model.state_dict(), tmp_path / "timm.safetensors")
    other = FoundationTeacher(VIT_S, weights=str(tmp_path / "timm.safetensors"))
    assert other.model_name == vit_teacher.model_name
    assert other.fingerprint == vit_teacher.fingerprint
    assert torch.equal(other(images), vit_teacher(images))


@pytest.mark.parametrize("vit", ["no qkv bias"], indirect=True)
def test_a_bias_of_zeros_changes_neither_fingerprint_nor_tokens(vit, vit_teacher, images, tmp_path):
    zeros = {f"blocks.{i}.attn.qkv.bias": torch.zeros(3 * 384) for i in range(12)}
    torch.save(vit.state | zeros, tmp_path / "zeros.pth")
    other = FoundationTeacher(VIT_S, weights=tmp_path / "zeros.pth")
    assert other.model_name == VIT_S_BIAS
    assert other.fingerprint == vit_teacher.fingerprint
    torch.testing.assert_close(other(images), vit_teacher(images), atol=1e-5, rtol=0)


def test_convnext_gives_the_patch_tokens_of_metas_definition(convnext, images, tmp_path):
    teacher = FoundationTeacher("convnext_tiny.dinov3_lvd1689m", weights=convnext.path)
    x = torch.nn.functional.pad(images, (0, 0, 0, 16))
    tokens = teacher(x)
    assert (teacher.embed_dim, teacher.stride) == (768, 32)
    assert tokens.shape == (2, 768, 2, 2)
    torch.testing.assert_close(tokens, convnext.tokens(convnext.state, x), atol=1e-4, rtol=1e-4)
    torch.save({"state_dict": teacher.model.state_dict()}, tmp_path / "timm.pt")
    other = FoundationTeacher("convnext_tiny.dinov3_lvd1689m", weights=tmp_path / "timm.pt")
    assert other.fingerprint == teacher.fingerprint
    assert torch.equal(other(x), tokens)


def test_dinov2_gives_the_patch_tokens_of_metas_definition(dinov2, dinov2_teacher):
    x = torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    tokens = dinov2_teacher(x)
    assert (dinov2_teacher.model_name, dinov2_teacher.embed_dim, dinov2_teacher.stride) == (dinov2.name, 384, 14)
    assert tokens.shape == (2, 384, 3, 4)
    torch.testing.assert_close(tokens, dinov2.tokens(dinov2.state, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dinov2", ["registers"], indirect=True)
def test_lost_registers_would_be_seen(dinov2, dinov2_teacher):
    x = torch.rand(1, 3, 42, 42)
    lost = {name: tensor for name, tensor in dinov2.state.items() if name != "register_tokens"}
    assert (dinov2_teacher(x) - dinov2.tokens(lost, x)).abs().max() > 0.1


def test_position_embeddings_of_any_square_grid_are_kept(dinov2, tmp_path):
    """At the size that they are for, nothing is resized."""
    small = dinov2.state | {"pos_embed": torch.randn(1, 1 + 4 * 4, 384)}
    torch.save(small, tmp_path / "small.pth")
    teacher = FoundationTeacher(dinov2.name, weights=tmp_path / "small.pth")
    for size in ((56, 56), (42, 70)):
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(teacher(x), dinov2.tokens(small, x), atol=1e-4, rtol=1e-4)
    held = teacher.model.pos_embed[:, -16:]
    assert torch.equal(held, small["pos_embed"][:, 1:])


def to_transformers(state):
    """From Meta's names of DINOv2 to those that transformers has for it."""
    renamed = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            at, kind = name.split(".attn.qkv.")
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3)):
                renamed[f"encoder.{at.replace('blocks', 'layer')}.attention.attention.{part}.{kind}"] = piece.clone()
            continue
        for old, new in {
            "patch_embed.proj": "embeddings.patch_embeddings.projection",
            "pos_embed": "embeddings.position_embeddings",
            "cls_token": "embeddings.cls_token",
            "mask_token": "embeddings.mask_token",
            "register_tokens": "embeddings.register_tokens",
            "attn.proj": "attention.output.dense",
            "ls1.gamma": "layer_scale1.lambda1",
            "ls2.gamma": "layer_scale2.lambda1",
        }.items():
            name = name.replace(old, new)
        name = f"layernorm.{name[5:]}" if name.startswith("norm.") else name
        renamed[name.replace("blocks.", "encoder.layer.")] = tensor
    return renamed


def in_chunks(state):
    """As Meta's code names blocks in pre-training: here two chunks of six."""
    block = re.compile(r"^blocks\.(\d+)\.")
    return {block.sub(lambda match: f"blocks.{int(match[1]) // 6}.{match[1]}.", k): v for k, v in state.items()}


@pytest.mark.parametrize("form", ["transformers", "timm", "chunks in a checkpoint"])
def test_other_names_of_the_same_weights_give_the_same_teacher(form, dinov2, dinov2_teacher, tmp_path):
    path = tmp_path / "other.safetensors"
    if form == "chunks in a checkpoint":
        path = path.with_suffix(".pth")
        torch.save({"teacher": {f"backbone.{k}": v for k, v in in_chunks(dinov2.state).items()}}, path)
    else:
        state = to_transformers(dinov2.state) if form == "transformers" else dinov2_teacher.model.state_dict()
        save_file(state, path)
    assert FoundationTeacher(dinov2.name, weights=path).fingerprint == dinov2_teacher.fingerprint


def check_layer(model, name, image, layer):
    """Tokens of a block, against Meta's definition and timm's own way to have them."""
    teacher = FoundationTeacher(name, weights=model.path, layer=layer)
    tokens = teacher(image)
    torch.testing.assert_close(tokens, model.tokens(model.state, image, layer), atol=1e-4, rtol=1e-4)
    normalized = (image - teacher.mean) / teacher.std
    [timms] = teacher.model.forward_intermediates(normalized, indices=[layer], norm=True, intermediates_only=True)
    torch.testing.assert_close(tokens, timms)


@pytest.mark.parametrize("layer", [0, 8, 11])
def test_a_layer_of_a_dinov3_gives_the_tokens_of_that_block_after_the_final_norm(layer, vit, images):
    check_layer(vit, VIT_S, images, layer)


@pytest.mark.parametrize("layer", [0, 8, 11])
def test_a_layer_of_a_dinov2_gives_the_tokens_of_that_block_after_the_final_norm(layer, dinov2):
    check_layer(dinov2, dinov2.name, torch.rand(1, 3, 42, 56), layer)


@pytest.mark.parametrize(("stage", "channels"), [(0, 96), (1, 192), (2, 384)])
def test_a_layer_of_a_convnext_is_a_stage(stage, channels, convnext):
    x = torch.rand(1, 3, 64, 96)
    teacher = FoundationTeacher("convnext_tiny.dinov3_lvd1689m", weights=convnext.path, layer=stage)
    assert (teacher.embed_dim, teacher.stride) == (channels, 4 * 2**stage)
    torch.testing.assert_close(teacher(x), convnext.tokens(convnext.state, x, stage + 1), atol=1e-4, rtol=1e-4)


def test_the_last_layer_is_no_other_teacher_and_any_before_it_is(untrained, tmp_path):
    last, middle = (FoundationTeacher(SMALLEST, weights="none", layer=layer) for layer in (11, 8))
    assert (last.layer, last.fingerprint) == (None, untrained.fingerprint)
    assert (
        middle.describe() == f"{SMALLEST}, layer 8, UNTRAINED (random weights), fingerprint {middle.fingerprint[:12]}"
    )
    state = {**middle.model.state_dict(), "image_mean": middle.mean, "image_std": middle.std}
    assert fingerprint({**state, "layer": torch.tensor(8)}) == middle.fingerprint
    folders = {TokenCache(tmp_path, SliceTokens(t), (4, 4, 4)).files.folder for t in (untrained, last, middle)}
    assert len(folders) == 2


def test_several_layers_are_put_one_after_another():
    x = torch.rand(1, 3, 32, 48)
    several = FoundationTeacher(SMALLEST, weights="none", layer=[2, 8, 11])
    expected = [FoundationTeacher(SMALLEST, weights="none", layer=layer) for layer in (2, 8, 11)]
    tokens = several(x)
    assert tokens.shape[1] == several.embed_dim == 3 * expected[0].embed_dim
    torch.testing.assert_close(tokens, torch.cat([teacher(x) for teacher in expected], dim=1))
    assert several.describe().startswith(f"{SMALLEST}, layers 2, 8, 11, UNTRAINED")
    assert several.fingerprint not in {teacher.fingerprint for teacher in expected}
    alone = FoundationTeacher(SMALLEST, weights="none", layer=[8])
    assert (alone.layer, alone.fingerprint) == (8, expected[1].fingerprint)


@pytest.mark.parametrize("layer", [12, -1, 8.0, "8", True, [], [3, 12], [8, 3], [3, 3], [3, "8"]])
def test_a_layer_that_the_model_lacks_is_refused(layer):
    message = rf"layer must be an index from 0 to 11 of {SMALLEST}, or None for the last one, .*, got {layer!r}\."
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        FoundationTeacher(SMALLEST, weights="none", layer=layer)


def test_several_stages_of_a_convnext_are_refused():
    with pytest.raises(ValueError, match=r"or of a ViT several in ascending order, got \[1, 2\]"):
        FoundationTeacher("convnext_tiny.dinov3_lvd1689m", weights="none", layer=[1, 2])


@pytest.mark.parametrize("dinov2", ["no registers"], indirect=True)
def test_weights_may_expect_another_normalization(dinov2, dinov2_teacher):
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.5, 1]
    teacher = FoundationTeacher(DINOV2, weights=dinov2.path, image_mean=mean, image_std=std)
    x = torch.rand(1, 3, 42, 42)
    expected = dinov2.tokens(
        dinov2.state, x, mean=torch.tensor(mean).view(3, 1, 1), std=torch.tensor(std).view(3, 1, 1)
    )
    torch.testing.assert_close(teacher(x), expected, atol=1e-4, rtol=1e-4)
    assert teacher.fingerprint != dinov2_teacher.fingerprint


def test_normalization_is_what_timm_says_of_the_model():
    clip = FoundationTeacher("vit_xsmall_patch16_clip_224", weights="none")
    assert clip.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert clip.std.flatten().tolist() == pytest.approx([0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize(
    "values", [[0.5, 0.5], [0.5, 0.5, "a"], "abc", 0.5, [0.5, 0.5, math.nan], [0.5, 0.5, math.inf]]
)
@pytest.mark.parametrize("name", ["image_mean", "image_std"])
def test_normalization_must_be_three_numbers(name, values):
    with pytest.raises(ValueError, match=rf"{name} must be three finite numbers( > 0)? or None, got "):
        FoundationTeacher(SMALLEST, weights="none", **{name: values})


def test_a_deviation_of_0_is_refused():
    with pytest.raises(ValueError, match=r"image_std must be three finite numbers > 0 or None, got \[1, 0, 1\]\."):
        FoundationTeacher(SMALLEST, weights="none", image_std=[1, 0, 1])


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit3", "eva02_tiny_patch14_224", "test_convnext", "convnext_tiny_hnf"]
)
def test_any_vit_or_convnext_is_taken_and_its_classifier_left_out(name, tmp_path):
    classifier = timm.create_model(name, num_classes=5)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    teacher = FoundationTeacher(name, weights=tmp_path / "classifier.pth")
    tokens = teacher(torch.rand(1, 3, 3 * teacher.stride, 5 * teacher.stride))
    assert tokens.shape == (1, teacher.embed_dim, 3, 5)


def test_class_and_storage_tokens_are_left_out(untrained, images):
    with torch.no_grad():
        features = untrained.model.forward_features((images - untrained.mean) / untrained.std)
    assert features.shape[1] == 1 + 4 + 12
    tokens = untrained(images)
    for row in range(3):
        for column in range(4):
            assert torch.equal(tokens[:, :, row, column], features[:, 5 + 4 * row + column])


def test_mean_and_deviation_come_with_the_weights_and_stay_out_of_the_state(untrained):
    assert untrained.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert untrained.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert all(name.startswith("model.") for name in untrained.state_dict())


def test_it_stays_frozen(untrained, images):
    before = {name: tensor.clone() for name, tensor in untrained.model.state_dict().items()}
    student = torch.nn.Conv2d(3, 3, 1)
    tokens = torch.nn.Sequential(student, untrained).train()(images)
    assert not any(module.training for module in untrained.modules())
    assert not any(parameter.requires_grad for parameter in untrained.parameters())
    assert not tokens.requires_grad
    after = untrained.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_fingerprint_is_that_of_weights_and_normalization(untrained):
    state = {**untrained.model.state_dict(), "image_mean": untrained.mean, "image_std": untrained.std}
    assert fingerprint(state) == untrained.fingerprint
    assert fingerprint({**state, "image_mean": untrained.mean + 0.1}) != untrained.fingerprint


def test_a_meta_tensor_gives_a_plain_tensor(untrained, images):
    tokens = untrained(MetaTensor(images))
    assert type(tokens) is torch.Tensor
    assert torch.equal(tokens, untrained(images))


def test_untrained_weights_are_always_the_same_and_leave_random_numbers_alone(untrained, caplog):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "dinomix_monai"):
        warnings.simplefilter("error")
        other = FoundationTeacher(SMALLEST, weights="none")
    assert torch.equal(torch.get_rng_state(), state)
    assert other.fingerprint == untrained.fingerprint
    assert not other.pretrained
    assert other.source == "untrained"
    assert other.describe() == f"{SMALLEST}, UNTRAINED (random weights), fingerprint {other.fingerprint[:12]}"
    assert caplog.messages == [f"Teacher: {other.describe()}."]


@pytest.mark.parametrize("vit", ["qkv bias"], indirect=True)
def test_loading_a_file_leaves_random_numbers_alone_and_prints_nothing(vit, capfd):
    state = torch.get_rng_state()
    FoundationTeacher(VIT_S, weights=vit.path)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("vit", ["qkv bias"], indirect=True)
def test_auto_takes_the_file_of_the_hub(vit, vit_teacher, monkeypatch):
    asked = []
    monkeypatch.setattr(foundation_teacher, "hub_file", lambda hub_id: asked.append(hub_id) or vit.path)
    teacher = FoundationTeacher(VIT_S)
    assert asked == ["timm/vit_small_patch16_dinov3.lvd1689m"]
    assert teacher.source == asked[0]
    assert teacher.pretrained
    assert teacher.fingerprint == vit_teacher.fingerprint


@pytest.mark.parametrize("dinov2", ["no registers"], indirect=True)
def test_auto_takes_the_file_that_timm_names(dinov2, dinov2_teacher, monkeypatch):
    asked = []
    monkeypatch.setattr(foundation_teacher, "hub_file", lambda hub_id: asked.append(hub_id) or dinov2.path)
    teacher = FoundationTeacher(DINOV2)
    assert asked == ["timm/vit_small_patch14_dinov2.lvd142m"] == [teacher.source]
    assert teacher.fingerprint == dinov2_teacher.fingerprint


@pytest.fixture(params=["no answer", "HF_HUB_OFFLINE"])
def offline(request, tmp_path, monkeypatch):
    if request.param == "no answer":

        def hub_file(hub_id):
            raise ConnectionError("ConnectError: no route")

        monkeypatch.setattr(foundation_teacher, "hub_file", hub_file)
    else:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "tag", "terms"),
    [
        (VIT_S, "lvd1689m", r"Meta's DINOv3 License \(https.*DINOv2 is open: teacher#model_name="),
        (DINOV2, "lvd142m", r"the license 'apache-2\.0', which travels with them\.$"),
    ],
)
def test_auto_without_weights_names_the_ways_out_and_the_license_of_the_model(name, tag, terms):
    message = (
        rf"weights='auto' must find weights, but neither .* has timm/{name}\.{tag} \(.*\)\. "
        rf"Ways out: .*teacher_weights=PATH; .*hf download timm/{name}\.{tag}.*teacher_weights='none'.*{terms}"
    )
    with pytest.raises(RuntimeError, match=message):
        FoundationTeacher(name, weights="auto")


def test_auto_for_a_model_without_weights_says_so():
    message = (
        r"must find weights, but timm knows of none for vit_giant_patch14_224\. Ways out: a local file, "
        r"teacher_weights=PATH; or teacher_weights='none', .*\. timm lists no weights of vit_giant_patch14_224\."
    )
    with pytest.raises(RuntimeError, match=message):
        FoundationTeacher("vit_giant_patch14_224", weights="auto")


@pytest.mark.usefixtures("offline")
def test_auto_without_weights_warns_if_an_untrained_teacher_is_allowed(untrained):
    with pytest.warns(
        UserWarning, match=r"UNTRAINED.*FKD then distills random features.*teacher_weights=PATH"
    ) as caught:
        teacher = FoundationTeacher(SMALLEST, weights="auto", allow_untrained=True)
    assert caught[0].filename == __file__
    assert not teacher.pretrained
    assert teacher.fingerprint == untrained.fingerprint


@pytest.mark.parametrize(
    ("name", "license"), [(SMALLEST, "fair-noncommercial-research-license"), (DINOV2, "apache-2.0")]
)
def test_a_model_with_another_license_says_so(name, license):
    with pytest.raises(FileNotFoundError, match=f"the license '{license}', which travels") as caught:
        FoundationTeacher(name, weights="missing.pth")
    assert "ai.meta.com" not in str(caught.value)


def test_a_missing_file_says_where_to_get_it_and_its_license(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"'auto', 'none' or an existing file, got .*missing\.pth.*huggingface\.co/timm/vit_small.*"
        r"dinov3-downloads.*Meta's DINOv3 License",
    ):
        FoundationTeacher(VIT_S, weights=tmp_path / "missing.pth")


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("vit_small_patch16_dinov2", "vit_small_patch16_dinov3, .*"),
        ("vit_small_patch16_dinov3.other", "vit_small_patch16_dinov3, .*"),
        ("swin_tiny_patch4_window7_224", "vit_.*"),
        ("dinov2", None),
    ],
)
def test_a_name_that_timm_has_no_vit_or_convnext_for_is_refused(name, similar):
    hint = f"Similar names are {similar}\\. " if similar else ""
    with pytest.raises(
        ValueError, match=rf"model_name must be a ViT or ConvNeXt of timm, .*, got '{name}'\. {hint}timm\.list_models"
    ):
        FoundationTeacher(name, weights="none")


def test_weights_must_be_text_or_a_path():
    with pytest.raises(TypeError, match="weights must be 'auto', 'none' or a path, got None"):
        FoundationTeacher(VIT_S, weights=None)


@pytest.mark.parametrize("dinov2", ["registers"], indirect=True)
def test_registers_that_the_model_has_no_place_for_are_refused(dinov2):
    with pytest.raises(ValueError, match=rf"looks like {dinov2.name} \(.*1 unexpected: reg_token.*model_name="):
        FoundationTeacher(DINOV2, weights=dinov2.path)


@pytest.mark.parametrize("vit", ["qkv bias"], indirect=True)
def test_a_file_of_another_architecture_is_refused(vit):
    with pytest.raises(
        ValueError, match=r"weights must be those of vit_tiny.*dinov3_vits16\.pth, which looks like vit_small"
    ):
        FoundationTeacher(SMALLEST, weights=vit.path)


def test_images_must_hold_floats(untrained):
    with pytest.raises(TypeError, match=r"x must hold floats in \[0, 1\], got torch\.uint8"):
        untrained(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 24, 16), (1, 3, 16, 24)])
def test_images_must_be_multiples_of_the_stride(untrained, shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\), H and W multiples of 16, got"):
        untrained(torch.rand(shape))


def test_every_dino_that_timm_lists_leads_to_the_hub_and_a_license():
    for name in timm.list_models(["*dinov2*", "*dinov3*"], pretrained=True):
        config = timm.get_pretrained_cfg(name)
        assert config.hf_hub_id == f"timm/{name}"
        assert config.license
