"""Names of the classes, kept beside the weights of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_labels", "write_labels"]

_FILE = "labels.json"


def write_labels(model_file: str | Path, class_names: Sequence[str]) -> Path:
    """Writes ``labels.json`` beside a model: names by label value, as ``labels`` of ``dataset.json``."""
    path = Path(model_file).with_name(_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({str(value): name for value, name in enumerate(class_names)}, indent=1) + "\n")
    return path


def read_labels(model_file: str | Path) -> list[str]:
    """
    Names of a model's classes, background first.

    Raises:
        FileNotFoundError: When there is no ``labels.json`` beside ``model_file``.
    """
    path = Path(model_file).with_name(_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"model_file must have {_FILE} beside it, got {model_file} without. Train first, or pass the model_file of a trained model."
        )
    labels = json.loads(path.read_text())
    return [labels[str(value)] for value in range(len(labels))]
