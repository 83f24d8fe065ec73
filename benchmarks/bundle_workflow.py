"""The bundle, as the benchmarks train and run it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["CONFIGS", "ROOT", "open_workflow"]

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"


def open_workflow(*configs: str, workflow_type: str = "train", **settings: Any) -> Any:
    """
    Builds and initializes a workflow.

    Args:
        configs: configs of the bundle by name, or files that end in ``.json``.
        workflow_type: as MONAI has it.
        **settings: ids with other values.

    Returns:
        A ``monai.bundle.ConfigWorkflow``.
    """
    # Imported here: the process that only starts others needs none of it.
    from dinomix_monai.bundle import Bundle

    if workflow_type == "train":
        # What an overlay does not say is as on the phantom, so that results do not depend on a plan.
        settings = {"planned_for": None, **settings}
    sys.path.insert(0, str(ROOT))
    workflow = Bundle(ROOT / "bundle").workflow(*configs, workflow_type=workflow_type, **settings)
    workflow.initialize()
    return workflow
