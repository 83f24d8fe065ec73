"""What a run leaves beside its outputs, however it ends."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

from dinomix_monai.core.files import writing_to
from dinomix_monai.run.configuration import check_paths, check_settings, present_parser
from dinomix_monai.run.failure import report_failures, stop_on_sigterm
from dinomix_monai.run.output_lock import lock_outputs
from dinomix_monai.run.versions import describe_versions

__all__ = ["start_run"]


def start_run(
    output_dir: str | Path, name: str, state_file: str | Path | None = None, setting: str = "output_dir"
) -> Path:
    """
    Opens the log of a run and writes its configuration beside it, as overlays and the command line have made it.

    It is the first thing that a run does, so both are there whatever fails later. From then on a failure ends the
    process with one message, and its traceback stands in the log; so do SIGTERM and Ctrl-C. The folder belongs to this
    run alone, see :func:`lock_outputs`. Called outside of a bundle, it writes no configuration.

    Args:
        output_dir: folder of the run's outputs; the files are in ``logs`` there, named by time and process, so that
            those of earlier runs stay.
        name: what is run, the first part of their names.
        state_file: file that the state of the run is kept in, which the message names.
        setting: id of the configuration that says ``output_dir``, for the message.

    Returns:
        Path of the log.

    Raises:
        OSError: When ``output_dir`` cannot be written to.
        ValueError: When another process has a run in ``output_dir``, when that is not given and there is no bundle to
            write to, when a path is a number, or when a setting was typed on the command line that does nothing, as a
            mistyped one does.
    """
    report_failures()
    parser = present_parser()
    if parser is not None:
        check_paths(parser)
    folder = Path(output_dir).expanduser().absolute() / "logs"
    log_file = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with writing_to(output_dir, setting):
        folder.mkdir(parents=True, exist_ok=True)
        lock_outputs(output_dir, folder)
        handler = _RunLog(log_file)
        if parser is not None:
            log_file.with_suffix(".json").write_text(json.dumps(parser.get(), indent=1, default=str) + "\n")
    _log_to(handler)
    _silence_decoders()
    report_failures(log_file, state_file)
    stop_on_sigterm()
    about = (" ".join(sys.argv), Path.cwd(), describe_versions())
    logging.getLogger(__name__).info("%s\nin %s, %s", *about)
    if parser is not None:
        # Those that were typed alone: another becomes idle where an overlay replaces what referred to it.
        typed = [word[2:].partition("=")[0].replace("-", "_") for word in sys.argv if word.startswith("--")]
        check_settings(parser.get(), typed)
    return log_file


def _silence_decoders() -> None:
    # For each loader MONAI 1.6 says that a decoder of DICOM on GPUs is missing, which reads no NIfTI.
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")


class _RunLog(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is that of ``logging``
        """Stays silent: that the disk is full is said elsewhere, and the log cannot hold it."""


def _log_to(handler: _RunLog) -> None:
    root = logging.getLogger()
    for earlier in [other for other in root.handlers if isinstance(other, _RunLog)]:
        root.removeHandler(earlier)
        earlier.close()
    if not root.handlers and logging.lastResort is not None:
        # Python shows warnings where nobody has set up logging; beside a file alone it would not any more.
        root.addHandler(logging.lastResort)
    for other in root.handlers:
        other.addFilter(_is_news)
    root.addHandler(handler)
    # Others do not see more than before: their own levels stay.
    logging.getLogger("dinomix_monai").setLevel(logging.INFO)


def _is_news(record: logging.LogRecord) -> bool:
    # Ignite says so for each engine on the way out, before the message that the user gets.
    return "run is terminating due to exception" not in str(record.msg)
