from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dinomix_monai.data import split_dataset
from dinomix_monai.federated import promote_checkpoint, read_checkpoint
from dinomix_monai.federated.protocol import bundle_network
from tests.toys import TOY, make_toy_phantom

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SETTINGS = {**TOY, "steps_per_epoch": 2, "distillation_weight": 0}
# What each site sends, as it is when it has left the client and not yet the machine: a filter of all results.
RECORDER = """
import json
import numpy as np
from nvflare.apis.filter import Filter


class MessageRecorder(Filter):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def process(self, shareable, fl_ctx):
        def plain(value):
            if isinstance(value, dict):
                return {str(name): plain(item) for name, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            if hasattr(value, "shape"):
                return {"shape": list(np.asarray(value).shape)}
            return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)

        with open(self.path, "a") as file:
            file.write(json.dumps(plain(dict(shareable))) + "\\n")
        return shareable
"""
JOB = """
import json, sys
import job
from message_recorder import MessageRecorder

folder, settings = sys.argv[1], json.loads(sys.argv[2])


def build_recorded(**options):
    recipe = build_recipe(**options)
    # By name, because a filter knows no wildcard.
    tasks = ["handshake", "train", "validate", "score"]
    recipe.add_client_output_filter(MessageRecorder(folder + "/messages.jsonl"), tasks=tasks)
    return recipe


build_recipe, job.build_recipe = job.build_recipe, build_recorded
job.main(
    rounds=1, epochs_per_round=1, settings=settings, compare_alone=False, unlabeled_from_dice=0.0,
    workspace=folder + "/workspace",
    settings_file=folder + "/{SITE_NAME}.json",
)
"""


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a federation of two sites, of which the second has no labels, and what it printed."""
    folder = tmp_path_factory.mktemp("federation")
    data = make_toy_phantom(folder / "data", cases=(1, 2, 1, 1))
    for number, path in enumerate(split_dataset(data, 2, unlabeled_sites=1), start=1):
        own = {"dataset_dir": str(data), "datalist#file": path.name, "device": "cpu", "amp": False, "warm_up": 0.0}
        (folder / f"site-{number}.json").write_text(json.dumps(own))
    (folder / "message_recorder.py").write_text(RECORDER)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(folder), str(ROOT), str(ROOT / "flare_app"), os.environ.get("PYTHONPATH", "")]
        ),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", JOB, str(folder), json.dumps(SETTINGS)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder, done.stdout


def test_it_ends_with_the_table_and_the_models_are_at_the_server(simulated: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = simulated
    assert "Dice of the global model before and after federation" in printed
    run = folder / "workspace" / "dinomix" / "server" / "simulate_job"
    assert f"Written to {run}" in printed
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["scores"]) == {"before", "after"}
    assert list(summary["scores"]["after"]) == ["site-1"]
    assert sorted(path.name for path in (run / "tb_events").iterdir()) == ["site-1", "site-2"]
    last, best = (run / "app_server" / f"{name}FL_global_model.pt" for name in ("", "best_"))
    network = bundle_network(14, settings=SETTINGS)
    for checkpoint in (last, best):
        network.load_state_dict(read_checkpoint(checkpoint)["model"], strict=True)
    assert read_checkpoint(last)["meta_props"]["next_round"] == 1
    overlay = tmp_path / "toys.json"
    overlay.write_text(json.dumps({"network_def": {**_network_def(), "n_filters": 4}}))
    files = [ROOT / "bundle" / "configs" / "train.json", overlay]
    model = promote_checkpoint(last, tmp_path / "models" / "model.pt", [str(file) for file in files])
    network.load_state_dict(torch.load(model, weights_only=True), strict=True)


def test_every_message_of_a_site_holds_weights_of_the_student_numbers_and_names_of_classes(
    simulated: tuple[Path, str],
) -> None:
    folder, _ = simulated
    lines = (folder / "messages.jsonl").read_text().splitlines()
    # Of each of the two: handshake, a round, the last validation, and two models to score.
    assert len(lines) == 2 * 5
    student = {name: list(value.shape) for name, value in bundle_network(14, settings=SETTINGS).state_dict().items()}
    updates = 0
    for line in lines:
        assert ".nii" not in line
        assert str(folder) not in line
        assert "phantom_" not in line
        arrays = dict(_arrays(json.loads(line)))
        updates += bool(arrays)
        assert arrays in ({}, student)
    assert updates == 2


def _arrays(value: object, name: str = ""):
    if isinstance(value, dict):
        if set(value) == {"shape"}:
            yield name, value["shape"]
        else:
            for key, item in value.items():
                yield from _arrays(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _arrays(item, name)


def _network_def() -> dict:
    return json.loads((ROOT / "bundle" / "configs" / "train.json").read_text())["network_def"]
