"""nnU-Net's commands, stand-ins here, are called in order, and their answers are scored."""

from __future__ import annotations

import json
import runpy
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data import make_phantom
from dinomix_monai.metrics import read_scores

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
# Each command writes down how it was called. Training takes 2 s for an epoch, and a prediction is the label map of the
# phantom's patient, but for the liver, which is left out.
COMMAND = """#!{python}
import json, os, sys
from pathlib import Path
import nibabel as nib
import numpy as np

name, options = Path(sys.argv[0]).name, sys.argv[1:]
with open("{log}", "a") as log:
    log.write(json.dumps([name, options, os.environ["BENCHMARK_EPOCHS"], os.environ["BENCHMARK_SEED"]]) + "\\n")
if name == "nnUNetv2_plan_and_preprocess":
    assert (Path(os.environ["nnUNet_raw"]) / "Dataset001_labeled" / "dataset.json").is_file()
if name == "nnUNetv2_train":
    fold = Path(os.environ["nnUNet_results"]) / options[0] / "TimedTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "timing.json").write_text(json.dumps(
        {{"epoch_s": [9.0] + [2.0] * (int(os.environ["BENCHMARK_EPOCHS"]) - 1), "steps": 10}}
    ))
if name == "nnUNetv2_predict":
    source, target = (Path(options[options.index(key) + 1]) for key in ("-i", "-o"))
    target.mkdir()
    label_of = {{
        nib.load(image).get_fdata().tobytes(): Path("{phantom}", "labels", image.name)
        for image in Path("{phantom}", "images").iterdir()
    }}
    for image in source.iterdir():
        label = nib.load(label_of[nib.load(image).get_fdata().tobytes()])
        answer = np.asarray(label.dataobj).copy()
        answer[answer == 6] = 0
        nib.save(nib.Nifti1Image(answer, label.affine), target / image.name.replace("_0000", ""))
"""


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    return make_phantom(tmp_path / "data", cases=(2, 2, 1, 2), size=(24, 24, 16)).parent


@pytest.fixture
def commands(tmp_path: Path, phantom: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    text = COMMAND.format(python=sys.executable, log=tmp_path / "calls", phantom=phantom)
    for name in ("plan_and_preprocess", "train", "predict"):
        file = folder / f"nnUNetv2_{name}"
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.fixture
def main() -> Callable[..., None]:
    return runpy.run_path(str(BENCHMARKS / "nnunet.py"))["main"]


def calls(tmp_path: Path) -> list[tuple[str, list[str], int, int]]:
    lines = map(json.loads, (tmp_path / "calls").read_text().splitlines())
    return [(name.removeprefix("nnUNetv2_"), options, int(epochs), int(seed)) for name, options, epochs, seed in lines]


def test_nnunet_trains_for_the_time_and_is_scored_as_the_bundle_is(
    main: Callable, commands: Path, phantom: Path, tmp_path: Path
) -> None:
    given = {"dataset_dir": str(phantom), "minutes": 2, "output_dir": str(tmp_path / "out"), "seeds": 7}
    main(str(commands), arms="nnunet", spacing_mm=(3, 4, 5), memory_gb=2, **given)
    plan, pilot, training, predict = calls(tmp_path)
    assert plan[0] == "plan_and_preprocess"
    # nnU-Net counts axes from the last one.
    assert plan[1][-5:] == ["5", "4", "3", "-gpu_memory_target", "2"]
    assert (pilot[0], pilot[2], training[0], training[2]) == ("train", 3, "train", 60)
    assert predict[0] == "predict"
    assert {call[3] for call in calls(tmp_path)} == {7}
    run = tmp_path / "out" / "data" / "2min" / "nnunet" / "7"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 600
    assert result["dice"].pop("liver") == 0
    assert set(result["dice"].values()) <= {1.0}
    assert len(read_scores(run / "test", "sound").cases) == 2
    raw = run.parent / "nnunet" / "7" / "raw" / "Dataset001_labeled"
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 3
    assert len(list((raw / "imagesTr").iterdir())) == len(list((raw / "labelsTr").iterdir())) == 3
    (fold,) = json.loads((run.parent / "nnunet" / "7" / "preprocessed" / raw.name / "splits_final.json").read_text())
    assert fold == {"train": ["train_000", "train_001"], "val": ["val_000"]}
    # What is done is not done again.
    main(str(commands), arms="nnunet", **given)
    assert len(calls(tmp_path)) == 4


def test_self_training_labels_all_scans_by_half_of_the_time(
    main: Callable, commands: Path, phantom: Path, tmp_path: Path
) -> None:
    main(str(commands), str(phantom), minutes=2, arms="nnunet_self_training", output_dir=str(tmp_path / "out"))
    done = calls(tmp_path)
    assert [name for name, *_ in done] == [*("plan_and_preprocess", "train", "train", "predict") * 2]
    assert [epochs for name, _, epochs, _ in done if name == "train"] == [3, 30, 3, 30]
    work = tmp_path / "out" / "data" / "2min" / "nnunet_self_training" / "nnunet" / "0"
    second = work / "raw" / "Dataset002_all" / "labelsTr"
    assert len(list(second.iterdir())) == 2 + 2 + 1
    proposed = np.asarray(nib.load(second / "train_002.nii.gz").dataobj)
    assert proposed.any()
    assert 6 not in proposed
    result = json.loads((work.parents[1] / "0" / "result.json").read_text())
    assert result["steps"] == 600


def test_an_arm_that_is_none_is_refused(main: Callable, commands: Path, phantom: Path) -> None:
    with pytest.raises(SystemExit, match="arms must be of nnunet, nnunet_self_training, got nnu"):
        main(str(commands), str(phantom), arms="nnu")
