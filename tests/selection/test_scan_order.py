from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dinomix_monai.selection import rank_scans

ROOT = Path("data")


def different(number: int) -> dict[str, np.ndarray]:
    """Thumbnails that are all equally far from one another."""
    return {f"scan{place}.nii": row for place, row in enumerate(np.eye(number))}


def names(*arguments: object, **options: int) -> list[str]:
    return [scan.name for scan in rank_scans(*arguments, ROOT, **{"count": 99, **options})]


def test_every_order_is_as_likely() -> None:
    first = [names(different(4), [], seed=seed)[0] for seed in range(400)]
    counts = [first.count(f"scan{place}.nii") for place in range(4)]
    # 100 each, with a standard deviation of 8.7.
    assert min(counts) > 65
    assert max(counts) < 135


def test_the_order_of_the_others_stays_when_a_scan_is_labeled_or_added() -> None:
    order = names(different(6), [])
    assert sorted(order) == sorted(different(6))
    assert names(different(6), [order[0], order[3]]) == [order[1], order[2], order[4], order[5]]
    assert [name for name in names(different(7), []) if name != "scan6.nii"] == order
    assert names(different(6), [], count=2) == order[:2]


@pytest.mark.parametrize("seed", range(5))
def test_of_scans_that_are_nearly_the_same_one_comes_after_all_others(seed: int) -> None:
    thumbnails = different(6)
    # 0.4 of the distance of the others.
    thumbnails["copy.nii"] = thumbnails["scan2.nii"] + 0.4 * (thumbnails["scan3.nii"] - thumbnails["scan2.nii"])
    ranked = rank_scans(thumbnails, [], ROOT, count=7, seed=seed)
    pair = {"copy.nii", "scan2.nii"}
    assert ranked[-1].name in pair
    [other] = pair - {ranked[-1].name}
    assert ranked[-1].reason == f"after all others, because it is nearly the same as {other}"
    assert all("unlike those labeled or named before" in scan.reason for scan in ranked[:-1])
    assert names(thumbnails, ["copy.nii"], seed=seed)[-1] == "scan2.nii"
    # Half of it is not near.
    thumbnails["copy.nii"] = thumbnails["scan2.nii"] + 0.5 * (thumbnails["scan3.nii"] - thumbnails["scan2.nii"])
    assert all("unlike" in scan.reason for scan in rank_scans(thumbnails, [], ROOT, count=7, seed=seed))


def test_a_scan_of_the_same_patient_comes_after_all_others() -> None:
    thumbnails = dict(zip(["p1_visit1.nii", "p1_visit2.nii", "p2.nii", "p3.nii"], np.eye(4)))
    ranked = rank_scans(thumbnails, ["p1_visit1.nii"], ROOT, count=4)
    assert ranked[-1].name == "p1_visit2.nii"
    assert ranked[-1].reason == "after all others, because it is of the same patient as p1_visit1.nii"


def test_copies_alone_are_ranked_too() -> None:
    same = dict.fromkeys(["a.nii", "b.nii", "c.nii"], np.ones(3))
    assert sorted(names(same, [])) == ["a.nii", "b.nii", "c.nii"]
    assert names({"a.nii": np.ones(3)}, []) == ["a.nii"]
    assert names(same, ["a.nii", "b.nii", "c.nii"]) == []
