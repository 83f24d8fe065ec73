from __future__ import annotations

import json
import os
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


def python(*arguments: object, cwd: Path = ROOT, **options: object) -> str:
    """Runs ``python -m ARGUMENTS --OPTION VALUE ...`` and returns what it printed."""
    pairs = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments), *pairs],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of a training from the repository root, and what it printed."""
    output_dir = tmp_path_factory.mktemp("trained")
    printed = python(
        *("monai.bundle", "run", "training"),
        config_file="bundle/configs/train.json",
        dataset_dir=phantom,
        output_dir=output_dir,
        **TINY_RUN,
    )
    return output_dir, printed


def test_training_prints_its_table_and_what_it_wrote(trained: tuple[Path, str]) -> None:
    output_dir, printed = trained
    table, written = printed.split("Written:")
    assert "left adrenal gland" in table
    assert all(column in table for column in ("Dice", "NSD 2mm", "ASSD mm", "HD95 mm"))
    for name in ("models/model.pt", "models/last/state.pt", "metrics.csv", "report/index.html"):
        assert str(output_dir / name) in written
        assert (output_dir / name).is_file()


def test_evaluating_and_inferring_take_what_training_wrote(trained: tuple[Path, str], phantom: Path) -> None:
    output_dir, _ = trained
    printed = python(
        *("monai.bundle", "run", "evaluating"),
        config_file="['bundle/configs/train.json','bundle/configs/evaluate.json']",
        dataset_dir=phantom,
        output_dir=output_dir,
        **TINY_RUN,
    )
    assert "Evaluation on test" in printed
    assert str(output_dir / "evaluation" / "metrics.csv") in printed.split("Written:")[1]

    case = json.loads((phantom / "dataset.json").read_text())["test"][0]["image"]
    printed = python(
        *("monai.bundle", "run", "inferring"),
        config_file="bundle/configs/inference.json",
        dataset_dir=phantom / case,
        model_file=output_dir / "models" / "model.pt",
        output_dir=output_dir / "segmented",
        **TINY_NETWORK,
    )
    assert f"Label maps: 1 in {output_dir / 'segmented'}" in printed
    label = nib.load(output_dir / "segmented" / f"{Path(case).stem}_seg.nii.gz")
    assert label.shape == nib.load(phantom / case).shape


def test_bundle_runs_from_any_folder_with_absolute_paths(
    trained: tuple[Path, str], phantom: Path, tmp_path: Path
) -> None:
    """What they write goes into the bundle of the configs, and not into the present folder."""
    bundle, elsewhere = tmp_path / "project" / "bundle", tmp_path / "elsewhere"
    shutil.copytree(ROOT / "bundle" / "configs", bundle / "configs")
    elsewhere.mkdir()
    python(
        *("monai.bundle", "run", "inferring"),
        cwd=elsewhere,
        config_file=bundle / "configs" / "inference.json",
        dataset_dir=phantom / "images",
        model_file=trained[0] / "models" / "model.pt",
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
    pairs = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "bundle/configs/train.json"]
    with (tmp_path / "printed.txt").open("w") as printed:
        process = subprocess.Popen([*command, *pairs], cwd=ROOT, stdout=printed, stderr=printed)
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
    command = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run", "training")
    options = {"dataset_dir": phantom, "output_dir": tmp_path, **settings}
    printed = python(*command, config_file=configs, epochs=2, **options)
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
