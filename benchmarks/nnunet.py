r"""
The real nnU-Net v2 on the labeled cases of a data set, supervised and self-trained, scored as the bundle is.

    python3 -m venv NNUNET && NNUNET/bin/pip install nnunetv2
    python benchmarks/nnunet.py --commands NNUNET/bin --dataset_dir DIR --minutes 15 --spacing_mm 3,3,4 --memory_gb 2
    python benchmarks/nnunet.py --commands NNUNET/bin --dataset_dir DIR --minutes 720 --device cuda

nnU-Net has an environment of its own, because it needs other versions of packages that both have. The first comparison
is for two CPU cores and the grid of ``configs/ct_3mm.json``; the second one gives nnU-Net what it plans for itself on
a GPU. Results are laid out as those of ``compare.py``, whose table ``teacher`` lists them when both are given the same
``output_dir``, data set and minutes.

``nnunet`` trains on the labeled cases for the whole time. ``nnunet_self_training`` does so for half of it, labels all
unlabeled scans, and trains anew on both for the other half. Planning, preprocessing and predicting are not counted.
Stages that are done are not repeated.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch

from dinomix_monai.autolabel import Labeled, place_nifti, write_nnunet_raw
from dinomix_monai.core.files import write_json
from dinomix_monai.data import Datalist, dataset_root, open_datalist, relative_name
from dinomix_monai.metrics import CaseScores, score_rule, write_scores
from dinomix_monai.volumes import open_volume

ARMS = ("nnunet", "nnunet_self_training")
CONFIGURATION, TRAINER, FOLD = "3d_fullres", "TimedTrainer", "0"
# A pilot of so many epochs, of which the first warms up.
PILOT_EPOCHS = 3


def main(
    commands: str,
    dataset_dir: str,
    minutes: float = 15.0,
    seeds: int | tuple[int, ...] = (0,),
    arms: str | tuple[str, ...] = ARMS,
    spacing_mm: tuple[float, ...] | None = None,
    memory_gb: float | None = None,
    device: str = "cpu",
    channel: str = "CT",
    datalist: str = "dataset.json",
    allow_outside: bool = True,
    output_dir: str = "benchmarks/results",
) -> None:
    """
    Runs what is missing, and prints the scores of each run.

    Args:
        commands: folder of the commands nnUNetv2_train and the others.
        dataset_dir: folder of the data set.
        minutes: wall time of the training of each run.
        seeds: seeds of the runs of each arm.
        arms: nnunet, nnunet_self_training or both.
        spacing_mm: voxel size along x, y and z; what nnU-Net plans if not given.
        memory_gb: memory that nnU-Net plans for; its own default if not given.
        device: cpu or cuda.
        channel: what nnU-Net calls the intensities and normalizes them by, CT or MRI.
        datalist: name of the list in ``dataset_dir``.
        allow_outside: whether that list may name files elsewhere.
        output_dir: folder of all runs.
    """
    root = dataset_root(dataset_dir)
    cases = open_datalist(dataset_dir, file=datalist, allow_outside=allow_outside)
    chosen = arms.split(",") if isinstance(arms, str) else list(arms)
    if unknown := sorted(set(chosen) - set(ARMS)):
        raise SystemExit(f"arms must be of {', '.join(ARMS)}, got {', '.join(unknown)}.")
    folder = Path(output_dir).absolute() / Path(dataset_dir).resolve().name / f"{minutes:g}min"
    planning = [
        *(["-overwrite_target_spacing", *map(str, reversed(spacing_mm))] if spacing_mm else []),
        *(["-gpu_memory_target", str(memory_gb)] if memory_gb else []),
    ]
    for seed in [seeds] if isinstance(seeds, int) else seeds:
        for arm in chosen:
            run = folder / arm / str(seed)
            if not (run / "result.json").is_file():
                work = folder / arm / "nnunet" / str(seed)
                steps = NnUnet(commands, work, device, channel, planning, seed).run(arm, cases, minutes)
                write_json(run / "result.json", score(cases, root, work / "test", run / "test") | {"steps": steps})
            dice = json.loads((run / "result.json").read_text())["dice"]
            print(f"{arm}, seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in dice.items()))


class NnUnet:
    """
    nnU-Net's commands in a folder that holds its raw, preprocessed and trained files.

    Args:
        commands: folder of the commands.
        folder: where all files go.
        device: cpu or cuda.
        channel: CT or MRI.
        planning: further options of nnUNetv2_plan_and_preprocess.
        seed: of the training.
    """

    def __init__(
        self, commands: str | Path, folder: Path, device: str, channel: str, planning: Sequence[str], seed: int
    ) -> None:
        self.commands = Path(commands).expanduser().absolute()
        self.folder = folder
        self.device = device
        self.channel = channel
        self.planning = planning
        self.seed = seed

    def run(self, arm: str, cases: Datalist, minutes: float) -> int:
        """Trains one arm, and segments the test cases into ``test``; returns the steps of all trainings."""
        images = [case["image"] for case in cases.test]
        training = cases.training
        steps = 0
        if arm == "nnunet_self_training":
            minutes /= 2
            steps += self.train("Dataset001_labeled", training, cases, minutes)
            proposals = self.predict("Dataset001_labeled", [case["image"] for case in cases.unlabeled], "unlabeled")
            training = [
                *training,
                *({"image": case["image"], "label": str(file)} for case, file in zip(cases.unlabeled, proposals)),
            ]
        name = "Dataset002_all" if arm == "nnunet_self_training" else "Dataset001_labeled"
        steps += self.train(name, training, cases, minutes)
        self.predict(name, images, "test")
        return steps

    def train(self, name: str, training: Sequence[Mapping[str, str]], cases: Datalist, minutes: float) -> int:
        """Plans, preprocesses, times a few epochs, and trains as many as fit; returns the steps."""
        preprocessed = self.folder / "preprocessed" / name
        if not (preprocessed / "done").is_file():
            write_raw(self.folder / "raw" / name, training, cases, self.channel)
            dataset = str(int(name[7:10]))
            plan = ["-d", dataset, "-c", CONFIGURATION, "-np", "2", "--verify_dataset_integrity", "--clean"]
            self._call("plan_and_preprocess", *plan, *self.planning)
            fold = {key: [_name(key, place) for place in range(len(listed))] for key, listed in (
                ("train", training), ("val", cases.validation)
            )}  # fmt: skip
            write_json(preprocessed / "splits_final.json", [fold])
            (preprocessed / "done").touch()
        pilot = self._training(name, "pilot", PILOT_EPOCHS)
        trained = self._training(name, "results", max(2, round(60 * minutes / min(pilot["epoch_s"][1:]))))
        return len(trained["epoch_s"]) * trained["steps"]

    def predict(self, name: str, images: Sequence[str], target: str) -> list[Path]:
        """Segments scans by the trained model; returns a label map of each."""
        source, folder = self.folder / f"{target}_images", self.folder / target
        for place, image in enumerate(images):
            place_nifti(Path(image), source / f"{_name('test', place)}_0000.nii.gz")
        plain = ["-tr", TRAINER, "-c", CONFIGURATION, "-f", FOLD, "-device", self.device, "-npp", "1", "-nps", "1"]
        self._call("predict", "-i", source, "-o", folder, "-d", name, *plain, "--continue_prediction")
        return [folder / f"{_name('test', place)}.nii.gz" for place in range(len(images))]

    def _training(self, name: str, results: str, epochs: int) -> dict:
        found = self.folder / results / name / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}" / f"fold_{FOLD}"
        if not (found / "timing.json").is_file():
            environment = {"nnUNet_results": self.folder / results, "BENCHMARK_EPOCHS": epochs}
            self._call("train", name, CONFIGURATION, FOLD, "-tr", TRAINER, "-device", self.device, **environment)
        return json.loads((found / "timing.json").read_text())

    def _call(self, command: str, *options: str | Path, **environment: str | Path | int) -> None:
        folders = {f"nnUNet_{name}": self.folder / name for name in ("raw", "preprocessed", "results")}
        trainer = {"nnUNet_extTrainer": Path(__file__).parent / "nnunet_trainer", "BENCHMARK_SEED": self.seed}
        # nnU-Net builds its trainer anew to predict.
        given = {"BENCHMARK_EPOCHS": PILOT_EPOCHS, **folders, **trainer, **environment}
        line = [str(self.commands / f"nnUNetv2_{command}"), *map(str, options)]
        subprocess.run(line, check=True, env={**os.environ, **{name: str(value) for name, value in given.items()}})


def write_raw(folder: Path, training: Sequence[Mapping[str, str]], cases: Datalist, channel: str) -> None:
    """Writes a raw data set of nnU-Net v2: training cases, and the validation cases that its fold 0 leaves out."""
    scans = [
        Labeled(_name(key, place), Path(case["image"]), Path(case["label"]))
        for key, section in (("train", training), ("val", cases.validation))
        for place, case in enumerate(section)
    ]
    for _ in write_nnunet_raw(folder, scans, cases.class_names, channels=[channel]):
        pass


def score(cases: Datalist, root: Path, predictions: Path, folder: Path) -> dict:
    """Scores label maps of the test cases by the sound rule; writes ``metrics.csv`` and returns Dice by class."""
    scores = CaseScores(cases.class_names, score_rule("sound"))
    for place, case in enumerate(cases.test):
        label = open_volume(case["label"])
        maps = [label, open_volume(predictions / f"{_name('test', place)}.nii.gz")]
        prediction, truth = (torch.from_numpy(np.asanyarray(one.dataobj)[None].astype(np.int16)) for one in maps[::-1])
        name = relative_name(case["image"], root)
        scores.add(name, prediction, truth, nib.affines.voxel_sizes(label.affine).tolist())
    write_scores(folder, [scores])
    return {
        "split": "test",
        "dice": dict(zip(cases.class_names[1:], scores.mean()[0].tolist())),
        "voxels": dict(zip(cases.class_names[1:], cases.training_voxels[1:])),
    }


def _name(section: str, place: int) -> str:
    return f"{section}_{place:03}"


if __name__ == "__main__":
    fire.Fire(main)
