"""What a user is told when a run fails or is stopped."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

__all__ = ["Terminated", "failure_text", "report_failures", "stop_on_sigterm"]

_PACKAGE = Path(__file__).parents[1]
# These are internals of MONAI 1.6.1, which tests/run/test_monai_internals.py looks for in the installed one: the first
# words of an error that MONAI wraps around that of a component, an expression or a transform ...
_WRAPPERS = ("Failed to instantiate component", "Failed to evaluate", "applying transform")
# ... and the function that resolves an item of a configuration, with its variable for the item's name.
_RESOLVER, _ITEM = "_resolve_one_item", "id"
# What a bundle runs as a whole: no place that says more than the message.
_COMMANDS = ("initialize", "run", "training", "evaluating", "inferring", "finalize")
# A data set is looked at by whichever setting is planned first; the message names what to change.
_OF_THE_DATA = "dataset_dir must "
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class Terminated(BaseException):
    """SIGTERM has come; like ``KeyboardInterrupt`` it is no error that anybody should catch."""


def failure_text(error: BaseException) -> str:
    """
    The message of an error without what MONAI has wrapped it in, and the item of the configuration that it comes from.

    Args:
        error: as it came out of ``monai.bundle.run``.
    """
    cause = _unwrapped(error)
    # The text of a KeyError is the representation of its key.
    text = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else str(cause)
    if isinstance(cause, OSError) and cause.strerror and _is_ours(cause):
        text = cause.strerror  # without the number
    elif not _is_ours(cause):
        text = f"{text} ({type(cause).__name__})" if text else type(cause).__name__
    place = "" if text.startswith(_OF_THE_DATA) else _place(error)
    return f"Error at {place}: {text}" if place else f"Error: {text}"


def report_failures(log_file: Path | None = None, state_file: str | Path | None = None) -> None:
    """
    Ends a failing process with one message instead of a traceback, which goes into the log.

    Without a log, what is no user's mistake is left to Python: an error that this package did not raise itself needs
    its traceback. Nothing changes for errors that somebody catches.

    Args:
        log_file: the log of the run.
        state_file: file that the state of the run is kept in; the message names it if it is written from now on, since
            before that it is the state of an earlier run.
    """
    earlier = _written_at(state_file)

    def report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        is_stopped = isinstance(error, (KeyboardInterrupt, Terminated))
        if log_file is None and not is_stopped and not _is_mistake(_unwrapped(error)):
            sys.__excepthook__(kind, error, traceback)
            return
        how = "SIGTERM" if isinstance(error, Terminated) else "Ctrl-C"
        lines = [f"Stopped by {how}." if is_stopped else failure_text(error)]
        if _written_at(state_file) not in (None, earlier):
            lines.append(f"State of the run: {state_file}; resume.json goes on from there.")
        if log_file is not None:
            # On the level that only the file shows.
            logging.getLogger(__name__).info(lines[0], exc_info=(kind, error, traceback))
            lines.append(f"Log: {log_file}")
        print("\n".join(lines), file=sys.stderr, flush=True)
        if isinstance(error, Terminated):
            raise SystemExit(128 + signal.SIGTERM)

    sys.excepthook = report


def stop_on_sigterm() -> None:
    """Lets SIGTERM end the process as Ctrl-C does, unless somebody around this run has a handler for it."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _written_at(file: str | Path | None) -> int | None:
    return Path(file).stat().st_mtime_ns if file is not None and Path(file).is_file() else None


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _unwrapped(error: BaseException) -> BaseException:
    while error.__cause__ is not None and str(error).startswith(_WRAPPERS):
        error = error.__cause__
    return error


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it, so that its text stands for itself."""
    frames = list(_frames(error))
    return bool(frames) and Path(frames[-1].tb_frame.f_code.co_filename).is_relative_to(_PACKAGE)


def _is_mistake(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return True
    return isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError)) and _is_ours(
        error
    )


def _place(error: BaseException) -> str:
    """The innermost item of the configuration that was being made when the error was raised."""
    resolving = (frame.tb_frame for frame in _frames(error) if frame.tb_frame.f_code.co_name == _RESOLVER)
    items = [str(frame.f_locals[_ITEM]) for frame in resolving]
    items = [item for item in items if item.partition("::")[0] not in _COMMANDS]
    return items[-1] if items else ""


def _frames(error: BaseException) -> Iterator[TracebackType]:
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next
