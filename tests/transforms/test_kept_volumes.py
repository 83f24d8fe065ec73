from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, Lambdad, MapTransform, ScaleIntensityRanged

from dinomix_monai.transforms import KeptVolumesd, LoadVolumed

KEYS = ("image", "label")


class Count(MapTransform):
    """Counts the cases that pass."""

    passed = 0

    def __call__(self, data):
        Count.passed += 1
        return dict(data)


def scaled(top: float = 100.0) -> list[Callable]:
    scale = ScaleIntensityRanged("image", -100, top, 0, 1)
    return [LoadVolumed(KEYS, allow_missing_keys=True), Count(KEYS), scale]


@pytest.fixture
def case(save, noise, monkeypatch) -> dict[str, str]:
    monkeypatch.setattr(Count, "passed", 0)
    return {"image": save("image.nii", noise()), "label": save("label.nii", noise(1) > 0, dtype=np.uint8)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "volumes"


def kept(case: dict, folder: Path | None, transforms: list[Callable] | None = None) -> dict:
    """What a new process gets."""
    return KeptVolumesd(KEYS, transforms or scaled(), folder, allow_missing_keys=True)(case)


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key in found:
        assert found[key].dtype == expected[key].dtype
        assert torch.equal(found[key].as_tensor(), expected[key].as_tensor())
        for name in ("affine", "original_affine", "spatial_shape", "filename_or_obj"):
            assert np.array_equal(found[key].meta[name], expected[key].meta[name]), name


@pytest.mark.parametrize("keys", [KEYS, ("image",)])
def test_the_second_time_volumes_are_read_that_are_those_of_the_first(case, folder, keys) -> None:
    case = {key: case[key] for key in keys}
    first, second = kept(case, folder), kept(case, folder)
    assert Count.passed == 1
    assert_equal(second, first)
    assert_equal(first, Compose(scaled())(case))


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells what is mapped")
def test_volumes_are_mapped_from_their_file_the_first_time_too(case, folder) -> None:
    def mapped() -> int:
        return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())

    first = kept(case, folder)
    assert mapped() == 1
    second = kept(case, folder)
    assert mapped() == 2
    first["image"] += 1
    assert_equal(second, kept(case, folder))
    del first, second
    assert mapped() == 0


FREES_BETWEEN_VOLUMES = """
import sys
from pathlib import Path
import numpy as np
from dinomix_monai.transforms import KeptVolumesd, LoadVolumed

def own_mb():
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

np.ones(24 * 2**20, np.uint8)  # From now on blocks of up to this size are kept when they are freed.
before = own_mb()
volumes = [(np.ones(2**20, np.uint8), np.ones(5000, np.uint8)) for _ in range(200)]
stays = [small for _, small in volumes]
del volumes
freed = own_mb()
KeptVolumesd("image", [LoadVolumed("image")], sys.argv[1])({"image": sys.argv[2]})
print(freed - before, own_mb() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps what was freed")
def test_memory_that_earlier_volumes_have_freed_goes_back_to_the_system(case, folder) -> None:
    # In a process of its own, because what others have done to the heap decides what it keeps.
    command = [sys.executable, "-c", FREES_BETWEEN_VOLUMES, str(folder), case["image"]]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept_mb, left_mb = map(float, printed.split())
    assert kept_mb > 150
    assert left_mb < 50


def test_without_a_folder_nothing_is_kept(case) -> None:
    assert_equal(kept(case, None), Compose(scaled())(case))
    assert Count.passed == 2


def test_a_file_with_other_voxels_is_preprocessed_anew_even_if_size_and_time_are_those_of_before(
    case, folder, save, noise
) -> None:
    kept(case, folder)
    before = os.stat(case["image"])
    save("image.nii", noise(2))
    os.utime(case["image"], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(case["image"]).st_size == before.st_size
    assert_equal(kept(case, folder), Compose(scaled())(case))
    assert Count.passed == 3


def test_another_setting_or_another_case_is_preprocessed_anew(case, folder, tmp_path) -> None:
    kept(case, folder)
    assert_equal(kept(case, folder, scaled(50.0)), Compose(scaled(50.0))(case))
    # Elsewhere: what is known of a case by its path, such as who has annotated what, may differ.
    moved = {**case, "label": shutil.copy(case["label"], tmp_path / "other.nii")}
    assert_equal(kept(moved, folder), Compose(scaled())(moved))
    assert Count.passed == 5


@pytest.mark.parametrize("damage", ["short", "bit", "text"])
def test_a_damaged_file_is_made_anew(case, folder, damage, caplog) -> None:
    # A copy: what is damaged here is mapped.
    first = {key: volume.clone() for key, volume in kept(case, folder).items()}
    (file,) = folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes({"short": content[:-9], "bit": content, "text": b"no volumes"}[damage])
    assert_equal(kept(case, folder), first)
    assert f"{file} is damaged and is made anew." in caplog.text
    kept(case, folder)
    assert Count.passed == 2


def test_of_several_that_begin_at_once_one_preprocesses(case, folder) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: kept(case, folder), range(8)))
    assert Count.passed == 1
    for other in found[1:]:
        assert_equal(other, found[0])


def test_where_nothing_can_be_written_nothing_is_kept_and_the_log_says_so(case, tmp_path, caplog) -> None:
    (tmp_path / "file").touch()
    assert_equal(kept(case, tmp_path / "file"), Compose(scaled())(case))
    assert f"Preprocessed volumes are not kept in {tmp_path / 'file'}: " in caplog.text


def test_a_transform_that_has_no_name_is_not_taken_for_another(case, folder, caplog) -> None:
    transforms = [*scaled(), Lambdad("image", lambda x: x + 1)]
    assert_equal(kept(case, folder, transforms), Compose(transforms)(case))
    assert "are not kept, because a transform of them has no fixed name" in caplog.text
    assert not folder.exists()
