"""What a user gets for each of many bad inputs, word for word: argument, contract, what came, way out."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

Damage = Callable[[Path], None]


@pytest.fixture
def failure(workflow, edited_phantom, phantom, tmp_path, capsys, monkeypatch) -> Callable[..., str]:
    """Runs configs as ``python -m monai.bundle run`` does, and returns what stands on stderr at the end."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def fail(*configs: str, damage: Damage | None = None, **settings: object) -> str:
        output, folder = tmp_path / "out", phantom
        output.mkdir(exist_ok=True)
        if damage is not None:
            folder = edited_phantom()
            damage(folder)
        # Paths below the data set and below the output folder are written as such in the table.
        places = {"DATA": str(folder), "OUT": str(output)}
        settings = {name: _filled(value, places) for name, value in settings.items()}
        if configs == ("inference",):
            settings = {"kind": "infer", "model_file": str(output / "models/model.pt"), **settings}
        before = _files(output)
        built = workflow(*configs, **{"dataset_dir": str(folder), "output_dir": str(output), **settings})
        text = _text(built, capsys)
        # What was there is unchanged, and nothing is there that looks like a result.
        after = _files(output)
        assert {name: after.get(name) for name in before} == before
        assert {Path(name).parts[0] for name in after.keys() - before.keys()} <= {"logs", "events", "evaluation"}
        for place, path in places.items():
            text = text.replace(path, place)
        return text

    return fail


def _text(built: ConfigWorkflow, capsys: pytest.CaptureFixture) -> str:
    try:
        built.initialize()
        built.run()
    except Exception as error:
        capsys.readouterr()
        sys.excepthook(type(error), error, error.__traceback__)
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        return printed.partition("\nLog: ")[0].strip()
    return "NOTHING"


def _filled(value: Any, places: dict[str, str]) -> Any:
    for place, path in places.items():
        value = value.replace(place, path) if isinstance(value, str) else value
    return value


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(**entries: object) -> Damage:
    """Other entries in ``dataset.json``."""

    def damage(folder: Path) -> None:
        file = folder / "dataset.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))

    return damage


def written(text: str) -> Damage:
    """Another text as ``dataset.json``."""
    return lambda folder: (folder / "dataset.json").write_text(text)


def image(change: Callable[[np.ndarray], np.ndarray], name: str = "images/phantom_001.nii", **header: Any) -> Damage:
    """A volume with other voxels or another affine."""

    def damage(folder: Path) -> None:
        volume = nib.load(folder / name)
        affine = header.get("affine", volume.affine)
        nib.save(nib.Nifti1Image(change(np.array(volume.dataobj)), affine), folder / name)

    return damage


def same(array: np.ndarray) -> np.ndarray:
    return array


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[:2] = np.nan
    return array


LABEL = "labels/phantom_001.nii"
LIST = "dataset.json  cannot be used: "

# Settings, damage, and the line of the table that the check prints.
DATA = {
    "no data set": (
        {"dataset_dir": "OUT/nowhere"},
        None,
        f"{LIST}dataset_dir must hold a datalist dataset.json, got OUT/nowhere. It lists",
    ),
    "data set that is a file": (
        {"dataset_dir": "DATA/dataset.json"},
        None,
        f"{LIST}dataset_dir must hold a datalist dataset.json, got DATA/dataset.json. It lists",
    ),
    "no JSON": (
        {},
        written("{"),
        f"{LIST}DATA/dataset.json must be JSON, got an error at line 1: Expecting property name",
    ),
    "no UTF-8": (
        {},
        lambda folder: (folder / "dataset.json").write_bytes(b'{"labels": "\xff"}'),
        f"{LIST}DATA/dataset.json must be JSON in UTF-8, got an error at byte 12.",
    ),
    "JSON of a list": (
        {},
        written("[]"),
        f"{LIST}DATA/dataset.json must hold an object with labels and training, got a list.",
    ),
    "no labels": ({}, listed(labels={}), f"{LIST}DATA/dataset.json must have entries under labels, got none."),
    "labels with a gap": (
        {},
        listed(labels={"0": "background", "2": "liver"}),
        f"{LIST}`labels` of DATA/dataset.json must name the values 0 (background), 1, 2, ..., got [0, 2].",
    ),
    "labels that are no names": (
        {},
        listed(labels=["background", 7]),
        f"{LIST}`labels` of DATA/dataset.json must be names, got ['background', 7].",
    ),
    "no training cases": (
        {},
        listed(training=[]),
        "dataset.json  lists no labeled cases. List labeled cases under `training`; scans alone can be learned from in "
        "a federation only.",
    ),
    "training that is no list": (
        {},
        listed(training={"image": "a"}),
        f"{LIST}`training` of DATA/dataset.json must be a list of cases, got a dict.",
    ),
    "case without an image": (
        {},
        listed(training=[{"label": "a"}]),
        f"{LIST}Each case under `training` must have image and label, got {{'label': 'a'}} without image.",
    ),
    "case without a label": (
        {},
        listed(training=["images/phantom_001.nii"]),
        "images/phantom_001.nii  has no label under `training`. Name one, or list it under `unlabeled`.",
    ),
    "case outside of the folder": (
        {},
        listed(unlabeled=["/etc/passwd"]),
        f"{LIST}`unlabeled` of DATA/dataset.json must name files in its folder, got /etc/passwd. If you trust the "
        "list, set allow_outside.",
    ),
    "missing image": (
        {},
        lambda folder: (folder / "images/phantom_003.nii").unlink(),
        "images/phantom_003.nii  does not exist. Put the file there, or take the case out of the list.",
    ),
    "image cut short": (
        {},
        lambda folder: os.truncate(folder / "images/phantom_001.nii", 9000),
        "images/phantom_001.nii  is cut short, 9000 of 89952 bytes. Copy or export it anew.",
    ),
    "image that is a text": (
        {},
        lambda folder: (folder / "images/phantom_001.nii").write_text("no image"),
        "images/phantom_001.nii  is not NIfTI, whatever its name. Convert it to NIfTI.",
    ),
    "image of two volumes": (
        {},
        image(lambda array: np.stack([array, array], -1)),
        "images/phantom_001.nii  has the shape 40 x 40 x 28 x 2. Split it: each file must be one volume of three "
        "axes. Channels go into a file each.",
    ),
    "image with NaN": (
        {},
        image(with_nan),
        "images/phantom_001.nii  has 2240 voxels that are NaN or infinite. Export it anew, or replace them.",
    ),
    "constant image": (
        {},
        image(np.zeros_like),
        "images/phantom_001.nii  is 0 everywhere. Export it anew, or take the case out.",
    ),
    "absurd spacing": (
        {},
        image(same, affine=np.diag([800.0, 800.0, 800.0, 1.0])),
        "images/phantom_001.nii  has voxels of 800 x 800 x 800 mm. Write their size in mm into its header.",
    ),
    "label of another shape": (
        {},
        image(lambda array: array[1:], LABEL),
        "labels/phantom_001.nii  has 39 x 40 x 28 voxels and its image 40 x 40 x 28. Export the label on the grid "
        "of its image.",
    ),
    "label beside its image": (
        {},
        image(same, LABEL, affine=np.diag([8.0, 8.0, 10.0, 1.0])),
        "labels/phantom_001.nii  lies up to 882 mm off its image. Export the label on the grid of its image.",
    ),
    "label of no class": (
        {},
        image(lambda array: array + np.uint8(9), LABEL),
        "labels/phantom_001.nii  has 3456 voxels of no class, from 14 to 22. Only the whole numbers 0 to 13 have a "
        "name in the datalist.",
    ),
    "test case that was trained on": (
        {},
        listed(test=[{"image": "images/phantom_001.nii", "label": LABEL}]),
        "images/phantom_001.nii  is, under `test`, the same volume as images/phantom_001.nii under `training`",
    ),
}

SETTINGS = {
    "output folder that is a file": (
        {"output_dir": "DATA/dataset.json"},
        "Error: output_dir must be a folder that can be written to, got DATA/dataset.json (Not a directory). Pass "
        "another by --output_dir.",
    ),
    "no epochs": ({"epochs": 0}, "Error: epochs must be a whole number >= 1, got 0."),
    "epochs in words": ({"epochs": "ten"}, "Error: epochs must be a whole number >= 1, got 'ten'."),
    "half a step": ({"steps_per_epoch": 2.5}, "Error: steps_per_epoch must be a whole number >= 1, got 2.5."),
    "no batch": ({"labeled_batch_size": 0}, "Error: labeled_batch_size must be a whole number >= 1, got 0."),
    "validation every 0 epochs": ({"val_interval": 0}, "Error: val_interval must be a whole number >= 1, got 0."),
    "device that is not there": ({"device": "cuda:99"}, "Error: device must be one of this machine, got cuda:99 ("),
    "unknown rule of scoring": (
        {"report#rules": ["best"]},
        "Error: score rule must be one of sound, published, galoss, got 'best'.",
    ),
    "patch of two axes": ({"patch_size": [32, 32]}, "Error: patch_size must have three numbers above 0, got [32, 32]."),
    "patch of which one voxel is left": (
        {"patch_size": [16, 16, 16]},
        "Error: patch_size must be one that the network can be trained on, got [16, 16, 16]: its strides leave a "
        "feature map of one voxel, which cannot be normalized. Double a side.",
    ),
    "spacing of two axes": ({"spacing_mm": [8.0, 8.0]}, "Error: spacing_mm must have three numbers, got [8.0, 8.0]."),
    "learning rate below 0": ({"learning_rate": -1}, "Error at optimizer: Invalid learning rate: -1 (ValueError)"),
    "patch that strides do not divide": (
        {"patch_size": [30, 30, 15]},
        "Error: patch_size must be one that the network can be trained on, got [30, 30, 15]: sides of x must be "
        "multiples of [16, 16, 16], got [30, 30, 15].",
    ),
    "threshold above 1": (
        {"pseudo_labeler#threshold": 2},
        "Error at pseudo_labeler: floor and threshold must be 0 <= floor <= threshold <= 1, got 0.5 and 2.",
    ),
    "alignment below 0": ({"alignment": -1}, "Error at pseudo_labeler: alignment must be >= 0, got -1."),
    "decay of 1.5": ({"ema_teacher#decay": 1.5}, "Error at ema_teacher: decay must be in [0, 1), got 1.5."),
    "warm-up of 2": (
        {"warm_up": 2},
        "Error at train::handlers::2: warm_up and ramp_up must be shares of the run in [0, 1], got 2 and 0.0.",
    ),
    "unknown reaction to a bad loss": (
        {"on_bad_loss": "ignore"},
        "Error at train::handlers::3: on_bad_loss must be 'skip' or 'stop', got 'ignore'.",
    ),
    "patience of 0": ({"patience": 0}, "Error at train::handlers::7: patience must be >= 1 or None, got 0."),
    "boxes larger than the patch": (
        {"mix#box_fraction": [0.5, 2]},
        "Error at mix: box_fraction must be two numbers 0 < least <= greatest <= 1, got (0.5, 2). Pass the same "
        "number twice for boxes of one size.",
    ),
    "unknown direction": (
        {"mix#directions": {"up": 1}},
        "Error at mix: directions must map some of labeled_to_unlabeled, unlabeled_to_labeled, labeled_to_labeled, "
        "unlabeled_to_unlabeled to frequencies >= 0, got {'up': 1}. Pass None for all of them, equally frequent.",
    ),
    "unknown module": (
        {"distiller#modules": ["decoder.99"]},
        "Error at distiller: modules must name modules of VNet (stem, ",
    ),
    "unknown argument": (
        {"network_def#filters": 4},
        "Error at network_def: VNet.__init__() got an unexpected keyword argument 'filters'",
    ),
    "unknown teacher": (
        {"teacher#model_name": "vit_small"},
        "Error at teacher: model_name must be a ViT or ConvNeXt of timm, with or without the tag of its weights, got "
        "'vit_small'. ",
    ),
    "layer that the teacher lacks": (
        {"teacher#layer": 12},
        "Error at teacher: layer must be an index from 0 to 5 of test_vit, or None for the last one, or of a ViT "
        "several in ascending order, got 12.",
    ),
    "deviation of 0": (
        {"teacher#image_std": [0, 1, 1]},
        "Error at teacher: image_std must be three finite numbers > 0 or None, got [0, 1, 1].",
    ),
    "cells of two axes": (
        {"token_cell": [4, 4]},
        "Error at token_cache: cell must be three numbers of voxels >= 1, got (4, 4).",
    ),
    "unknown plane": (
        {"token_cache#planes": ["oblique"]},
        "Error at token_cache: planes must be one or more of axial, coronal, sagittal, each once, got ('oblique',).",
    ),
}


class Command:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def text_file(path: Path) -> None:
    path.write_text("no tensors")


def huge(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([5e5, 5e5, 5e5, 1])), path)


def with_code(path: Path) -> None:
    torch.save({"network": Command(path.with_name("made"))}, path)


def of_tensors(**names: Any) -> Callable[[Path], None]:
    return lambda path: torch.save({name.replace("__", "."): value for name, value in names.items()}, path)


def fitting(path: Path) -> None:
    parser = ConfigParser()
    parser.read_config(Path(__file__).parents[2] / "bundle/configs/inference.json")
    parser.update({"network_def#n_filters": 4, "num_classes": 14})
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)


STATE, MODEL = "models/last/state.pt", "models/model.pt"
DAMAGED = "which is damaged, incomplete or holds something else ("
A_STATE, A_MODEL = "path must be the state of a run", "model_file must be the weights of a trained model"

# Configs, settings, what is at a path in the output folder, and the message.
FILES = {
    "resuming nothing": (
        ("train", "resume"),
        {},
        {},
        f"Error at resume_handler: {A_STATE}, got OUT/{STATE}, which does not exist. Train first.",
    ),
    "damaged state": (
        ("train", "resume"),
        {},
        {STATE: text_file},
        f"Error: {A_STATE}, got OUT/{STATE}, {DAMAGED}BadZipFile).",
    ),
    "state with code": (
        ("train", "resume"),
        {},
        {STATE: with_code},
        f"Error: {A_STATE}, got OUT/{STATE}, {DAMAGED}UnpicklingError).",
    ),
    "state that is a model": (
        ("train", "resume"),
        {},
        {STATE: of_tensors(stem__weight=torch.zeros(1))},
        f"Error: The run in OUT/{STATE} had the teacher None, and now it is ",
    ),
    "beginning with a text": (
        ("train", "finetune"),
        {"start_file": "OUT/a.pt"},
        {"a.pt": text_file},
        f"Error at started_network: start_file must be the weights of a trained model, got OUT/a.pt, {DAMAGED}",
    ),
    "beginning with a state": (
        ("train", "finetune"),
        {"start_file": "OUT/a.pt"},
        {"a.pt": of_tensors(network={"a": torch.zeros(1)})},
        "Error at started_network: start_file must be the weights of a trained model, got OUT/a.pt with something else "
        "than tensors. The model of a training is models/model.pt in its output_dir.",
    ),
    "missing teacher": (
        ("train",),
        {"teacher#model_name": "vit_small_patch16_dinov3", "teacher_weights": "OUT/no.pth"},
        {},
        "Error at teacher: weights must be 'auto', 'none' or an existing file, got OUT/no.pth. Weights of "
        "vit_small_patch16_dinov3 come from https://huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m and, ",
    ),
    "teacher of another kind": (
        ("train",),
        {"teacher_weights": "OUT/a.txt"},
        {"a.txt": text_file},
        "Error at teacher: weights must end in one of .pth, .pt, .bin, .safetensors, got OUT/a.txt.",
    ),
    "damaged teacher": (
        ("train",),
        {"teacher_weights": "OUT/a.pth"},
        {"a.pth": text_file},
        f"Error at teacher: weights must be a file of tensors, got OUT/a.pth, {DAMAGED}",
    ),
    "teacher with code": (
        ("train",),
        {"teacher_weights": "OUT/a.pth"},
        {"a.pth": with_code},
        f"Error at teacher: weights must be a file of tensors, got OUT/a.pth, {DAMAGED}UnpicklingError).",
    ),
    "teacher that is no ViT": (
        ("train",),
        {"teacher_weights": "OUT/a.pth"},
        {"a.pth": of_tensors(fc=torch.zeros(1))},
        "Error at teacher: weights must be a ViT or a ConvNeXt under timm's names, DINOv3 or DINOv2 under Meta's, or "
        "DINOv2 under those of transformers, got OUT/a.pth with fc.",
    ),
    "evaluating nothing": (
        ("train", "evaluate"),
        {},
        {},
        f"Error: {A_MODEL}, got OUT/{MODEL}, which does not exist. Train first, or pass model_file",
    ),
    "evaluating a damaged model": (
        ("train", "evaluate"),
        {},
        {MODEL: text_file},
        f"Error: {A_MODEL}, got OUT/{MODEL}, {DAMAGED}BadZipFile).",
    ),
    "inferring with nothing": (("inference",), {}, {}, f"Error: {A_MODEL}, got OUT/{MODEL}, which does not exist."),
    "inferring with code": (
        ("inference",),
        {},
        {MODEL: with_code},
        f"Error: {A_MODEL}, got OUT/{MODEL}, {DAMAGED}UnpicklingError).",
    ),
    "inferring with a state": (
        ("inference",),
        {},
        {MODEL: of_tensors(network={"a": torch.zeros(1)})},
        f"Error: {A_MODEL}, got OUT/{MODEL} with something else than tensors.",
    ),
    "inferring with another network": (
        ("inference",),
        {"dataset_dir": "DATA/images"},
        {MODEL: of_tensors(a=torch.zeros(1))},
        f"Error: model_file must be the weights of the configured network, got OUT/{MODEL}, of which a has the "
        "shape (1,) and not None. Pass the overlay",
    ),
    "inferring with damaged names": (
        ("inference",),
        {"dataset_dir": "DATA/images"},
        {MODEL: of_tensors(a=torch.zeros(1)), "models/labels.json": text_file},
        'Error at class_names: OUT/models/labels.json must name the classes as {"0": "background", "1": ...}, got '
        "something else.",
    ),
    "inferring without images": (
        ("inference",),
        {"dataset_dir": "OUT/models"},
        {MODEL: fitting},
        "Error: dataset_dir must be a NIfTI file (.nii, .nii.gz) or a folder with such files, got "
        "OUT/models with model.pt.",
    ),
    "inferring with voxels of half a kilometer": (
        ("inference",),
        {"dataset_dir": "OUT/a.nii"},
        {MODEL: fitting, "a.nii": huge},
        "Error at dataset::data: Volumes must be NIfTI of one volume, got OUT/a.nii, which has voxels of 500000 x "
        "500000 x 500000 mm. Write their size in mm into its header.",
    ),
    "inferring a text": (
        ("inference",),
        {"dataset_dir": "OUT/a.nii"},
        {MODEL: fitting, "a.nii": text_file},
        "Error at dataset::data: Volumes must be NIfTI of one volume, got OUT/a.nii, which is not NIfTI, whatever "
        "its name. Convert it to NIfTI.",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_data(failure, name):
    settings, damage, expected = DATA[name]
    title, *table = failure("train", damage=damage, **settings).splitlines()
    folder = settings.get("dataset_dir", "DATA")
    # Nothing begins without a list.
    way_out = "" if expected.startswith(LIST) else " With `check_data` off, the run begins regardless."
    assert title == f"Error: dataset_dir must hold a data set without errors, got {folder}.{way_out}"
    # Columns are as wide as their widest cell.
    found = [re.sub(r"  +", "  ", line) for line in table]
    assert any(line.startswith(f"error  {expected}") for line in found), found


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(failure, name):
    settings, expected = SETTINGS[name]
    found = failure("train", **settings)
    # What is cut off here is a list of what there is, or what a library says.
    assert found == expected if expected.endswith((".", ")")) else found.startswith(expected), found


@pytest.mark.parametrize("name", FILES)
def test_files(failure, tmp_path, name):
    configs, settings, files, expected = FILES[name]
    for path, write in files.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "out" / path)
    assert failure(*configs, **settings).startswith(expected)
    assert not list(tmp_path.rglob("made"))
