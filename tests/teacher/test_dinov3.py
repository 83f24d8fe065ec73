from __future__ import annotations

import logging
import warnings

import pytest
import timm
import torch
from huggingface_hub import constants
from monai.data import MetaTensor
from safetensors.torch import save_file

from dinomix_monai.teacher import DINOv3Teacher, dinov3, fingerprint

VIT_S, VIT_S_BIAS = "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"
SMALLEST = "vit_tiny_patch16_dinov3_qkvb"


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit_teacher(vit):
    """Built under the name of the variant that the file is not of."""
    return DINOv3Teacher(VIT_S if vit.has_bias else VIT_S_BIAS, weights=vit.path)


@pytest.fixture(scope="module")
def untrained():
    return DINOv3Teacher(SMALLEST, weights="none")


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
    other = DINOv3Teacher(VIT_S, weights=str(tmp_path / "timm.safetensors"))
    assert other.model_name == vit_teacher.model_name
    assert other.fingerprint == vit_teacher.fingerprint
    assert torch.equal(other(images), vit_teacher(images))


@pytest.mark.parametrize("vit", ["no qkv bias"], indirect=True)
def test_a_bias_of_zeros_changes_neither_fingerprint_nor_tokens(vit, vit_teacher, images, tmp_path):
    zeros = {f"blocks.{i}.attn.qkv.bias": torch.zeros(3 * 384) for i in range(12)}
    torch.save(vit.state | zeros, tmp_path / "zeros.pth")
    other = DINOv3Teacher(VIT_S, weights=tmp_path / "zeros.pth")
    assert other.model_name == VIT_S_BIAS
    assert other.fingerprint == vit_teacher.fingerprint
    torch.testing.assert_close(other(images), vit_teacher(images), atol=1e-5, rtol=0)


def test_convnext_gives_the_patch_tokens_of_metas_definition(convnext, images, tmp_path):
    teacher = DINOv3Teacher("convnext_tiny.dinov3_lvd1689m", weights=convnext.path)
    x = torch.nn.functional.pad(images, (0, 0, 0, 16))
    tokens = teacher(x)
    assert (teacher.embed_dim, teacher.stride) == (768, 32)
    assert tokens.shape == (2, 768, 2, 2)
    torch.testing.assert_close(tokens, convnext.tokens(convnext.state, x), atol=1e-4, rtol=1e-4)
    torch.save({"state_dict": teacher.model.state_dict()}, tmp_path / "timm.pt")
    other = DINOv3Teacher("convnext_tiny.dinov3_lvd1689m", weights=tmp_path / "timm.pt")
    assert other.fingerprint == teacher.fingerprint
    assert torch.equal(other(x), tokens)


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
        other = DINOv3Teacher(SMALLEST, weights="none")
    assert torch.equal(torch.get_rng_state(), state)
    assert other.fingerprint == untrained.fingerprint
    assert not other.pretrained
    assert other.source == "untrained"
    assert other.describe() == f"{SMALLEST}, UNTRAINED (random weights), fingerprint {other.fingerprint[:12]}"
    assert caplog.messages == [f"Teacher: {other.describe()}."]


@pytest.mark.parametrize("vit", ["qkv bias"], indirect=True)
def test_loading_a_file_leaves_random_numbers_alone_and_prints_nothing(vit, capfd):
    state = torch.get_rng_state()
    DINOv3Teacher(VIT_S, weights=vit.path)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("vit", ["qkv bias"], indirect=True)
def test_auto_takes_the_file_of_the_hub(vit, vit_teacher, monkeypatch):
    asked = []
    monkeypatch.setattr(dinov3, "hub_file", lambda hub_id: asked.append(hub_id) or vit.path)
    teacher = DINOv3Teacher(VIT_S)
    assert asked == ["timm/vit_small_patch16_dinov3.lvd1689m"]
    assert teacher.source == asked[0]
    assert teacher.pretrained
    assert teacher.fingerprint == vit_teacher.fingerprint


@pytest.fixture(params=["no answer", "HF_HUB_OFFLINE"])
def offline(request, tmp_path, monkeypatch):
    if request.param == "no answer":

        def hub_file(hub_id):
            raise ConnectionError("ConnectError: no route")

        monkeypatch.setattr(dinov3, "hub_file", hub_file)
    else:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_auto_without_weights_names_three_ways_out_and_the_license():
    message = (
        r"weights='auto' must find weights, but neither .* has timm/vit_small_patch16_dinov3\.lvd1689m \(.*\)\. "
        r"Three ways out: .*teacher_weights=PATH; .*hf download timm/vit_small_patch16_dinov3\.lvd1689m.*"
        r"teacher_weights='none'.*Meta's DINOv3 License \(https"
    )
    with pytest.raises(RuntimeError, match=message):
        DINOv3Teacher(VIT_S, weights="auto")


@pytest.mark.usefixtures("offline")
def test_auto_without_weights_warns_if_an_untrained_teacher_is_allowed(untrained):
    with pytest.warns(
        UserWarning, match=r"UNTRAINED.*FKD then distills random features.*teacher_weights=PATH"
    ) as caught:
        teacher = DINOv3Teacher(SMALLEST, weights="auto", allow_untrained=True)
    assert caught[0].filename == __file__
    assert not teacher.pretrained
    assert teacher.fingerprint == untrained.fingerprint


def test_a_model_with_another_license_says_so():
    with pytest.raises(FileNotFoundError, match="the license 'fair-noncommercial-research-license'"):
        DINOv3Teacher(SMALLEST, weights="missing.pth")


def test_a_missing_file_says_where_to_get_it_and_its_license(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"'auto', 'none' or an existing file, got .*missing\.pth.*dinov3-downloads.*"
        r"huggingface\.co/timm/vit_small.*Meta's DINOv3 License",
    ):
        DINOv3Teacher(VIT_S, weights=tmp_path / "missing.pth")


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov2", "convnext_tiny", "vit_small_patch16_dinov3.other", "resnet50"]
)
def test_only_dinov3_is_accepted(name):
    with pytest.raises(
        ValueError, match=r"model_name must be one of convnext_base\.dinov3_lvd1689m, .*vit_small_patch16_dinov3,"
    ):
        DINOv3Teacher(name, weights="none")


def test_weights_must_be_text_or_a_path():
    with pytest.raises(TypeError, match="weights must be 'auto', 'none' or a path, got None"):
        DINOv3Teacher(VIT_S, weights=None)


@pytest.mark.parametrize("vit", ["qkv bias"], indirect=True)
def test_a_file_of_another_architecture_is_refused(vit):
    with pytest.raises(
        ValueError, match=r"weights must be those of vit_tiny.*dinov3_vits16\.pth, which looks like vit_small"
    ):
        DINOv3Teacher(SMALLEST, weights=vit.path)


def test_images_must_hold_floats(untrained):
    with pytest.raises(TypeError, match=r"x must hold floats in \[0, 1\], got torch\.uint8"):
        untrained(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 24, 16), (1, 3, 16, 24)])
def test_images_must_be_multiples_of_the_stride(untrained, shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\), H and W multiples of 16, got"):
        untrained(torch.rand(shape))


def test_every_name_that_timm_lists_leads_to_the_hub_and_a_license():
    for name in timm.list_models("*dinov3*", pretrained=True):
        config = timm.get_pretrained_cfg(name)
        assert config.hf_hub_id == f"timm/{name}"
        assert config.license
