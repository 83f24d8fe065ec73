from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dinomix_monai.__main__ import next as next_command
from dinomix_monai.bundle import Bundle
from dinomix_monai.selection import next_scans
from tests.toys import make_toy_phantom

CONFIG = str(Bundle.find().configs / "train.json")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One labeled scan and four without labels, of which the last one is a copy of the first one."""
    folder = make_toy_phantom(tmp_path_factory.mktemp("data"), (1, 4, 0, 0))
    shutil.copy(folder / "images" / "phantom_002.nii", folder / "images" / "phantom_005.nii")
    return folder


@pytest.fixture
def edit(phantom: Path, tmp_path: Path) -> Callable[..., Path]:
    """Lists the scans of the phantom otherwise."""

    def write(**sections: object) -> Path:
        content = json.loads((phantom / "dataset.json").read_text())
        shutil.copytree(phantom, tmp_path / "data")
        (tmp_path / "data" / "dataset.json").write_text(json.dumps({**content, **sections}))
        return tmp_path / "data"

    return write


def parser(folder: Path, out: Path, **settings: object) -> object:
    given = {"dataset_dir": str(folder), "output_dir": str(out)}
    return Bundle.find().parser("train", **{**given, **settings})


def test_the_command_prints_unlabeled_scans_with_a_reason_each(phantom, tmp_path, capsys) -> None:
    next_command(str(phantom), 3, config_file=CONFIG, output_dir=str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in lines] == ["1. ", "2. ", "3. "]
    named = [re.fullmatch(r"\d\. (images/phantom_\d+\.nii): (.+)", line) for line in lines]
    assert "images/phantom_001.nii" not in {found[1] for found in named}
    assert len(list((tmp_path / "thumbnails").glob("*.npy"))) == 5


def test_a_copy_never_follows_its_original(phantom, tmp_path) -> None:
    found = next_scans(parser(phantom, tmp_path), count=4)
    assert found[-1].name in {"images/phantom_002.nii", "images/phantom_005.nii"}
    assert "nearly the same as" in found[-1].reason
    assert all("nearly the same" not in scan.reason for scan in found[:-1])


def test_no_label_is_needed(edit, tmp_path) -> None:
    images = [{"image": f"images/phantom_00{number}.nii"} for number in range(1, 6)]
    folder = edit(training=[], unlabeled=images)
    assert len(next_scans(parser(folder, tmp_path), count=9)) == 5


def test_a_data_set_of_labeled_scans_and_counts_below_1_are_refused(edit, phantom, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"count must be >= 1, got 0"):
        next_scans(parser(phantom, tmp_path), count=0)
    folder = edit(unlabeled=[])
    with pytest.raises(ValueError, match=r"dataset_dir must have a scan under `unlabeled` .* got none in "):
        next_scans(parser(folder, tmp_path))
