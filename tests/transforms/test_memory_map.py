from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, RandFlipd, RandSpatialCropd

from dinomix_monai.transforms import MemoryMapd


def volume(dtype=torch.float32):
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    return MetaTensor((100 * torch.rand(1, 16, 12, 8)).to(dtype), affine=affine, meta={"name": "a"})


def mapped(path: Path) -> int:
    """How many files of a folder this process has mapped."""
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_it_leaves_everything_as_it_is(tmp_path):
    sample = {"image": volume(), "label": volume(torch.uint8), "plain": torch.rand(3, 4, 5).movedim(0, -1), "name": "a"}
    result = MemoryMapd(["image", "label", "plain", "missing"], tmp_path / "new", allow_missing_keys=True)(sample)
    assert result.keys() == sample.keys()
    for key in ("image", "label", "plain"):
        assert torch.equal(result[key], sample[key])
        assert (type(result[key]), result[key].dtype) == (type(sample[key]), sample[key].dtype)
    assert torch.equal(result["image"].affine, sample["image"].affine)
    assert result["image"].meta["name"] == "a"


def test_volumes_lie_in_files_that_have_no_name_any_more(tmp_path):
    result = MemoryMapd("image", tmp_path)({"image": volume()})
    assert mapped(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    del result
    assert mapped(tmp_path) == 0


def test_writing_to_one_does_not_reach_the_memory_of_the_other(tmp_path):
    first = volume()
    result = MemoryMapd("image", tmp_path)({"image": first})["image"]
    result += 1
    assert torch.equal(result, first + 1)


def test_a_cache_of_them_gives_the_same_patches(tmp_path):
    data = [{"image": volume()} for _ in range(3)]

    def cache(*first):
        crop = RandSpatialCropd("image", (8, 8, 8), random_size=False)
        transform = Compose([*first, crop, RandFlipd("image", prob=0.5)]).set_random_state(0)
        return CacheDataset(data, transform, progress=False, copy_cache=False)

    plain, on_disk = cache(), cache(MemoryMapd("image", tmp_path))
    assert mapped(tmp_path) == len(data)
    for index in (0, 1, 2, 1):
        np.testing.assert_array_equal(plain[index]["image"], on_disk[index]["image"])


FREES_BETWEEN_VOLUMES = """
import sys
from pathlib import Path
import numpy as np
import torch
from dinomix_monai.transforms import MemoryMapd

def own_mb():
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

np.ones(24 * 2**20, np.uint8)  # From now on blocks of up to this size are kept when they are freed.
before = own_mb()
volumes = [(np.ones(2**20, np.uint8), np.ones(5000, np.uint8)) for _ in range(200)]
stays = [small for _, small in volumes]
del volumes
freed = own_mb()
MemoryMapd("image", sys.argv[1])({"image": torch.ones(1, 2, 2, 2)})
print(freed - before, own_mb() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps what was freed")
def test_memory_that_earlier_volumes_have_freed_goes_back_to_the_system(tmp_path):
    # In a process of its own, because what others have done to the heap decides what it keeps.
    command = [sys.executable, "-c", FREES_BETWEEN_VOLUMES, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept_mb, left_mb = map(float, printed.split())
    assert kept_mb > 150
    assert left_mb < 50
