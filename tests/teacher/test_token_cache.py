from __future__ import annotations

import re
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    Flipd,
    RandAffine,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
    RandZoomd,
    SpatialPad,
    SpatialPadd,
)
from torch import nn
from torch.nn import functional as F

from dinomix_monai.teacher import SliceTokens, TokenCache
from dinomix_monai.transforms import PICCutMix, SourceCoordinatesd

SHAPE, CELL = (16, 24, 12), (4, 4, 2)
GRID = (4, 6, 6)
STRAIGHT = np.diag([1.5, 1.5, 4.0, 1.0])
OBLIQUE = np.array([[-1.4, 0.3, 0, 20], [0.2, 1.9, -0.4, -7], [0.1, 0.5, 2.5, 3], [0, 0, 0, 1]])


class MeanTeacher:
    """The token of a square of 2 x 2 pixels is its mean intensity in each channel."""

    stride, embed_dim, fingerprint = 2, 3, "mean"

    def __init__(self):
        self.images = 0

    def __call__(self, x):
        self.images += len(x)
        return F.avg_pool2d(x, self.stride)


class IndexTokens(nn.Module):
    """In place of ``SliceTokens``: the token of a cell is the voxel index of its center."""

    offsets, tokens_per_cell, embed_dim, fingerprint = (0, 0, 0), 1, 3, "index"

    def forward(self, volume, grid):
        centers = [(torch.arange(n) + 0.5) * side / n - 0.5 for n, side in zip(grid, volume.shape[2:])]
        return torch.stack(torch.meshgrid(*centers, indexing="ij"))[None]


def scan(seed=0, shape=SHAPE, affine=STRAIGHT):
    generator = torch.Generator().manual_seed(seed)
    return MetaTensor(torch.rand(1, *shape, generator=generator), affine=torch.as_tensor(affine))


def indices(shape=SHAPE, affine=STRAIGHT):
    """A volume whose voxels hold their own indices, one axis in each channel."""
    content = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    return MetaTensor(content, affine=torch.as_tensor(affine))


class Given:
    """Numbers that stand in the sample itself."""

    def number(self, name):
        return name


def source(patch, number=1):
    return SourceCoordinatesd("image", Given())({"image": patch, "volume": number})["source"][None]


def added(cache, volume):
    """The number of a volume, which the cache knows from now on."""
    return cache.number(cache.add(volume))


def completed(cache, *volumes):
    """The numbers of these volumes, which the teacher has seen."""
    numbers = [added(cache, volume) for volume in volumes]
    cache.complete()
    return numbers


@pytest.fixture
def cache(tmp_path):
    return TokenCache(tmp_path, SliceTokens(MeanTeacher(), channels="repeat"), CELL)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("zoom", [False, True], ids=["", "zoom"])
@pytest.mark.parametrize("seed", range(5))
def test_tokens_come_from_where_the_voxels_come_from(affine, zoom, seed, tmp_path):
    shape = (40, 44, 26)
    cache = TokenCache(tmp_path, IndexTokens(), CELL)
    chain = Compose(
        [
            RandSpatialCropd("image", (16, 16, 8), random_size=False),
            RandFlipd("image", 0.5, spatial_axis=0),
            RandFlipd("image", 0.5, spatial_axis=2),
            RandRotate90d("image", 0.5),
            RandZoomd("image", float(zoom), min_zoom=0.8, max_zoom=1.2, padding_mode="constant", constant_values=-99),
        ]
    ).set_random_state(seed)
    patch = chain({"image": indices(shape, affine)})["image"]
    tokens = cached_tokens(cache, scan(shape=shape, affine=affine), patch, (4, 4, 4))
    truth = F.avg_pool3d(patch.as_tensor()[None], CELL)[0]
    counted = tokens.any(0) & (F.max_pool3d(-patch.as_tensor()[None], CELL)[0, 0] <= 0)
    assert counted.sum() > 20
    error = (tokens - truth)[:, counted].abs() / torch.tensor(CELL)[:, None]
    # The outer half of the outermost cells has no token of its own and takes its neighbor's: half a cell at most.
    assert error.max() < 0.5
    # MONAI's zoom moves its content by up to a voxel against the affine that it writes.
    assert error.median() < (0.2 if zoom else 0.001)


def cached_tokens(cache, volume, patch, grid):
    return cache(source(patch, added(cache, volume)), grid)[0]


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE], ids=["straight", "oblique"])
def test_on_a_whole_volume_token_cache_and_online_teacher_agree(affine, cache):
    volume = scan(affine=affine)
    online = SliceTokens(MeanTeacher(), channels="repeat")(volume[None], GRID)[0]
    torch.testing.assert_close(cached_tokens(cache, volume, volume, GRID), online, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
    ids=["single", "bfloat16", "float16 is not wide enough"],
)
def test_the_teacher_computes_in_the_precision_that_it_is_given(dtype, expected, tmp_path):
    found = []

    class Teacher(MeanTeacher):
        def __call__(self, x):
            found.append((x.flatten(2) @ x.flatten(2).transpose(1, 2)).dtype)
            return super().__call__(x)

    completed(TokenCache(tmp_path, SliceTokens(Teacher()), CELL, dtype=dtype), scan())
    assert set(found) == {expected}


def test_a_flip_of_the_patch_flips_the_tokens(cache):
    volume = scan()
    flipped = Flipd("image", spatial_axis=(0, 2))({"image": volume})["image"]
    tokens = cached_tokens(cache, volume, volume, GRID)
    torch.testing.assert_close(cached_tokens(cache, volume, flipped, GRID), tokens.flip(1, 3))


def test_a_choice_of_layers_equals_the_choice_from_all(cache):
    volume = scan()
    places = source(volume, added(cache, volume))
    assert torch.equal(cache(places, GRID, cells=[4, 1]), cache(places, GRID)[..., [4, 1]])


def test_a_finer_grid_interpolates_between_tokens(tmp_path):
    cache = TokenCache(tmp_path, IndexTokens(), CELL)
    tokens = cached_tokens(cache, scan(), scan(), (8, 12, 12))
    # Cells of half the size: their centers lie a quarter of a cell beside those of the tokens.
    torch.testing.assert_close(tokens[0, 1:-1, 0, 0], torch.arange(2.5, 14, 2))


def test_padding_has_no_tokens(cache):
    volume = scan()
    padded = SpatialPadd("image", (24, 24, 12))({"image": volume})["image"]
    tokens = cached_tokens(cache, volume, padded, (6, 6, 6))
    assert not tokens[:, 0].any()
    assert not tokens[:, -1].any()
    torch.testing.assert_close(tokens[:, 1:-1], cached_tokens(cache, volume, volume, GRID))


def test_volumes_that_cells_do_not_divide_have_tokens_up_to_their_edge(cache):
    volume = scan(shape=(14, 24, 12))
    tokens = cached_tokens(cache, volume, volume[:, 6:], (2, 6, 6))
    assert tokens.any(0).all()


@pytest.mark.parametrize("shape", [(14, 24, 12), (13, 21, 11), (15, 23, 9)])
def test_nothing_dark_is_seen_where_cells_stick_out_of_the_volume(cache, shape):
    volume = MetaTensor(torch.ones(1, *shape), affine=torch.as_tensor(STRAIGHT))
    grid = [-(-side // cell) for side, cell in zip(shape, CELL)]
    tokens = cached_tokens(cache, volume, SpatialPad([n * cell for n, cell in zip(grid, CELL)])(volume), grid)
    counted = tokens.any(0)
    assert counted.float().mean() > 0.5
    torch.testing.assert_close(tokens[:, counted], torch.ones_like(tokens[:, counted]), atol=1e-3, rtol=0)


def test_mixed_patches_have_the_tokens_of_what_was_pasted(cache):
    volumes = [scan(0), scan(1)]
    numbers = [added(cache, volume) for volume in volumes]
    places = torch.cat([source(volume, number) for volume, number in zip(volumes, numbers)])
    label = torch.zeros(2, 1, *SHAPE)
    label[0] = 1
    mix = PICCutMix([1, 1], directions={"labeled_to_unlabeled": 1}, num_boxes=1, blind_share=1.0)
    mixed_label, _, mixed = mix.set_random_state(0)(label, torch.ones_like(label), places, labeled=[True, False])
    tokens, whole = cache(mixed, GRID)[0], cache(places, GRID)
    share = F.avg_pool3d(mixed_label, CELL)[0, 0]
    assert (share == 1).any()
    torch.testing.assert_close(tokens[:, share == 1], whole[0][:, share == 1])
    torch.testing.assert_close(tokens[:, share == 0], whole[1][:, share == 0])


def test_deformed_patches_have_the_tokens_of_where_their_voxels_come_from(tmp_path):
    cache = TokenCache(tmp_path, IndexTokens(), CELL)
    # The seventh volume: a number that interpolation does not keep exactly.
    number = [added(cache, scan(seed)) for seed in range(7)][-1]
    affine = RandAffine(prob=1.0, rotate_range=(0, 0, 1), scale_range=(0.2, 0.2, 0.2), padding_mode="border")
    affine.set_random_state(0)
    affine.randomize()
    places, content = (affine(field, randomize=False) for field in (source(scan(), number)[0], indices()))
    tokens = cache(places[None], GRID)[0]
    error = (tokens - F.avg_pool3d(content.as_tensor()[None], CELL)[0]).abs() / torch.tensor(CELL)[:, None, None, None]
    counted = tokens.any(0)
    assert counted.float().mean() > 0.9
    assert error[:, counted].max() < 0.5
    assert error[:, counted].median() < 0.01


def test_a_number_that_interpolation_has_moved_a_little_still_counts(cache):
    volume = scan()
    places = source(volume, added(cache, volume))
    moved = places.clone()
    moved[:, 0, ::2] -= 1e-4
    torch.testing.assert_close(cache(moved, GRID), cache(places, GRID))


def test_nowhere_has_no_token(cache):
    volume = scan()
    places = source(volume, added(cache, volume))
    places[:, :, : CELL[0]] = 0
    tokens = cache(places, GRID)[0].any(0)
    assert not tokens[0].any()
    assert tokens[1:].all()


def test_a_center_that_an_edge_runs_through_has_no_token(cache):
    numbers = [added(cache, scan(0)), added(cache, scan(1))]
    mixed = source(scan(0), numbers[0])
    mixed[:, :, 6:] = source(scan(1), numbers[1])[:, :, 6:]
    tokens = cache(mixed, GRID)[0].any(0)
    # Voxels 4 to 7 are one cell, whose center lies between the voxels 5 and 6.
    assert not tokens[1].any()
    assert tokens[[0, 2, 3]].all()


@pytest.mark.parametrize("threads", [1, 4])
def test_numbers_and_components_do_not_depend_on_the_order_in_which_volumes_come(threads, tmp_path):
    volumes = [scan(seed) for seed in range(5)]
    for number, volume in enumerate(volumes):
        volume.meta["filename_or_obj"] = f"images/{number}.nii"
    found = []
    for name, order in (("list", [0, 1, 2, 3, 4]), ("other", [3, 0, 4, 2, 1])):
        cache = TokenCache(tmp_path / name, SliceTokens(MeanTeacher()), CELL, components=2)
        with ThreadPoolExecutor(threads) as pool:
            names = dict(zip(order, pool.map(cache.add, [volumes[place] for place in order])))
        numbers = [cache.number(names[place]) for place in range(5)]
        assert numbers == [1, 2, 3, 4, 5]
        found.append(torch.cat([cache(source(volume, number), GRID) for volume, number in zip(volumes, numbers)]))
    assert torch.equal(*found)


def test_volumes_that_come_later_do_not_change_the_numbers_of_the_others(tmp_path):
    def numbers(*seeds):
        cache = TokenCache(tmp_path, SliceTokens(MeanTeacher()), CELL)
        names = {}
        for seed in seeds:
            volume = scan(seed)
            volume.meta["filename_or_obj"] = f"images/{seed}.nii"
            names[seed] = cache.add(volume)
        return {seed: cache.number(name) for seed, name in names.items()}

    assert numbers(2, 4) == {2: 1, 4: 2}
    assert numbers(3, 4, 1, 2) == {2: 1, 4: 2, 1: 3, 3: 4}


def test_a_name_that_was_not_added_has_no_number(cache):
    with pytest.raises(ValueError, match="name must be that of a volume that was added to the token cache, got other"):
        cache.number("other")


def test_a_second_start_computes_nothing(cache, tmp_path):
    teacher = cache.slice_tokens.teacher
    first = completed(cache, scan(0), scan(1))
    computed = teacher.images
    again = TokenCache(tmp_path, SliceTokens(teacher, channels="repeat"), CELL)
    assert completed(again, scan(1), scan(0)) == first[::-1]
    assert teacher.images == computed > 0


def test_the_teacher_sees_a_volume_when_its_tokens_are_asked_for(cache, capsys):
    teacher = cache.slice_tokens.teacher
    numbers = [added(cache, scan(seed)) for seed in range(6)]
    assert teacher.images == 0
    asked = torch.cat([source(scan(seed), numbers[seed]) for seed in (2, 4)])
    tokens = cache(asked, GRID)
    assert "Teacher tokens of 1 volumes; 5 follow as they are used: 100%" in capsys.readouterr().err
    # One more, if neither of the two is the one that shows whether there are tokens at all.
    assert 2 <= teacher.images / GRID[2] <= 3
    computed = teacher.images
    torch.testing.assert_close(cache(asked, GRID), tokens, rtol=0, atol=0)
    assert teacher.images == computed
    cache.complete()
    assert teacher.images == 6 * GRID[2]


def test_the_first_look_up_needs_a_tenth_of_the_volumes_for_the_components(tmp_path):
    volumes = [scan(seed) for seed in range(50)]
    teacher = MeanTeacher()
    cache = TokenCache(tmp_path, SliceTokens(teacher), CELL, components=2)
    numbers = [added(cache, volume) for volume in volumes]
    tokens = cache(source(volumes[7], numbers[7]), GRID)
    assert 5 <= teacher.images / GRID[2] <= 6
    # They are close to those of all volumes, which are alike.
    everything = torch.cat([SliceTokens(teacher)(volume[None], GRID) for volume in volumes]).movedim(1, -1)
    mean = everything.flatten(0, -2).mean(0)
    directions = torch.linalg.svd(everything.flatten(0, -2) - mean, full_matrices=False)[2][:2]
    expected = (everything[7] - mean) @ directions.T
    kept = [float(found.flatten(0, -2).pow(2).sum()) for found in (tokens[0].movedim(0, -1), expected)]
    assert kept[0] == pytest.approx(kept[1], rel=0.02)


@pytest.mark.parametrize("components", [None, 2])
def test_tokens_are_the_same_ahead_of_training_and_on_demand(components, tmp_path):
    volumes = [scan(seed) for seed in range(6)]
    found = []
    for folder in ("ahead", "on demand"):
        cache = TokenCache(tmp_path / folder, SliceTokens(MeanTeacher()), CELL, components)
        numbers = [added(cache, volume) for volume in volumes]
        if folder == "ahead":
            cache.complete()
        found.append([cache(source(volumes[i], numbers[i]), GRID) for i in (5, 1, 3)])
    for ahead, on_demand in zip(*found):
        torch.testing.assert_close(ahead, on_demand, rtol=0, atol=0)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("components", [None, 2])
def test_no_file_stays_open(components, tmp_path):
    cache = TokenCache(tmp_path, SliceTokens(MeanTeacher()), CELL, components)
    before = len(list(Path("/proc/self/fd").iterdir()))
    completed(cache, *(scan(seed) for seed in range(20)))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_voxels_are_not_held_once_the_teacher_has_seen_them(cache):
    voxels = torch.rand(1, *SHAPE).numpy()
    released = weakref.ref(voxels)
    number = added(cache, MetaTensor(torch.from_numpy(voxels), affine=torch.as_tensor(STRAIGHT)))
    del voxels
    assert released() is not None
    cache(source(scan(), number), GRID)
    assert released() is None


@pytest.mark.parametrize("change", ["voxel", "affine", "teacher", "cell", "recipe", "planes"])
def test_tokens_of_anything_else_are_computed_anew(change, cache, tmp_path):
    completed(cache, scan())
    teacher = MeanTeacher()
    teacher.fingerprint = "another" if change == "teacher" else "mean"
    settings = {"cell": (4, 4, 4) if change == "cell" else CELL}
    if change == "planes":
        settings["planes"] = ("axial", "coronal")
    volume = scan(affine=OBLIQUE if change == "affine" else STRAIGHT)
    if change == "voxel":
        volume[0, 3, 4, 5] += 0.01
    channels = "neighbors" if change == "recipe" else "repeat"
    completed(TokenCache(tmp_path, SliceTokens(teacher, channels=channels), **settings), volume)
    assert teacher.images > 0


def test_a_killed_run_goes_on_with_the_volume_it_was_at(cache, monkeypatch, tmp_path):
    teacher = cache.slice_tokens.teacher
    completed(cache, scan(0))
    monkeypatch.setattr("numpy.save", lambda stream, array: stream.write(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        completed(cache, scan(1))
    monkeypatch.undo()
    computed = teacher.images
    again = TokenCache(tmp_path, SliceTokens(teacher, channels="repeat"), CELL)
    completed(again, scan(0))
    assert teacher.images == computed
    torch.testing.assert_close(
        cached_tokens(again, scan(1), scan(1), GRID),
        SliceTokens(MeanTeacher(), channels="repeat")(scan(1)[None], GRID)[0],
        rtol=0,
        atol=1e-3,
    )


def test_components_are_those_of_all_of_a_few_volumes(tmp_path, caplog):
    volumes = [scan(seed) for seed in range(3)]
    slice_tokens = SliceTokens(MeanTeacher(), channels="neighbors")
    cache = TokenCache(tmp_path, slice_tokens, CELL, components=2)
    numbers = [added(cache, volume) for volume in volumes]
    with caplog.at_level("INFO"):
        tokens = torch.cat([cache(source(v, n), GRID) for v, n in zip(volumes, numbers)])
    everything = torch.cat([slice_tokens(volume[None], GRID) for volume in volumes]).movedim(1, -1).flatten(0, -2)
    _, values, directions = torch.linalg.svd(everything - everything.mean(0), full_matrices=False)
    expected = (everything - everything.mean(0)) @ directions[:2].T
    # Their signs are arbitrary.
    torch.testing.assert_close(tokens.movedim(1, -1).flatten(0, -2).abs(), expected.abs(), rtol=0, atol=2e-3)
    kept = 100 * (values[:2] ** 2).sum() / (values**2).sum()
    assert f"2 components keep {kept:.1f} % of the variance" in caplog.text


def test_components_follow_the_volumes(tmp_path):
    cache = TokenCache(tmp_path, SliceTokens(MeanTeacher()), CELL, components=1)
    first = added(cache, scan(0))
    alone = cache(source(scan(0), first), GRID)
    cache.add(scan(1))
    assert not torch.equal(cache(source(scan(0), first), GRID), alone)
    assert alone.shape[1] == cache.embed_dim == 1


@pytest.fixture
def spoiled():
    volume = scan(1)
    volume[0, 3, 4, 5] = torch.nan
    volume.meta["filename_or_obj"] = "images/spoiled.nii"
    return volume


@pytest.mark.parametrize("components", [None, 2])
def test_a_volume_with_nan_has_no_tokens_and_spoils_no_other(components, spoiled, tmp_path, caplog):
    slice_tokens = SliceTokens(MeanTeacher(), channels="neighbors")
    clean = TokenCache(tmp_path / "clean", slice_tokens, CELL, components)
    expected = cached_tokens(clean, scan(), scan(), GRID)
    for _ in range(2):  # the second start finds the files of the first
        caplog.clear()
        cache = TokenCache(tmp_path / "spoiled", slice_tokens, CELL, components)
        numbers = completed(cache, spoiled, scan())
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            "images/spoiled.nii has no teacher tokens, because they are not finite: distillation leaves it out."
        ]
        places = torch.cat([source(volume, number) for volume, number in zip((spoiled, scan()), numbers)])
        tokens = cache(places, GRID)
        assert not tokens[0].any()
        torch.testing.assert_close(tokens[1], expected)
        assert cache.describe().startswith("2 volumes, up to 4 x 6 x 6 tokens each")


@pytest.mark.parametrize("components", [None, 2])
def test_a_token_cache_without_any_tokens_is_refused(components, spoiled, tmp_path):
    cache = TokenCache(tmp_path, SliceTokens(MeanTeacher()), CELL, components)
    number = added(cache, spoiled)
    with pytest.raises(ValueError, match="must have finite tokens for at least one volume, got none for all 1\\. Look"):
        cache(source(spoiled, number), GRID)


@pytest.mark.parametrize("affine", [np.diag([2, 2, 3, 1.0]), STRAIGHT], ids=["near", "far from isotropic"])
def test_planes_are_averaged_where_spacing_allows(affine, tmp_path):
    volume = scan(affine=affine)
    planes = ("axial", "coronal", "sagittal")
    slice_tokens = SliceTokens(MeanTeacher(), channels="repeat")
    tokens = cached_tokens(TokenCache(tmp_path, slice_tokens, CELL, planes=planes), volume, volume, GRID)
    x, y, z = GRID
    axial = slice_tokens(volume[None], (x, y, z))[0]
    coronal = slice_tokens(volume[None].permute(0, 1, 2, 4, 3), (x, z, y))[0].permute(0, 1, 3, 2)
    sagittal = slice_tokens(volume[None].permute(0, 1, 3, 4, 2), (y, z, x))[0].permute(0, 3, 1, 2)
    expected = (axial + coronal + sagittal) / 3 if affine[2, 2] == 3 else axial
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": (4, 4)}, "cell must be three numbers of voxels >= 1, got (4, 4)."),
        ({"cell": (4, 0, 4)}, "cell must be three numbers of voxels >= 1, got (4, 0, 4)."),
        ({"components": 4}, "components must be from 1 to the 3 channels of the teacher or None, got 4."),
        ({"planes": ()}, "planes must be one or more of axial, coronal, sagittal, each once, got ()."),
        ({"planes": ("oblique",)}, "planes must be one or more of axial, coronal, sagittal, each once"),
        ({"planes": ("axial", "axial")}, "planes must be one or more of axial, coronal, sagittal, each once"),
        ({"max_anisotropy": 0.5}, "max_anisotropy must be >= 1, got 0.5."),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenCache(tmp_path, SliceTokens(MeanTeacher()), **{"cell": CELL, **arguments})


def test_wrong_volumes_and_origins_are_refused(cache):
    with pytest.raises(TypeError, match="volume must be a MetaTensor, which tells where it lies, got Tensor"):
        cache.add(torch.rand(1, *SHAPE))
    with pytest.raises(ValueError, match=re.escape("volume must have shape (C, H, W, D), got (16, 24, 12).")):
        cache.add(MetaTensor(torch.rand(SHAPE)))
    with pytest.raises(ValueError, match=re.escape("source must have shape (B, 4, H, W, D), got (1, 1, 16, 24, 12).")):
        cache(torch.rand(1, 1, *SHAPE), GRID)
    with pytest.raises(ValueError, match="source must name volumes that were added to the token cache, got number 7"):
        cache(source(scan(), 7), GRID)
