from __future__ import annotations

import io

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandAffineGrid

from dinomix_monai.transforms import PICCutMix, PICCutMixd
from tests.transforms.pic_batches import next_numbers

SETTINGS = {"labeled_counts": [100, 10, 3], "blind_share": 0.4, "num_boxes": 3}
LABELED = [True, False, True, False]


def make_batch(seed, shape=(6, 6, 6)):
    generator = torch.Generator().manual_seed(seed)
    size = (len(LABELED), 1, *shape)
    return {
        "image": torch.rand(size, generator=generator),
        "content": torch.rand(len(LABELED), 2, *shape, generator=generator),
        "label": torch.randint(0, 3, size, generator=generator),
        "weight": (torch.rand(size, generator=generator) - 0.3).clamp(min=0),
        "labeled": LABELED,
        "position": torch.randint(-2, 3, (len(LABELED), len(shape)), generator=generator).float(),
        "name": ["a", "b", "c", "d"],
    }


def equal(result, other):
    return result.keys() == other.keys() and all(torch.equal(result[key], other[key]) for key in result)


@pytest.mark.parametrize("placement", ["same", "anatomical"])
@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 6)])
def test_the_array_gives_the_same_as_the_dictionary(placement, shape):
    array = PICCutMix(**SETTINGS, placement=placement).set_random_state(seed=3)
    dictionary = PICCutMixd(["image", "content"], **SETTINGS, placement=placement).set_random_state(seed=3)
    for seed in range(3):
        batch = make_batch(seed, shape)
        arrays = (batch[key] for key in ("label", "weight", "image", "content"))
        expected = array(*arrays, labeled=batch["labeled"], positions=batch["position"])
        mixed = dictionary(batch)
        assert equal(mixed, dict(zip(("label", "weight", "image", "content"), expected)))


def test_the_mixed_batch_has_the_mixed_entries_and_no_other():
    assert PICCutMixd("image", **SETTINGS)(make_batch(0)).keys() == {"image", "label", "weight"}


@pytest.mark.parametrize("mode", ["nearest", ["bilinear", "nearest"]], ids=["one for all", "one for each"])
def test_what_is_not_to_be_interpolated_keeps_its_values(mode):
    affine_grid = RandAffineGrid(rotate_range=(0, 0, 1), scale_range=(0.3, 0.3, 0.3))
    mixer = PICCutMixd(["image", "content"], **SETTINGS, mode=mode, affine_grid=affine_grid).set_random_state(0)
    batch = make_batch(0)
    mixed = mixer(batch)
    for key, is_kept in (("content", True), ("image", mode == "nearest")):
        assert torch.isin(mixed[key], torch.cat([torch.zeros(1), batch[key].flatten()])).all() == is_kept


def test_image_and_label_change_at_the_same_voxels():
    label = torch.zeros(2, 1, 8, 8, 8)
    label[0] = 1
    batch = {"image": label * 2, "label": label, "weight": label * 3, "labeled": [True, False]}
    mixer = PICCutMixd("image", [1, 1], directions={"labeled_to_unlabeled": 1}).set_random_state(0)
    mixed = mixer(batch)
    assert 0 < mixed["label"].sum() < 8**3
    assert torch.equal(mixed["image"], mixed["label"] * 2)
    assert torch.equal(mixed["weight"], mixed["label"] * 3)


def test_the_batch_is_left_unchanged():
    batch, before = make_batch(0), make_batch(0)
    PICCutMixd(["image", "content"], **SETTINGS)(batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in ("image", "content", "label", "weight", "position"))


def test_entries_may_have_other_names():
    batch = make_batch(0)
    names = {"label": "y", "weight": "w", "labeled": "is_labeled", "position": "offset"}
    other = {names.get(key, key): value for key, value in batch.items()}
    mixer = PICCutMixd("image", **SETTINGS, placement="anatomical").set_random_state(0)
    renamed = PICCutMixd(
        "image",
        **SETTINGS,
        placement="anatomical",
        label_key="y",
        weight_key="w",
        labeled_key="is_labeled",
        position_key="offset",
    ).set_random_state(0)
    expected = {names.get(key, key): value for key, value in mixer(batch).items()}
    assert equal(renamed(other), expected)


def test_labeled_flags_may_be_a_tensor():
    batch = make_batch(0)
    mixers = [PICCutMixd("image", **SETTINGS).set_random_state(0) for _ in range(2)]
    assert equal(mixers[0](batch), mixers[1]({**batch, "labeled": torch.tensor(LABELED)}))


def test_the_same_seed_gives_the_same_result():
    first, again, other = (PICCutMixd("image", **SETTINGS).set_random_state(seed)(make_batch(0)) for seed in (5, 5, 6))
    assert equal(first, again)
    assert not equal(first, other)


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_replayed_recipes_give_the_same_bitwise_and_leave_the_transform_as_it_is(kind):
    affine_grid = RandAffineGrid(rotate_range=(0, 0, 1), scale_range=(0.3, 0.3, 0.3))
    settings = {**SETTINGS, "mode": ["bilinear", "nearest"], "affine_grid": affine_grid, "placement": "anatomical"}
    mixer = PICCutMixd(["image", "content"], **settings).set_random_state(0)
    batches = [
        {key: kind(v) if isinstance(v, torch.Tensor) else v for key, v in make_batch(seed).items()} for seed in (0, 1)
    ]
    calls = [(mixer(batch), mixer.recipes) for batch in batches]
    state, numbers = io.BytesIO(), next_numbers(mixer.R)
    torch.save(mixer.state_dict(), state)
    for batch, (mixed, recipes) in zip(batches, calls):
        replayed = mixer.replay(batch, recipes)
        assert equal(replayed, mixed)
        assert {key: type(value) for key, value in replayed.items()} == {key: type(v) for key, v in mixed.items()}
    again = io.BytesIO()
    torch.save(mixer.state_dict(), again)
    assert again.getvalue() == state.getvalue()
    assert next_numbers(mixer.R) == numbers
    assert mixer.recipes is calls[-1][1]


def test_progress_is_that_of_the_array_transform():
    mixer = PICCutMixd("image", **SETTINGS)
    assert mixer.progress == 0
    mixer.progress = 1
    assert mixer.mixer.class_curriculum.probabilities(labeled=True).tolist() == pytest.approx([0.5, 0.5])
    assert mixer.progress == 1


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_a_saved_state_that_is_seeded_anew_goes_on_exactly_as_the_uninterrupted_run(kind):
    def step(mixer, seed):
        return mixer({key: kind(v) if isinstance(v, torch.Tensor) else v for key, v in make_batch(seed).items()})

    mixer = PICCutMixd("image", **SETTINGS, bank_size=6).set_random_state(0)
    resumed = PICCutMixd("image", **SETTINGS, bank_size=6).set_random_state(99)
    for seed in range(3):
        step(mixer, seed)
    mixer.progress = 0.5
    resumed.load_state_dict(saved_and_loaded(mixer.state_dict()))
    assert resumed.progress == 0.5
    for each in (mixer, resumed):
        each.set_random_state(7)
    for seed in range(3, 6):
        assert equal(step(mixer, seed), step(resumed, seed))


def test_a_missing_image_is_refused_or_left_out():
    batch = make_batch(0)
    with pytest.raises(KeyError, match="strong"):
        PICCutMixd(["image", "strong"], **SETTINGS)(batch)
    mixed = PICCutMixd(["image", "strong"], **SETTINGS, allow_missing_keys=True)(batch)
    assert mixed.keys() == {"image", "label", "weight"}


def test_positions_may_be_missing_unless_placement_is_anatomical():
    batch = make_batch(0)
    del batch["position"]
    assert PICCutMixd("image", **SETTINGS)(batch)
    with pytest.raises(ValueError, match=r"positions must be given for placement='anatomical'"):
        PICCutMixd("image", **SETTINGS, placement="anatomical")(batch)
