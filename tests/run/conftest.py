from __future__ import annotations

import logging
import signal
import sys

import pytest


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    """What a run changes of the process is put back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    sigterm = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, sigterm)
    for handler in [other for other in root.handlers if other not in handlers]:
        root.removeHandler(handler)
        handler.close()
