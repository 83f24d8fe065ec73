from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, SpatialPadd

from dinomix_monai.handlers import BestModelHandler
from dinomix_monai.losses import VoxelWeightedDiceCELoss
from dinomix_monai.networks import EMATeacher
from dinomix_monai.run import failure_text, report_failures, stop_on_sigterm


def error_of(config, id_):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever it is, its text is what is looked at
        ConfigParser(config).get_parsed_content(id_)
    return caught.value


def reported(error, capsys, **kwargs):
    """What stands on stderr when a process ends with this error."""
    report_failures(**kwargs)
    sys.excepthook(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


def mistake():
    """An error that this package raises itself."""
    return error_of({"_target_": "dinomix_monai.networks.EMATeacher", "network": None, "decay": 2}, "")


def test_the_item_and_the_error_of_a_library_stand_in_one_line():
    config = {
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$[torch.zeros(1)]", "lr": -1},
        "other": "@optimizer",
    }
    assert failure_text(error_of(config, "other")) == "Error at optimizer: Invalid learning rate: -1 (ValueError)"


def test_the_innermost_item_is_named():
    config = {"a": {"b": [1, "$len(@c)"]}, "c": 5}
    text = failure_text(error_of(config, "a"))
    assert text == "Error at a::b::1: object of type 'int' has no len() (TypeError)"


def test_the_message_of_this_package_stands_for_itself():
    config = {
        "teacher": {"_target_": "dinomix_monai.networks.EMATeacher", "network": "$torch.nn.Linear(1, 1)", "decay": 2}
    }
    with pytest.raises(ValueError, match="decay") as expected:
        EMATeacher(VoxelWeightedDiceCELoss(), decay=2)
    assert failure_text(error_of(config, "teacher")) == f"Error at teacher: {expected.value}"


def test_what_a_transform_was_applied_to_is_left_out():
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        Compose([SpatialPadd("image", 3)])({})
    text = failure_text(caught.value)
    assert "applying transform" not in text
    assert "image" in text


def test_a_key_that_is_missing_is_named_without_quotes_around_the_sentence():
    assert failure_text(raised(KeyError("No such thing."))) == "Error: No such thing. (KeyError)"


def test_what_this_package_says_of_the_disk_has_no_number(monkeypatch, tmp_path):
    def full(content, handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    handler = BestModelHandler(tmp_path / "model.pt", ["background", "liver"])
    with pytest.raises(OSError, match="No space left") as caught:
        handler.write(torch.nn.Linear(1, 1))
    assert failure_text(caught.value) == (
        f"Error: {tmp_path / 'model.pt'} must be a file that can be written to, got: No space left on device. What was "
        "there before is unchanged."
    )


def test_with_a_log_the_traceback_goes_there_and_the_message_to_stderr(tmp_path, capsys, caplog):
    state = tmp_path / "state.pt"
    with caplog.at_level("INFO", "dinomix_monai"):
        printed = reported(raised(ZeroDivisionError("by zero")), capsys, log_file=tmp_path / "a.log", state_file=state)
    assert printed == f"Error: by zero (ZeroDivisionError)\nLog: {tmp_path / 'a.log'}\n"
    assert "Traceback" in caplog.text


def test_the_state_is_named_that_this_run_has_written_and_not_that_of_an_earlier_one(tmp_path, capsys):
    state, error = tmp_path / "state.pt", raised(ZeroDivisionError("by zero"))
    state.touch()
    assert "State" not in reported(error, capsys, state_file=state, log_file=tmp_path / "a.log")
    os.utime(state, (0, 0))
    sys.excepthook(type(error), error, error.__traceback__)
    assert f"State of the run: {state}; resume.json goes on from there.\n" in capsys.readouterr().err


def test_without_a_log_a_mistake_has_no_traceback_and_a_bug_has_one(capsys):
    assert reported(raised(ZeroDivisionError("by zero")), capsys).startswith("Traceback")
    assert reported(raised(OSError(errno.ENOSPC, "No space")), capsys) == "Error: [Errno 28] No space (OSError)\n"
    with pytest.raises(ValueError, match="decay") as caught:
        EMATeacher(VoxelWeightedDiceCELoss(), decay=2)
    assert reported(caught.value, capsys) == f"Error: {caught.value}\n"


def test_ctrl_c_is_one_line(capsys):
    assert reported(raised(KeyboardInterrupt()), capsys) == "Stopped by Ctrl-C.\n"


STOPPED = """
import signal, os, sys
sys.path[:0] = {path}
from dinomix_monai.run import report_failures, stop_on_sigterm
{before}
report_failures()
stop_on_sigterm()
try:
    os.kill(os.getpid(), signal.SIGTERM)
except Exception:
    print("caught")
finally:
    print("cleaned up")
"""


def stopped(before=""):
    code = STOPPED.format(path=sys.path, before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_sigterm_cleans_up_and_is_one_line():
    done = stopped()
    assert (done.returncode, done.stdout, done.stderr) == (143, "cleaned up\n", "Stopped by SIGTERM.\n")


def test_a_handler_of_sigterm_that_is_there_stays(monkeypatch):
    def handler(number, frame): ...

    signal.signal(signal.SIGTERM, handler)
    stop_on_sigterm()
    assert signal.getsignal(signal.SIGTERM) is handler
