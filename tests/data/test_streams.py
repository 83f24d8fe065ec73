from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
import torch
from monai.data import CacheDataset, Dataset
from monai.transforms import Compose, RandLambdad

from dinomix_monai.data import PatchStream, cases_of_rank, patch_stream


def cases(count):
    return [{"image": torch.tensor([float(number)])} for number in range(count)]


def epoch(stream):
    return [batch["image"].flatten().int().tolist() for batch in stream]


def noisy(count, cls=Dataset, **kwargs):
    """Cases with random noise below 0.5, so that a case and its draw can be told apart."""

    class AddNoise(RandLambdad):
        def __call__(self, data):
            return {"image": data["image"] + self.R.uniform(0, 0.5)}

    return cls(cases(count), Compose([AddNoise("image", func=lambda x: x)]), **kwargs)


@pytest.mark.parametrize(("count", "num_workers"), [(1, 0), (2, 0), (3, 0), (50, 0), (3, 1)])
def test_an_epoch_has_as_many_full_batches_as_asked_whatever_the_number_of_cases(count, num_workers):
    stream = patch_stream(Dataset(cases(count)), batch_size=2, steps=5, num_workers=num_workers)
    assert len(stream) == 5
    for _ in range(2):
        assert [len(batch) for batch in epoch(stream)] == [2] * 5


@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_cases_are_seen_before_one_is_repeated(count):
    stream = patch_stream(Dataset(cases(count)), batch_size=1, steps=3 * count + 1)
    drawn = [number for batch in epoch(stream) for number in batch]
    for start in range(0, 3 * count, count):
        assert sorted(drawn[start : start + count]) == list(range(count))


def test_an_epoch_shorter_than_the_data_set_repeats_none_and_epochs_differ():
    stream = patch_stream(Dataset(cases(50)), batch_size=4, steps=3)
    epochs = [[number for batch in epoch(stream) for number in batch] for _ in range(30)]
    assert all(len(set(drawn)) == 12 for drawn in epochs)
    assert epochs[0] != epochs[1]
    assert len(Counter(number for drawn in epochs for number in drawn)) == 50


@pytest.mark.parametrize("cls", [Dataset, CacheDataset])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_seed_repeats_the_order_and_the_transforms(cls, num_workers):
    options = {"progress": False} if cls is CacheDataset else {}
    streams = [patch_stream(noisy(6, cls, **options), batch_size=2, steps=4, num_workers=num_workers) for _ in "ab"]

    def values(stream, seed):
        stream.set_random_state(seed)
        return torch.cat([batch["image"] for _ in range(2) for batch in stream])

    first = values(streams[0], 5)
    assert torch.equal(values(streams[0], 5), first)  # anew in the same stream
    assert torch.equal(values(streams[1], 5), first)  # and in another
    other = values(streams[0], 6)
    assert not torch.equal(other.int(), first.int())  # the order
    assert not torch.equal(other.frac().sort(0).values, first.frac().sort(0).values)  # the transforms


def test_an_epoch_that_ends_after_seeding_does_not_disturb_the_next():
    stream = patch_stream(Dataset(cases(10)), batch_size=2, steps=4).set_random_state(5)
    expected = epoch(stream)
    unfinished = iter(stream)
    next(unfinished)
    stream.set_random_state(5)
    list(unfinished)
    assert epoch(stream) == expected


def test_the_global_random_state_plays_no_part():
    draws = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        stream = patch_stream(noisy(6), batch_size=2, steps=4).set_random_state(5)
        before = torch.get_rng_state()
        draws.append(torch.cat([batch["image"] for batch in stream]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*draws)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_thread_reads_ahead_is_what_is_read_without_one(num_workers):
    def values(buffer_size):
        stream = patch_stream(noisy(6), 2, 5, num_workers=num_workers, buffer_size=buffer_size)
        drawn = []
        for seed, taken in ((5, 5), (6, 2), (5, 5)):  # the second epoch ends before its batches do
            batches = iter(stream.set_random_state(seed))
            drawn += [next(batches)["image"] for _ in range(taken)]
        return torch.cat(drawn)

    expected = values(0)
    for buffer_size in (1, 2, 9):
        assert torch.equal(values(buffer_size), expected)


class Noted(Dataset):
    """Notes which thread reads each case."""

    def __init__(self, count):
        super().__init__(cases(count), Compose([]))
        self.threads = []

    def __getitem__(self, index):
        self.threads.append(threading.get_ident())
        return super().__getitem__(index)


def test_a_thread_reads_so_many_batches_ahead_and_stops_when_it_is_told_to():
    dataset = Noted(3)
    stream = patch_stream(dataset, batch_size=1, steps=9, buffer_size=2)
    first = iter(stream)
    assert not dataset.threads
    next(first)
    deadline = time.monotonic() + 10
    while len(dataset.threads) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(dataset.threads) == 3
    assert threading.get_ident() not in dataset.threads
    second = iter(stream)
    assert list(first) == []
    next(second)
    stream.set_random_state(0)
    assert list(second) == []
    assert len(dataset.threads) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patches")]


@pytest.mark.parametrize("buffer_size", [0, 2])
def test_what_goes_wrong_in_a_batch_is_raised_where_it_is_asked_for(buffer_size):
    def fail(_):
        raise ValueError("damaged")

    stream = patch_stream(Dataset(cases(2), fail), batch_size=1, steps=3, buffer_size=buffer_size)
    with pytest.raises(RuntimeError, match="applying transform") as error:
        next(iter(stream))
    assert str(error.value.__cause__) == "damaged"


def test_fewer_than_no_batches_ahead_are_refused():
    with pytest.raises(ValueError, match="buffer_size must be >= 0, got -1"):
        patch_stream(Dataset(cases(2)), batch_size=1, steps=1, buffer_size=-1)


def test_setting_the_random_state_gives_the_stream():
    stream = patch_stream(Dataset(cases(2)), batch_size=1, steps=1)
    assert stream.set_random_state(0) is stream
    assert isinstance(stream, PatchStream)


def test_an_empty_data_set_has_no_stream():
    assert patch_stream(Dataset([]), batch_size=2, steps=3) is None


@pytest.mark.parametrize(("batch_size", "steps"), [(0, 3), (2, 0), (-1, 3)])
@pytest.mark.parametrize("count", [0, 4])
def test_batches_and_epochs_of_nothing_are_refused(batch_size, steps, count):
    with pytest.raises(ValueError, match=rf"batch_size and steps must be >= 1, got {batch_size} and {steps}\."):
        patch_stream(Dataset(cases(count)), batch_size, steps)


def test_processes_share_the_batches_of_one_with_batches_as_large_as_theirs_together():
    whole = patch_stream(Dataset(cases(7), Compose([])), batch_size=6, steps=5).set_random_state(seed=3)
    shares = [
        patch_stream(Dataset(cases(7), Compose([])), batch_size=2, steps=5, rank=rank, world_size=3)
        for rank in range(3)
    ]
    for share in shares:
        share.set_random_state(seed=3)
        assert len(share) == 5
    assert [[*a, *b, *c] for a, b, c in zip(*map(epoch, shares))] == epoch(whole)


def test_transforms_of_processes_draw_differently():
    streams = [patch_stream(noisy(1), batch_size=1, steps=1, rank=rank, world_size=2) for rank in range(2)]
    draws = [next(iter(stream.set_random_state(seed=3)))["image"].item() for stream in streams]
    assert draws[0] != draws[1]


@pytest.mark.parametrize(("count", "world_size"), [(5, 2), (4, 4), (2, 3), (0, 2)])
def test_every_case_is_evaluated_equally_often(count, world_size):
    shares = [cases_of_rank(range(count), rank, world_size) for rank in range(world_size)]
    counted = Counter(case for share in shares for case in share)
    assert set(counted) == set(range(count))
    assert len(set(counted.values())) <= 1
    # A process without a case would have no score to average.
    assert count == 0 or all(len(share) > 0 for share in shares)
