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
from monai.bundle import ConfigWorkflow

Damage = Callable[[Path], None]


@pytest.fixture
def failure(workflow, edited_phantom, phantom, tmp_path, capsys, monkeypatch) -> Callable[..., str]:
    """Runs configs of the bundle as ``python -m monai.bundle run`` does, and returns what stands on stderr at the end."""
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
        message, log, _ = printed.rpartition("\nLog: ") if "\nLog: " in printed else (printed, "", "")
        return message.strip()
    return "NOTHING"


def _filled(value: Any, places: dict[str, str]) -> Any:
    for place, path in places.items():
        value = value.replace(place, path) if isinstance(value, str) else value
    return value


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
