"""Starting MONAI Label."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
import sysconfig
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.run import acquire_lock, check_port

__all__ = ["check_server", "connections", "is_address", "serve", "server_environment"]

_DCMQI = "itkimage2segimage"
"""The tool that makes a DICOM SEG of a label."""

_OHIF_PORT = 8000
"""Port that MONAI Label's panel in OHIF has in its code."""


def server_environment(folder: AppFolder) -> dict[str, str]:
    """
    Settings of MONAI Label for this app, as environment variables.

    Uploads, sessions and what a DICOMweb server sends stay in the app's folder, and only NIfTI files count as scans. A
    variable that is set already is the user's word and is kept, but for the folder of uploads. The programs that come
    with the package are found, whether its environment is active or not.

    Args:
        folder: folder of the app.
    """
    defaults = {
        "MONAI_LABEL_SESSION_PATH": str(folder.root / "sessions"),
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps(["*.nii.gz", "*.nii"]),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder.root / "dicom"),
        # Seconds. With MONAI Label's two hours a scan that arrives is not seen all morning.
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "30",
        "MONAI_LABEL_TRACKING_ENABLED": "false",
    }
    given = {name: os.environ[name] for name in defaults if name in os.environ}
    return {**defaults, **given, "TMPDIR": str(folder.root / "tmp"), "PATH": _program_path()}


def is_address(studies: str) -> bool:
    """Whether ``studies`` are on a DICOMweb server and not in a folder."""
    return studies.startswith(("http://", "https://"))


def check_server(studies: str, host: str = "127.0.0.1") -> None:
    """
    Makes sure of what a server needs, before an app is made for it.

    Args:
        studies: see :func:`serve`.
        host: see :func:`serve`.

    Raises:
        ImportError: When ``studies`` are on a DICOMweb server and dcmqi is not installed.
        NotADirectoryError: When ``studies`` is no folder.
        ValueError: When nobody answers at the address of ``studies``, or ``host`` is not this machine alone and
            authentication is off.
    """
    if not is_address(studies) and not Path(studies).is_dir():
        raise NotADirectoryError(f"studies must be the folder of the scans, got {studies}, which is none.")
    if is_address(studies):
        _check_dicomweb(studies)
    if not _is_loopback(host) and os.environ.get("MONAI_LABEL_AUTH_ENABLE", "").lower() not in ("1", "true"):
        raise ValueError(
            f"host must be 127.0.0.1 unless MONAI_LABEL_AUTH_ENABLE is true, got {host}. Without authentication "
            "everyone who reaches the server can read the scans and write files."
        )


def serve(folder: AppFolder, studies: str, host: str = "127.0.0.1", port: int = 8000) -> None:
    """
    Starts the server and returns when it is stopped.

    Args:
        folder: folder of the app.
        studies: folder of the scans, or the address of a DICOMweb server.
        host: address to listen on.
        port: port to listen on.

    Raises:
        ImportError: When MONAI Label is not installed, or as :func:`check_server`.
        NotADirectoryError: As :func:`check_server`.
        ValueError: Likewise, or when another server uses the app, or nobody can listen on ``port``.
    """
    check_server(studies, host)
    check_port(host, port)
    # Two servers would replace each other's model. Kept until this one stops.
    lock = acquire_lock(folder.root)
    if lock is None:
        raise ValueError(f"app must be a folder that no other server uses, got {folder.root}. Give this one its own.")
    # Taken out of the environment, because MONAI Label 0.8.5 fails on it, and compares origins with a slash at the end.
    allowed = json.loads(os.environ.pop("MONAI_LABEL_CORS_ORIGINS", "[]"))
    origins = allowed or [f"http://{name}:{port}" for name in dict.fromkeys((host, "127.0.0.1", "localhost"))]
    # Before MONAI Label is imported, which reads them then.
    os.environ.update(server_environment(folder))
    tempfile.tempdir = os.environ["TMPDIR"]
    try:
        import uvicorn
        from monailabel.config import settings
        from monailabel.main import Main
        from monailabel.utils.others.generic import init_log_config
    except ImportError as error:
        raise ImportError(
            'MONAI Label is required for this. Install it with the `label` extra: `pip install "dinomix-monai[label]"`.'
        ) from error
    main = Main()
    options = ["--app", str(folder.root), "--studies", studies, "--host", host, "--port", str(port)]
    arguments = main.args_parser().parse_args(["start_server", *options])
    main.start_server_validate_args(arguments)
    main.start_server_init_settings(arguments)
    settings.MONAI_LABEL_CORS_ORIGINS = origins
    print(connections(host, port, studies), flush=True)
    log_config = init_log_config(None, str(folder.root), "app.log", "INFO")
    uvicorn.run("monailabel.app:app", host=host, port=port, log_config=log_config, access_log=False)


def connections(host: str, port: int, studies: str) -> str:
    """How to connect, in lines for a terminal."""
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    ohif = f"{address}/ohif/" if is_address(studies) else "not here: it shows scans of a DICOMweb server only"
    if is_address(studies) and port != _OHIF_PORT:
        ohif += f"; its MONAI Label panel begins with port {_OHIF_PORT}: enter {address}/ there"
    return "\n".join(
        (
            f"MONAI Label starts on {address}",
            f"  3D Slicer  extension MONAILabel, server {address}",
            f"  OHIF       {ohif}",
            f'  REST       curl -X POST "{address}/infer/dinomix?image=NAME&output=image" '
            """-F 'params={"result_extension": ".nii.gz"}' -o label.nii.gz""",
            f"  progress   {address}/train/ and {address}/info/",
            "Stop it with Ctrl-C.",
        )
    )


def _check_dicomweb(url: str) -> None:
    if shutil.which(_DCMQI, path=_program_path()) is None:
        raise ImportError(
            f"For studies on a DICOMweb server dcmqi is required, which makes a DICOM SEG of a label. Its program "
            f"{_DCMQI} was not found. Install it with `pip install dcmqi`."
        )
    address = urlsplit(url)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=10).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"studies must be a DICOMweb server that answers, got {url}: {reason}.") from error


def _program_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
