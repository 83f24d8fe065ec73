"""Files of trained models: weights, and the names of the classes beside them."""

from __future__ import annotations

from dinomix_monai.models.model_file import (
    check_model,
    load_model,
    read_class_names,
    read_model,
    write_class_names,
    write_model,
)

__all__ = ["check_model", "load_model", "read_class_names", "read_model", "write_class_names", "write_model"]
