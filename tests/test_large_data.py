from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests import host_gpu


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module


@pytest.mark.slow
@pytest.mark.skipif(not host_gpu.CAN_REGISTER, reason="This version of PyTorch lets no device be written in Python.")
def test_the_start_of_large_data_is_measured_on_sparse_files(
    benchmark: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    module = benchmark("large_data")
    module.make(str(tmp_path / "data"), 6, (100, 100, 100))
    listed = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert [len(listed[name]) for name in ("training", "validation", "unlabeled")] == [4, 1, 1]
    scan = tmp_path / "data" / listed["unlabeled"][0]["image"]
    assert scan.stat().st_size == 352 + 2 * 100**3
    assert 512 * scan.stat().st_blocks < scan.stat().st_size / 4
    module.main(cases=[6], out_dir=str(tmp_path / "out"), shape=(100, 100, 100))
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text()).values()
    assert row.keys() == module.COLUMNS.keys()
    assert all(number > 0 for number in row.values())
    assert row["device_mb"] <= 1e3 * module.DEVICE_GB
    assert row["peak_mb"] >= 0.9 * row["memory_mb"]
    assert "| 6 |" in capsys.readouterr().out
