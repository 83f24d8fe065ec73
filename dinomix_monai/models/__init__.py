"""Files of trained models: weights, and what lies beside them."""

from __future__ import annotations

from dinomix_monai.models.model_file import (
    check_model,
    load_model,
    probe_path,
    read_class_names,
    read_model,
    write_class_names,
    write_model,
)

__all__ = [
    "check_model",
    "load_model",
    "probe_path",
    "read_class_names",
    "read_model",
    "write_class_names",
    "write_model",
]
