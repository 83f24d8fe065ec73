"""What runs on a GPU keeps its tensors there; the GPU of these tests has the memory of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandAffineGrid

from dinomix_monai.baselines import ClassWeightedDiceCELoss
from dinomix_monai.engines import PseudoLabeler, TokenProbe, pseudo_labeler
from dinomix_monai.losses import FeatureDistillationLoss, VoxelWeightedDiceCELoss
from dinomix_monai.networks import VNet
from dinomix_monai.teacher import SliceTokens, TokenCache
from dinomix_monai.transforms import DIRECTIONS, PICCutMixd, SourceCoordinatesd
from tests import host_gpu
from tests.transforms.pic_batches import noise_batch, noise_mixer

if not host_gpu.CAN_REGISTER:
    pytest.skip("This version of PyTorch lets no device be written in Python.", allow_module_level=True)
DEVICE = host_gpu.register()

# What a step and the loading of its three patches hand over, each of which waits for a GPU. All boxes are blind: one
# around a class reads where its voxels are. Who takes something away or has to add something says so here.
CROSSINGS = {
    # MONAI's smoothing copies its widths and reads them.
    "copy to the device": 3,
    "copy to the device (semi_supervised_trainer.next_unlabeled)": 3,
    "read": 3,
    "read (semi_supervised_trainer.next_unlabeled)": 3,
    # The affine of each patch, which MONAI keeps on the host.
    "copy to the device (source_coordinates.__call__)": 3,
    # PIC: voxels of each class, once for all patches and again for unlabeled ones; matrices of MONAI's deformations.
    "copy to the host (pic_cutmix.add_donors)": 2,
    "copy to the device (pic_cutmix.add_donors)": 1,
    "copy to the device (pic_sampler._draw_grid)": 8,
    "copy to the host (pic_sampler._draw_grid)": 1,
    "copy to the device (pic_recipe.apply_recipes)": 1,
    "copy to the device (pic_recipe.deform)": 2,
    # FKD: which volumes the cells lie in, the cells of each, and the tokens of a volume that is new.
    "copy to the host (token_cache._sample)": 1,
    "copy to the device (token_cache._sample)": 3,
    "copy to the device (token_cache._load)": 1,
    # The norm of the gradient.
    "read (gradients.__call__)": 1,
}


@pytest.fixture(autouse=True)
def _as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", host_gpu.Generator)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(host_gpu.is_on_device), raising=False)


def tensors_of(state: Any) -> list[torch.Tensor]:
    """All tensors with axes in a state dict, however deep."""
    if isinstance(state, torch.Tensor):
        return [state] if state.ndim else []
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


@pytest.mark.parametrize("overlays", [(), ("memory_map",)])
def test_training_resumption_evaluation_and_inference_run_on_the_device(
    run, phantom: Path, tmp_path: Path, overlays: tuple[str, ...]
) -> None:
    short = {"device": DEVICE, "epochs": 1, "steps_per_epoch": 2, "warm_up": 0.0, "distiller#interval": 1}
    if overlays:
        short["token_cache#folder"] = str(tmp_path / "tokens")
    run("train", *overlays, **short)
    # Windows are stitched on the host, as when the memory of the GPU does not suffice.
    resumed = run("train", *overlays, "resume", **{**short, "epochs": 2, "validate#inferer#cpu_thresh": 1})
    trainer = resumed.parser.get_parsed_content("train#trainer")
    for name in ("network", "optimizer", "ema_teacher", "pseudo_labeler", "distiller"):
        held = tensors_of(trainer.to_save[name].state_dict())
        assert held, name
        assert all(map(host_gpu.is_on_device, held)), name
    run("train", "evaluate", run_id="evaluating", split="validation", **{**short, "validate#inferer#cpu_thresh": 1})
    settings = {
        "model_file": str(tmp_path / "models" / "model.pt"),
        "dataset_dir": str(min((phantom / "images").iterdir())),
    }
    run("inference", kind="infer", **settings, device=DEVICE)
    assert list((tmp_path / "output").glob("*_seg.nii.gz"))


@pytest.mark.parametrize("overlay", ["online_teacher", "memory_map", "baseline/cps", "baseline/bcp"])
def test_a_step_runs_on_the_device(step, overlay: str) -> None:
    step(overlay, device=DEVICE)()


def test_with_memory_map_volumes_stay_on_the_host_and_patches_go_to_the_device(
    workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = workflow("train", "memory_map", device=DEVICE, **{"token_cache#folder": str(tmp_path / "tokens")})
    for name in ("train#dataset", "train#unlabeled_dataset"):
        dataset = built.parser.get_parsed_content(name)
        volumes = tensors_of([[item[key] for key in ("image", "label") if key in item] for item in dataset._cache])
        assert len(volumes) == 2 * (2 if name == "train#dataset" else 1)
        with host_gpu.Crossings() as crossings:
            (patch,) = dataset[0] if isinstance(dataset[0], list) else [dataset[0]]
        assert not any(map(host_gpu.is_on_device, volumes))
        assert all(host_gpu.is_on_device(patch[key]) for key in ("image", "label", "strong", "source") if key in patch)
        assert crossings.found["copy to the device (patch_to_device.__call__)"] > 0


@pytest.mark.parametrize("placement", ["same", "anatomical"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pic_mixes_on_the_device_as_on_a_cpu(direction: str, placement: str) -> None:
    mixed = []
    for device in (torch.device("cpu"), DEVICE):
        grid = RandAffineGrid(rotate_range=[0.5] * 3, scale_range=[0.3] * 3, device=device)
        mix = noise_mixer(directions={direction: 1}, placement=placement, affine_grid=grid)
        tensors, labeled = noise_batch(0)
        positions = torch.tensor([[0, 0, 0], [1, 0, 2], [0, 3, 0], [2, 1, 1]])
        mixed.append(mix(*(tensor.to(device) for tensor in tensors), labeled=labeled, positions=positions))
    assert all(map(host_gpu.is_on_device, mixed[1]))
    for expected, found in zip(*mixed):
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize(
    ("loss", "channels"),
    [
        (VoxelWeightedDiceCELoss([1.0, 2.0, 3.0]), (3, 1, 1)),
        (ClassWeightedDiceCELoss(), (3, 1)),
        (FeatureDistillationLoss("plain"), (3, 3)),
        (FeatureDistillationLoss("uniqueness"), (3, 3)),
        (FeatureDistillationLoss("rarity"), (3, 3)),
    ],
)
def test_losses_and_their_gradients_on_the_device_are_those_of_a_cpu(loss: Callable, channels: Iterable[int]) -> None:
    torch.manual_seed(0)
    inputs = [torch.rand(2, number, 4, 4, 4) for number in channels]
    if inputs[1].shape[1] == 1:
        inputs[1] = (3 * inputs[1]).long()
    results = []
    for device in ("cpu", DEVICE):
        first, *others = (tensor.detach().to(device) for tensor in inputs)
        value = loss(first.requires_grad_(), *others)
        value.mean().backward()
        results.append((value.detach(), first.grad))
    assert all(map(host_gpu.is_on_device, results[1]))
    for expected, found in zip(*results):
        torch.testing.assert_close(found.cpu(), expected)


class Means(torch.nn.Module):
    """A teacher whose token is the mean intensity of 2 x 2 pixels; it notes where it is when it is asked."""

    stride, embed_dim, fingerprint = 2, 3, "means"

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))
        self.asked_on: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked_on.append(self.factor.device.type)
        return torch.nn.functional.avg_pool2d(x * self.factor, self.stride)


def test_the_teacher_is_on_the_device_while_it_is_asked(tmp_path: Path) -> None:
    def make(*volumes: MetaTensor) -> tuple[TokenCache, Means, list[torch.Tensor]]:
        teacher = Means().to(DEVICE)
        cache = TokenCache(tmp_path, SliceTokens(teacher, batch_size=100), cell=(2, 2, 2), device=DEVICE)
        return cache, teacher, [source_of(cache, volume) for volume in volumes]

    def source_of(cache: TokenCache, volume: MetaTensor) -> torch.Tensor:
        sample = {"image": volume, "volume": cache.add(volume)}
        return SourceCoordinatesd("image", cache)(sample)["source"][None]

    volumes = [MetaTensor(torch.rand(1, 8, 8, 4), affine=torch.eye(4)).to(DEVICE) for _ in range(3)]
    cache, teacher, sources = make(*volumes[:2])
    cache(sources[0], (4, 4, 2))
    assert host_gpu.is_on_device(teacher.factor) == (len(teacher.asked_on) < 2)
    cache(sources[1], (4, 4, 2))
    assert not host_gpu.is_on_device(teacher.factor)
    cache(source_of(cache, volumes[2]), (4, 4, 2))
    assert teacher.asked_on == [DEVICE.type] * 3
    assert not host_gpu.is_on_device(teacher.factor)

    # A run that goes on, whose tokens are on disk, and the probe at its end.
    cache, teacher, sources = make(*volumes)
    cache(sources[0], (4, 4, 2))
    assert not host_gpu.is_on_device(teacher.factor)
    assert host_gpu.is_on_device(TokenProbe(cache.slice_tokens, (2, 2, 2), 3).tokens(volumes[0]))
    assert teacher.asked_on == [DEVICE.type]


def test_tokens_that_were_asked_for_longest_ago_leave_the_device(tmp_path: Path) -> None:
    volumes = [MetaTensor(torch.rand(1, 8, 8, 4), affine=torch.eye(4)).to(DEVICE) for _ in range(3)]
    of_one = 2.0 * 4 * 4 * 2 * 3
    free, bounded = (
        TokenCache(tmp_path, SliceTokens(Means().to(DEVICE)), (2, 2, 2), device=DEVICE, device_gb=most)
        for most in (None, 2.5e-9 * of_one)
    )
    sources = []
    for volume in volumes:
        free.add(volume)
        sample = {"image": volume, "volume": bounded.add(volume)}
        sources.append(SourceCoordinatesd("image", bounded)(sample)["source"][None])
    bounded.complete()
    assert bounded.device_bytes == 0
    for number, read in ((0, 1), (1, 1), (0, 0), (2, 1), (0, 0), (1, 1)):
        expected = free(sources[number], (4, 4, 2))
        with host_gpu.Crossings() as crossings:
            torch.testing.assert_close(bounded(sources[number], (4, 4, 2)), expected)
        assert crossings.found["copy to the device (token_cache._load)"] == read
    assert (free.device_bytes, bounded.device_bytes) == (3 * of_one, 2 * of_one)


def test_what_a_step_hands_over_is_known(step) -> None:
    take = step("default", device=DEVICE, **{"mix#blind_share": 1.0})
    with host_gpu.Crossings() as crossings:
        take()
    assert crossings.found == CROSSINGS


def on_host(result: Any) -> Any:
    """A result whose tensors somebody has taken to the host, or the first of several."""
    if isinstance(result, tuple):
        return (on_host(result[0]), *result[1:])
    return {name: value.cpu() for name, value in result.items()} if isinstance(result, dict) else result.cpu()


@pytest.mark.parametrize(
    ("overlay", "parts"),
    [
        (
            "default",
            [(VNet, "forward"), (PseudoLabeler, "forward"), (PICCutMixd, "__call__"), (TokenCache, "_look_up")],
        ),
        ("memory_map", [(PICCutMixd, "__call__"), (TokenCache, "_look_up")]),
        ("online_teacher", [(SliceTokens, "_cut")]),
    ],
)
def test_a_result_that_is_left_on_the_host_ends_a_step(step, monkeypatch, overlay: str, parts: list) -> None:
    take = step(overlay, device=DEVICE, steps_per_epoch=len(parts) + 1)
    for owner, name in parts:
        whole = getattr(owner, name)
        with monkeypatch.context() as planted:
            planted.setattr(owner, name, lambda *args, _whole=whole, **kwargs: on_host(_whole(*args, **kwargs)))
            with pytest.raises(RuntimeError, match="same device"):
                take()


def test_an_index_on_the_host_ends_a_step(step, monkeypatch) -> None:
    take, sums = step("default", device=DEVICE), pseudo_labeler.class_sums
    monkeypatch.setattr(pseudo_labeler, "class_sums", lambda values, label, number: sums(values, label.cpu(), number))
    with pytest.raises(RuntimeError, match=r"same device.*scatter_add"):
        take()


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: here[there.long()],
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.where(here > 0, here, there),
        lambda here, there: here.index_add_(0, torch.zeros(4, dtype=torch.long, device=DEVICE), there),
        lambda here, there: torch.nn.functional.conv1d(here[None, None], there[None, None]),
        lambda here, there: here.numpy(),
    ],
)
def test_the_device_refuses_what_a_gpu_refuses(mix: Callable) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"same device|device type tensor to numpy"):
        mix(torch.ones(4, device=DEVICE), torch.ones(4))


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda x: bool(x.sum() > 0), {"read": 1}),
        (lambda x: x[x > 0], {"read": 1}),
        (lambda x: x.index_put_((x > 0,), torch.zeros((), device=DEVICE)), {"read": 1}),
        (lambda x: x.unique(), {"read": 1}),
        (lambda x: x.cpu(), {"copy to the host": 1}),
        (lambda x: x + torch.ones(4).to(DEVICE), {"copy to the device": 1}),
        (lambda x: x[x.long()] + 1, {}),
    ],
)
def test_what_is_handed_over_is_counted(use: Callable, expected: dict[str, int]) -> None:
    x = torch.ones(4, device=DEVICE)
    with host_gpu.Crossings() as crossings:
        use(x)
    assert crossings.found == expected
