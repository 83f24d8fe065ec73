"""Starting MONAI Label."""

from __future__ import annotations

import ipaddress
import json
import os
import tempfile
from pathlib import Path

from dinomix_monai.label.app_folder import AppFolder

__all__ = ["connections", "serve", "server_environment"]


def server_environment(folder: AppFolder, host: str, port: int) -> dict[str, str]:
    """
    Settings of MONAI Label for this app, as environment variables.

    Uploads and sessions stay in the app's folder, only NIfTI files count as scans, and pages of other origins may not
    read answers. A variable that is set already is the user's word and is kept.

    Args:
        folder: folder of the app.
        host: address that the server listens on.
        port: its port.
    """
    tmp = str(folder.root / "tmp")
    origins = [f"http://{name}:{port}" for name in dict.fromkeys((host, "127.0.0.1", "localhost"))]
    defaults = {
        "MONAI_LABEL_SESSION_PATH": str(folder.root / "sessions"),
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(["*.nii.gz", "*.nii"]),
        "MONAI_LABEL_CORS_ORIGINS": json.dumps(origins),
        "MONAI_LABEL_TRACKING_ENABLED": "false",
    }
    return {**defaults, **{name: os.environ[name] for name in defaults if name in os.environ}, "TMPDIR": tmp}


def serve(folder: AppFolder, studies: str, host: str = "127.0.0.1", port: int = 8000) -> None:
    """
    Starts the server and returns when it is stopped.

    Args:
        folder: folder of the app.
        studies: folder of the scans, or the address of a DICOMweb server.
        host: address to listen on.
        port: port to listen on.

    Raises:
        ImportError: When MONAI Label is not installed.
        NotADirectoryError: When ``studies`` is no folder.
        ValueError: When ``host`` is not this machine alone and authentication is off.
    """
    if not studies.startswith(("http://", "https://")) and not Path(studies).is_dir():
        raise NotADirectoryError(f"studies must be the folder of the scans, got {studies}, which is none.")
    if not _is_loopback(host) and os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() not in ("1", "true"):
        raise ValueError(
            f"host must be 127.0.0.1 unless MONAI_LABEL_AUTH_ENABLE is true, got {host}. Without authentication "
            "everyone who reaches the server can read the scans and write files."
        )
    # Before MONAI Label is imported, which reads them then.
    os.environ.update(server_environment(folder, host, port))
    tempfile.tempdir = os.environ["TMPDIR"]
    try:
        from monailabel.main import Main
    except ImportError as error:
        raise ImportError(
            'MONAI Label is required for this. Install it with the `label` extra: `pip install "dinomix-monai[label]"`.'
        ) from error
    print(connections(host, port), flush=True)
    main = Main()
    options = ["--app", str(folder.root), "--studies", studies, "--host", host, "--port", str(port)]
    main.action_start_server(main.args_parser().parse_args(["start_server", *options]))


def connections(host: str, port: int) -> str:
    """How to connect, in lines for a terminal."""
    address = f"http://{host}:{port}"
    return "\n".join(
        (
            f"MONAI Label starts on {address}",
            f"  3D Slicer  extension MONAILabel, server {address}",
            f"  OHIF       {address}/ohif/ (for studies on a DICOMweb server)",
            f'  REST       curl -X POST "{address}/infer/dinomix?image=NAME&output=image" -o label.nii.gz',
            f"  progress   {address}/train/ and {address}/info/",
            "Stop it with Ctrl-C.",
        )
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
