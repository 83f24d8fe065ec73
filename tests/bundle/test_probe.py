from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.__main__ import probe
from dinomix_monai.bundle import Bundle
from dinomix_monai.data import read_datalist
from dinomix_monai.probe import DatasetProbe, probe_dataset
from tests.toys import TOY, make_toy_phantom

CONFIG = str(Bundle.find().configs / "train.json")
QUICK = {"layers": [2], "cells": [[2, 2, 2]]}
SMALL = {"spacing_mm": TOY["spacing_mm"], "device": "cpu"}
TEACHER = "test_vit"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_phantom(tmp_path_factory.mktemp("data"), (2, 1, 1, 1))


@pytest.fixture(scope="module")
def parser(phantom: Path) -> Callable:
    def build(**settings: object) -> object:
        given = {"dataset_dir": str(phantom), "teacher#model_name": TEACHER, "teacher_weights": "none"}
        return Bundle.find().parser("train", **{**given, **SMALL, **settings})

    return build


@pytest.fixture(scope="module")
def quick(parser: Callable) -> DatasetProbe:
    return probe_dataset(parser(), **QUICK)


def test_the_view_with_the_highest_cross_validated_mean_is_chosen(parser) -> None:
    found = probe_dataset(parser(), layers=[0, 2], cells=[[2, 2, 2], [4, 4, 2]])
    means = {view: np.nanmean(dice) for view, dice in found.views.items()}
    assert [(view.layer, view.cell) for view in means] == [(n, (side, side, 2)) for side in (2, 4) for n in (0, 2)]
    assert means[found.chosen] == max(means.values())
    assert found.probe.cell == found.chosen.cell
    assert found.probe.slice_tokens.teacher.layer == found.chosen.layer
    assert re.search(r"layer +voxels of a token +mean\n0 +2 x 2 x 2 +0\.\d{3}", str(found))
    assert re.search(r"For a training: --teacher#layer [02] --report#probe#cell '\[[24],[24],2\]'", str(found))


def test_an_untrained_teacher_is_one_column_beside_the_intensities(quick) -> None:
    assert list(quick.table.dice) == ["teacher", "intensities"]
    assert "liver" in str(quick)
    assert "UNTRAINED" in str(quick)


def test_a_single_labeled_scan_chooses_nothing(parser, caplog) -> None:
    found = probe_dataset(parser(), **QUICK, max_scans=1)
    assert found.views == {}
    assert "There is a single labeled patient" in caplog.text
    assert "Cross-validation" not in str(found)


def test_the_command_draws_and_proposes_label_maps_on_the_grid_of_each_scan(phantom, tmp_path, capsys) -> None:
    folders = {"out_dir": str(tmp_path / "pictures"), "proposals": str(tmp_path / "proposals")}
    probe(str(phantom), TEACHER, "none", config_file=CONFIG, **SMALL, **QUICK, **folders)
    printed = capsys.readouterr().out
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert f"3 label maps in {tmp_path / 'proposals'}" in printed
    datalist = read_datalist(phantom)
    for case in (*datalist.unlabeled, *datalist.validation, *datalist.test):
        image = nib.load(case["image"])
        name = Path(case["image"]).name.removesuffix(".gz").removesuffix(".nii")
        label = nib.load(tmp_path / "proposals" / f"{name}_seg.nii.gz")
        assert label.shape == image.shape
        np.testing.assert_array_equal(label.affine, image.affine)
        assert np.asarray(label.dataobj).max() <= 13


def test_proposals_lie_where_the_organs_are(quick, phantom, tmp_path) -> None:
    # Of the scan that the probe was fitted on: an untrained teacher knows little, but a position is a position.
    case = read_datalist(phantom).training[0]
    scan = tmp_path / "scan.nii"
    turned = nib.as_closest_canonical(nib.load(case["image"])).as_reoriented([[1, -1], [0, 1], [2, -1]])
    nib.save(turned, scan)
    assert list(quick.propose([{"image": str(scan)}], tmp_path)) == [scan]
    proposal = nib.load(tmp_path / "scan_seg.nii.gz")
    np.testing.assert_allclose(proposal.affine, turned.affine)
    labels = [nib.as_closest_canonical(volume) for volume in (proposal, nib.load(case["label"]))]
    both = [np.asarray(volume.dataobj) == 6 for volume in labels]  # the liver
    assert 2 * (both[0] & both[1]).sum() / (both[0].sum() + both[1].sum()) > 0.4


def test_numbers_below_1_are_refused(parser) -> None:
    with pytest.raises(ValueError, match=r"max_scans must be >= 1, got 0"):
        probe_dataset(parser(), max_scans=0)


def test_without_a_labeled_scan_there_is_nothing_to_fit(parser, phantom, tmp_path) -> None:
    folder = tmp_path / "unlabeled"
    shutil.copytree(phantom, folder)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "training": [], "validation": []}))
    with pytest.raises(ValueError, match=r"dataset_dir must have a labeled scan under `training`, .*, got none in "):
        probe_dataset(parser(dataset_dir=str(folder)), **QUICK)
