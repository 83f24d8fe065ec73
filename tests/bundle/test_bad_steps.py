from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch


@pytest.fixture
def spoiled(edited_phantom):
    """The phantom, of which every patch of one labeled image has a voxel that is NaN; and that image."""
    folder = edited_phantom()
    file = folder / json.loads((folder / "dataset.json").read_text())["training"][0]["image"]
    image = nib.load(file)
    values = image.get_fdata(dtype=np.float32)
    values[16:24, 16:24, 12:16] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), file)
    return folder, file


SETTINGS = {
    "check_data": False,
    "distillation_weight": 0.0,
    "labeled_batch_size": 1,
    "steps_per_epoch": 6,
    "warm_up": 0.0,
    "epochs": 1,
}


def test_a_case_with_nan_spoils_nothing_and_is_named(run, spoiled, tmp_path, caplog):
    folder, file = spoiled
    # Batch normalization keeps running means, which a single bad step would spoil for ever.
    trained = run("train", dataset_dir=str(folder), **SETTINGS, **{"network_def#norm": "batch"})
    left_out = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert left_out
    assert all("its supervised loss is nan" in message for message in left_out)
    assert all(f"(cases: {file})" in message for message in left_out)
    assert len(list((tmp_path / "bad_steps").iterdir())) == len(left_out) < 6
    network, labeler, mix = (trained.parser.get_parsed_content(id_) for id_ in ("network", "pseudo_labeler", "mix"))
    kept = [*network.state_dict().values(), *labeler.state_dict().values()]
    kept += [part for labeled in (True, False) for patch in mix.mixer.bank.donors(labeled) for part in patch]
    assert all(torch.isfinite(value).all() for value in kept)
    with (tmp_path / "history.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert all(np.isfinite(float(row[name])) for name in ("loss", "supervised", "unsupervised", "val_mean_dice"))


def test_the_frozen_teacher_goes_on_with_the_other_cases(run, spoiled, tmp_path, caplog):
    folder, file = spoiled
    settings = {
        **SETTINGS,
        "distillation_weight": 0.05,
        "distiller#interval": 1,
        "token_cache#folder": str(tmp_path / "tokens"),
    }
    trained = run("train", dataset_dir=str(folder), **settings)
    assert f"{file} has no teacher tokens, because they are not finite" in caplog.text
    distiller = trained.parser.get_parsed_content("distiller")
    assert all(torch.isfinite(value).all() for value in distiller.state_dict().values())
    with (tmp_path / "history.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert float(row["distillation"]) > 0
    assert (tmp_path / "report" / "teacher.png").is_file()


def test_it_stops_the_run_if_it_shall(run, spoiled):
    folder, file = spoiled
    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        run("train", dataset_dir=str(folder), on_bad_loss="stop", **SETTINGS)
    with pytest.raises(FloatingPointError, match=rf"is left out: its supervised loss is nan.* \(cases: {file}\)"):
        raise caught.value.__cause__
