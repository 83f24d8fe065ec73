"""
What segmenting a scan costs against MONAI's stock way: time, peak memory, and whether the label maps are equal.

    python benchmarks/inference.py
    python benchmarks/inference.py --model_file bundle/models/model.pt --scan scan.nii.gz

The stock way is that of MONAI's own bundles: ``SlidingWindowInferer``, the logits through ``Invertd`` to the grid of
the file, then the argmax; everything else is ``inference.json``'s, in single precision. Beside it stands the bundle's
own way, in single precision and, where that is its default, in half. The ways take turns within one process, loading
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import ROOT, open_workflow

SHAPE = (512, 512, 300)
STOCK = str(ROOT / "benchmarks" / "configs" / "stock_inference.json")
WAYS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "stock": (["inference", STOCK], {}),
    "this bundle": (["inference"], {"amp": False}),
    "in half precision": (["inference"], {"amp": True}),
}
"""Configs and settings of each."""


def main(model_file: str | None = None, scan: str | None = None, repetitions: int = 5) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        if model_file is None or scan is None:
            # In a process of its own, because peaks of later ones begin with the size of this one.
            subprocess.run([sys.executable, __file__, "make", folder], check=True, stdout=subprocess.DEVNULL)
        model_file = model_file or f"{folder}/models/model.pt"
        scan = scan or f"{folder}/scan.nii.gz"
        ways = list(WAYS) if _half_pays() else list(WAYS)[:2]
        memory = {way: _in_a_process(way, model_file, scan, folder) for way in ways}
        medians = _interleaved(ways, model_file, scan, folder, repetitions)
        differences = {way: _share_that_differs(way, scan, folder) for way in ways}
    print("| way | time | ratio | peak memory | ratio | voxels that differ |\n|---|---|---|---|---|---|")
    for way, median in medians.items():
        ratios = median / medians["stock"], memory[way] / memory["stock"]
        figures = f"{median:.1f} s | {ratios[0]:.2f} | {memory[way]:.1f} GB | {ratios[1]:.2f}"
        print(f"| {way} | {figures} | {1e6 * differences[way]:.2f} in a million |")


def make(folder: str) -> None:
    """Trains a model for a short while, and makes a scan."""
    from monai.transforms import LoadImage, Resize, SaveImage

    workflow = open_workflow(
        "train",
        "baseline/supervised",
        output_dir=folder,
        dataset_dir=f"{folder}/phantom",
        **{"datalist#phantom_dir": f"{folder}/phantom"},
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
    open_evaluator(way, model_file, scan, folder).run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)


def _half_pays() -> bool:
    # In a process of its own, as above.
    code = (
        "import dinomix_monai.core.precision, torch; device = 'cuda' if torch.cuda.is_available() else 'cpu'; "
        "print(dinomix_monai.core.precision.has_half_precision(device))"
    )
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "True\n"


def _interleaved(ways: Sequence[str], model_file: str, scan: str, folder: str, repetitions: int) -> dict[str, float]:
    evaluators = {way: open_evaluator(way, model_file, scan, folder) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    # The first round warms up.
    for _ in range(repetitions + 1):
        for way, evaluator in evaluators.items():
            start = time.perf_counter()
            evaluator.run()
            times[way].append(time.perf_counter() - start)
            evaluator.state.output = evaluator.state.batch = None
    return {way: statistics.median(values[1:]) for way, values in times.items()}


def open_evaluator(way: str, model_file: str, scan: str, folder: str) -> Any:
    """The evaluator of one of ``WAYS``, which writes to a subfolder of that name."""
    paths = {"model_file": model_file, "dataset_dir": scan, "output_dir": f"{folder}/{way}"}
    configs, settings = WAYS[way]
    workflow = open_workflow(*configs, workflow_type="infer", **paths, **settings)
    return workflow.parser.get_parsed_content("evaluator")


def _share_that_differs(way: str, scan: str, folder: str) -> float:
    """Of all voxels, those whose label is not that of the stock way."""
    import nibabel as nib
    import numpy as np

    name = Path(scan).name.replace(".nii", "_seg.nii") + ("" if scan.endswith(".gz") else ".gz")
    stock, other = (np.asanyarray(nib.load(Path(folder) / each / name).dataobj) for each in ("stock", way))
    return float((stock != other).mean())


def _in_a_process(way: str, *arguments: str) -> float:
    command = [sys.executable, __file__, "peak", way, *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    commands = {"make": make, "peak": peak}
    fire.Fire(commands if sys.argv[1:2] and sys.argv[1] in commands else main)
