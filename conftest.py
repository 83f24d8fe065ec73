"""Which tests and doctests are collected."""

from __future__ import annotations

import importlib.util

# From Python 3.13 on MONAI Label cannot be installed.
collect_ignore = [] if importlib.util.find_spec("monailabel") else ["dinomix_monai/label", "tests/label"]
