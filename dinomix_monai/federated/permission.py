"""What a server or a site has to permit before it runs a job that carries no code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dinomix_monai.core.files import write_json

__all__ = ["CLASSES", "permit_classes"]

CLASSES = (
    "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor",
    "nvflare.app_opt.pt.file_model_persistor.PTFileModelPersistor",
    "dinomix_monai.",
)
"""What the job is made of and NVFlare's own list lacks; a dot at the end stands for all that is in a package."""

_ALLOW_LIST = "class_allow_list"


def permit_classes(startup_kit: str | Path) -> tuple[Path, list[str]]:
    """
    Adds :data:`CLASSES` to the list of classes that a server or a site builds for a job without code.

    NVFlare reads ``local/resources.json`` where that is there, and ``local/resources.json.default`` of the kit
    otherwise. So the first is written, with everything that held before and the new names; the second stays as it is.

    Args:
        startup_kit: folder of the kit of a server or a site, with ``startup`` and ``local`` in it.

    Returns:
        The file that holds from now on, and the names that were new in it.

    Raises:
        FileNotFoundError: When it is no such kit.
        ValueError: When its resources are damaged or name no list.
    """
    local = Path(startup_kit).expanduser() / "local"
    own, default = local / "resources.json", local / "resources.json.default"
    source = own if own.is_file() else default
    if not source.is_file():
        raise FileNotFoundError(
            f"startup_kit must be the kit of a server or a site, got {startup_kit}, which has no {default.name} in a "
            "folder local. `nvflare provision` makes a folder for each party; give one of these."
        )
    resources = _read_resources(source)
    listed = resources.get(_ALLOW_LIST)
    if not isinstance(listed, list):
        raise ValueError(
            f"startup_kit must be the kit of a server or a site, got {source} without a {_ALLOW_LIST}. Users submit "
            "jobs and permit none."
        )
    new = [] if "*" in listed else [name for name in CLASSES if name not in listed]
    if new:
        write_json(own, {**resources, _ALLOW_LIST: [*listed, *new]})
    return (own if new else source), new


def _read_resources(path: Path) -> dict[str, Any]:
    try:
        resources = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON file, got another: {error}.") from error
    if not isinstance(resources, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(resources).__name__}.")
    return resources
