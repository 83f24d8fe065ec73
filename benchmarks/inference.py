"""
What segmenting a scan costs against MONAI's stock way: time, peak memory, and whether the label maps are equal.

    python benchmarks/inference.py
    python benchmarks/inference.py --model_file bundle/models/model.pt --scan scan.nii.gz

The stock way is that of MONAI's own bundles: ``SlidingWindowInferer``, the logits through ``Invertd`` to the grid of
the file, then the argmax; everything else is ``inference.json``'s. Both ways take turns within one process, loading
and saving included, and their medians are compared. Peaks are those of processes that segment the scan once.

Without a model a short supervised training on the phantom makes one, because what an untrained network says is noise;
without a scan it is a patient of the phantom, interpolated to 512 x 512 x 300 voxels.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import open_workflow

SHAPE = (512, 512, 300)
WAYS: dict[str, dict[str, Any]] = {
    "stock": {
        "inferer#_target_": "SlidingWindowInferer",
        "preprocessing#transforms#3#dtype": "$numpy.float64",
        "postprocessing#transforms#0": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "orig_keys": "image",
                    "transform": "@preprocessing",
                    "nearest_interp": False,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            ],
        },
    },
    "this bundle": {},
}


def main(model_file: str | None = None, scan: str | None = None, repetitions: int = 5) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        if model_file is None or scan is None:
            # In a process of its own, because peaks of later ones begin with the size of this one.
            subprocess.run([sys.executable, __file__, "make", folder], check=True, stdout=subprocess.DEVNULL)
        model_file = model_file or f"{folder}/models/model.pt"
        scan = scan or f"{folder}/scan.nii.gz"
        memory = {way: _in_a_process(way, model_file, scan, folder) for way in WAYS}
        medians = _interleaved(model_file, scan, folder, repetitions)
        differing, total = _compare(scan, folder)
    print("| way | time | ratio | peak memory | ratio |\n|---|---|---|---|---|")
    for way, median in medians.items():
        ratios = median / medians["stock"], memory[way] / memory["stock"]
        print(f"| {way} | {median:.1f} s | {ratios[0]:.2f} | {memory[way]:.1f} GB | {ratios[1]:.2f} |")
    print(f"\nLabel maps differ in {differing} of {total} voxels.")


def make(folder: str) -> None:
    """Trains a model for a short while, and makes a scan."""
    from monai.transforms import LoadImage, Resize, SaveImage

    workflow = open_workflow(
        "train",
        "baseline/supervised",
        output_dir=folder,
        dataset_dir=f"{folder}/phantom",
        phantom_dir=f"{folder}/phantom",
        check_data=False,
        epochs=6,
        teacher_weights="none",
    )
    workflow.parser.get_parsed_content("train#trainer").run()
    patient = workflow.parser.get_parsed_content("datalist").test[0]["image"]
    image = Resize(SHAPE, mode="trilinear")(LoadImage(ensure_channel_first=True)(patient))
    SaveImage(folder, "", separate_folder=False, output_dtype="int16", resample=False)(image, filename=f"{folder}/scan")


def peak(way: str, model_file: str, scan: str, folder: str) -> None:
    """Segments the scan once and prints the peak memory of this process in GB."""
    _evaluator(way, model_file, scan, folder).run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)


def _interleaved(model_file: str, scan: str, folder: str, repetitions: int) -> dict[str, float]:
    evaluators = {way: _evaluator(way, model_file, scan, folder) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    # The first round warms up.
    for _ in range(repetitions + 1):
        for way, evaluator in evaluators.items():
            start = time.perf_counter()
            evaluator.run()
            times[way].append(time.perf_counter() - start)
            evaluator.state.output = evaluator.state.batch = None
    return {way: statistics.median(values[1:]) for way, values in times.items()}


def _evaluator(way: str, model_file: str, scan: str, folder: str) -> Any:
    paths = {"model_file": model_file, "dataset_dir": scan, "output_dir": f"{folder}/{way}"}
    workflow = open_workflow("inference", workflow_type="infer", **paths, **WAYS[way])
    return workflow.parser.get_parsed_content("evaluator")


def _compare(scan: str, folder: str) -> tuple[int, int]:
    import nibabel as nib
    import numpy as np

    name = Path(scan).name.replace(".nii", "_seg.nii") + ("" if scan.endswith(".gz") else ".gz")
    a, b = (np.asanyarray(nib.load(Path(folder) / way / name).dataobj) for way in WAYS)
    return int((a != b).sum()), a.size


def _in_a_process(way: str, *arguments: str) -> float:
    command = [sys.executable, __file__, "peak", way, *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    commands = {"make": make, "peak": peak}
    fire.Fire(commands if sys.argv[1:2] and sys.argv[1] in commands else main)
