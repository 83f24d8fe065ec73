"""The script for the day on which there is a GPU, tried without one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_each_part_has_its_line_however_it_ends(
    benchmark: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = benchmark("on_gpu")

    def python(code: str, limit_s: float = 60, needs_gpu: bool = False) -> object:
        return module.Part((sys.executable, "-c", code), limit_s, needs_gpu)

    table = "print('| form | step |'); print('|---|---|'); print('| all | 3 ms |')"
    parts = {
        "fine": python(table),
        "fails": python("raise SystemExit('a reason')"),
        # With a child that would keep the output open.
        "hangs": python("import os, time; os.fork(); print('so far', flush=True); time.sleep(60)", 1.0),
        "gpu": python("", needs_gpu=True),
    }
    monkeypatch.setattr(module, "parts_in", lambda folder: parts)
    monkeypatch.setattr(module, "_machine", lambda: {"gpu": None, "torch": "2"})
    module.main(out_dir=tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {name: part["ended"] for name, part in written.items()} == {
        "fine": "ok",
        "fails": "failed",
        "hangs": "cut",
        "gpu": "left out",
    }
    assert written["fine"]["figures"] == {"all": "step 3 ms"}
    assert "so far" in written["hangs"]["tail"]
    assert written["hangs"]["seconds"] < 20
    assert "a reason" in capsys.readouterr().out
    assert "| fine | ok |" in (tmp_path / "results.md").read_text()
    module.main(minutes=0, out_dir=tmp_path)
    late = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {part["ended"] for part in late.values()} == {"left out"}
    with pytest.raises(ValueError, match="parts must be some of fine, fails, hangs, gpu, got other"):
        module.main(parts="other", out_dir=tmp_path)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_steps_of_the_published_schedule_are_timed(
    benchmark: Callable, on_cpu: bool, capsys: pytest.CaptureFixture
) -> None:
    train = json.loads((ROOT / "bundle" / "configs" / "train.json").read_text())
    assert train["volume_transforms"][1]["_target_"] == "EnsureTyped"
    small = {"patch_size": [32, 32, 16], "network_def#n_filters": 2, "network_def#norm": "instance", "device": "cpu"}
    benchmark("gpu_steps").main(
        steps=2, shape=(40, 40, 28), cases=(2, 2, 1, 1), on_cpu=on_cpu, distillation_weight=0.0, amp=False, **small
    )
    header, _, row = capsys.readouterr().out.splitlines()[-3:]
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | ")))
    assert cells["steps"] == "synapse.json" + (", transforms on the CPU" if on_cpu else "")
    step_ms, hours = float(cells["step"].removesuffix(" ms")), float(cells["12,000 steps"].removesuffix(" h"))
    assert hours == pytest.approx(step_ms * 12 / 3600, abs=0.01)
    assert cells["GPU busy"] == "-"


def test_the_script_checks_its_packages_and_starts(tmp_path: Path) -> None:
    command = [str(ROOT / "benchmarks" / "on_gpu.sh"), "--minutes", "0", "--out_dir", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert printed.returncode == 0, printed.stderr
    assert "tests: left out" in printed.stdout
    assert "compiled steps: left out" in printed.stdout
