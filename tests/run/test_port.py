from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from dinomix_monai.__main__ import label
from dinomix_monai.run import check_port


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"got {port}: Address already in use\. Choose another with --port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_number_that_is_no_port_is_named() -> None:
    with pytest.raises(ValueError, match=r"port must be one that is free at 127\.0\.0\.1, got 70000: "):
        check_port("127.0.0.1", 70000)


def test_the_port_comes_before_the_seconds_that_the_imports_take(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "dinomix_monai.label", None)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ValueError, match="Address already in use"),
    ):
        label(str(tmp_path), port=other.getsockname()[1])
