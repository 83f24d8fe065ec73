from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY_NETWORK = {"patch_size": "[32,32,16]", "network_def#n_filters": 4, "spacing_mm": "[8.0,8.0,10.0]", "device": "cpu"}
TINY_RUN = {
    **TINY_NETWORK,
    "epochs": 1,
    "steps_per_epoch": 2,
    "val_interval": 1,
    "warm_up": 0.0,
    "teacher_weights": "none",
    "amp": False,
}


def words(*arguments: object, **options: object) -> list[str]:
    """``ARGUMENTS --OPTION VALUE ...``, as a shell hands them over."""
    return [*map(str, arguments), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def python(module: str, *arguments: object, cwd: Path = ROOT, **options: object) -> str:
    """Runs ``python -m MODULE ARGUMENTS --OPTION VALUE ...`` in this process and returns what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [module, *words(*arguments, **options)])
        try:
            # Under a name of its own, so that a module of this name that is imported already is no matter.
            runpy.run_module(f"{module}.__main__", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    return printed.getvalue()


def test_training_evaluating_and_inferring_print_their_tables_and_what_they_wrote(
    phantom: Path, tmp_path: Path
) -> None:
    options = {"dataset_dir": phantom, "output_dir": tmp_path, **TINY_RUN}
    printed = python("monai.bundle", "run", "training", config_file="bundle/configs/train.json", **options)
    table, written = printed.split("Written:")
    assert "left adrenal gland" in table
    assert all(column in table for column in ("Dice", "NSD 2mm", "ASSD mm", "HD95 mm"))
    for name in ("models/model.pt", "models/last/state.pt", "metrics.csv", "report/index.html"):
        assert str(tmp_path / name) in written
        assert (tmp_path / name).is_file()

    configs = "['bundle/configs/train.json','bundle/configs/evaluate.json']"
    printed = python("monai.bundle", "run", "evaluating", config_file=configs, **options)
    assert "Evaluation on test" in printed
    assert str(tmp_path / "evaluation" / "metrics.csv") in printed.split("Written:")[1]

    case = json.loads((phantom / "dataset.json").read_text())["test"][0]["image"]
    printed = python(
        *("monai.bundle", "run", "inferring"),
        config_file="bundle/configs/inference.json",
        dataset_dir=phantom / case,
        model_file=tmp_path / "models" / "model.pt",
        output_dir=tmp_path / "segmented",
        **TINY_NETWORK,
    )
    assert f"Label maps: 1 in {tmp_path / 'segmented'}" in printed
    label = nib.load(tmp_path / "segmented" / f"{Path(case).stem}_seg.nii.gz")
    assert label.shape == nib.load(phantom / case).shape


def test_bundle_runs_from_any_folder_with_absolute_paths(trained_bundle: Path, phantom: Path, tmp_path: Path) -> None:
    """What they write goes into the bundle of the configs, and not into the present folder."""
    bundle, elsewhere = tmp_path / "project" / "bundle", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "bundle" / "configs", bundle / "configs")
    elsewhere.mkdir()
    python(
        *("monai.bundle", "run", "inferring"),
        cwd=elsewhere,
        config_file=bundle / "configs" / "inference.json",
        dataset_dir=phantom / "images",
        model_file=trained_bundle / "models" / "model.pt",
        **TINY_NETWORK,
    )
    found = sorted(path.name for path in (bundle / "output").glob("*.nii.gz"))
    assert found == [f"{path.stem}_seg.nii.gz" for path in sorted((phantom / "images").iterdir())]
    assert not list(elsewhere.iterdir())


def test_phantom_command_makes_the_default_data_set(tmp_path: Path) -> None:
    printed = python("dinomix_monai", "phantom", cwd=tmp_path, dataset_dir=tmp_path / "data")
    assert printed.strip() == str(tmp_path / "data" / "dataset.json")
    datalist = json.loads((tmp_path / "data" / "dataset.json").read_text())
    sections = ("training", "unlabeled", "validation", "test")
    assert [len(datalist[section]) for section in sections] == [4, 16, 4, 8]


def test_sigterm_ends_a_training_with_its_state_and_a_few_lines(phantom: Path, tmp_path: Path) -> None:
    settings = {**TINY_RUN, "dataset_dir": phantom, "output_dir": tmp_path, "epochs": 1000, "distillation_weight": 0.0}
    command = words("-m", "monai.bundle", "run", "training", config_file="bundle/configs/train.json", **settings)
    with (tmp_path / "printed.txt").open("w") as printed:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=printed, stderr=printed)
        history = tmp_path / "history.csv"
        while process.poll() is None and not (history.is_file() and len(history.read_text().splitlines()) > 1):
            time.sleep(0.05)
        process.terminate()
        assert process.wait(120) == 128 + signal.SIGTERM
    text = (tmp_path / "printed.txt").read_text()
    state, (log,) = tmp_path / "models" / "last" / "state.pt", (tmp_path / "logs").glob("*.log")
    assert text.splitlines()[-3:] == [
        "Stopped by SIGTERM.",
        f"State of the run: {state}; resume.json goes on from there.",
        f"Log: {log}",
    ]
    assert "Traceback" not in text
    assert "Traceback" in log.read_text()
    assert torch.load(state, weights_only=True)["trainer"]["epoch"] >= 0
    assert not list(tmp_path.rglob("*.partial"))


def test_two_processes_train_one_model_and_write_it_once(phantom: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in TINY_RUN.items() if name not in ("device", "epochs")}
    configs = "['bundle/configs/train.json','bundle/configs/multi_gpu_train.json']"
    options = {"dataset_dir": phantom, "output_dir": tmp_path, **settings}
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run")
    arguments = words(*command, "training", config_file=configs, epochs=2, **options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout
    assert printed.count("Written:") == 1
    assert printed.count("left adrenal gland") == 1
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]
    writers = {path.name.split(".")[-2] for path in (tmp_path / "events").iterdir()}  # ids of processes
    assert len(writers) == 1
    assert len(list((tmp_path / "tokens").glob("*/*.npy"))) == 4  # of two labeled and two unlabeled volumes
    # One process goes on with the state of two.
    resumed = configs.replace("multi_gpu_train", "resume")
    python("monai.bundle", "run", "training", config_file=resumed, epochs=3, device="cpu", **options)
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3"]
