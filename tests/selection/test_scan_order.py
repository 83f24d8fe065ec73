from __future__ import annotations

import numpy as np
import pytest
import torch

from dinomix_monai.selection import ScanChoice, choose_scans


def look(*shares: float, seed: int = 0, tokens: int = 300) -> torch.Tensor:
    """Tokens of a scan that shows so much of each of some tissues, which are far apart."""
    generator = torch.Generator().manual_seed(seed)
    counts = [round(share * tokens / sum(shares)) for share in shares]
    centers = torch.repeat_interleave(torch.eye(len(shares), 6) * 10, torch.tensor(counts), dim=0)
    return (centers + 0.1 * torch.randn(len(centers), 6, generator=generator)).half()


# Four of one kind, of which the last one has a share in between, and two of another.
KINDS = [
    look(8, 1, 1, seed=0),
    look(7, 2, 1, seed=1),
    look(6, 3, 1, seed=2),
    look(7, 1, 2, seed=3),
    look(1, 1, 8, seed=4),
    look(1, 2, 7, seed=5),
]


def test_each_kind_has_a_scan_before_one_has_two_and_the_larger_kind_comes_first() -> None:
    first, second = choose_scans(KINDS, [], count=2)
    assert first.scan in {0, 1, 2, 3}
    assert (first.cluster_size, first.seen, first.like) == (4, 0, None)
    assert second.scan in {4, 5}
    assert (second.cluster_size, second.seen) == (2, 0)


def test_a_kind_that_has_a_label_waits() -> None:
    [choice] = choose_scans(KINDS, [1], count=1)
    assert choice.scan in {4, 5}
    [choice] = choose_scans(KINDS, [4], count=1)
    assert choice.scan in {0, 1, 2, 3}


def test_of_one_kind_the_scan_that_is_nearest_to_the_others_is_chosen() -> None:
    shares = [(9, 1), (7, 3), (5, 5), (3, 7), (1, 9)]
    assert choose_scans([look(*share, seed=1) for share in shares], [], count=1)[0].scan == 2


def test_the_same_looks_give_the_same_choices_whatever_was_drawn_before() -> None:
    np.random.seed(5)
    choices = choose_scans(KINDS, [], count=6)
    np.random.seed(6)
    assert choose_scans(KINDS, [], count=6) == choices
    assert sorted(choice.scan for choice in choices) == list(range(6))


def test_nearly_the_same_scan_comes_after_all_others() -> None:
    copies = [KINDS[0], KINDS[0].clone(), *KINDS[1:]]
    for labeled in ([], [0]):
        order = choose_scans(copies, labeled, count=7)
        twin = {choice.scan: choice for choice in order}[order[-1].scan]
        assert twin.scan in {0, 1}
        assert twin.like == 1 - twin.scan
        assert all(choice.like is None for choice in order[:-1])


def test_a_scan_of_the_same_patient_comes_after_all_others() -> None:
    order = choose_scans(KINDS, [0], count=5, patients=["a", "b", "c", "d", "a", "e"])
    assert order[-1] == ScanChoice(4, order[-1].cluster_size, order[-1].seen, like=0)


@pytest.mark.parametrize("number", [1, 2])
def test_one_or_two_scans_are_put_into_an_order(number: int) -> None:
    assert sorted(choice.scan for choice in choose_scans(KINDS[:number], [], count=4)) == list(range(number))
    assert choose_scans(KINDS[:number], list(range(number)), count=4) == []
