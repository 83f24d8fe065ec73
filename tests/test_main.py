from __future__ import annotations

import json
import platform
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from dinomix_monai.__main__ import allow, main
from dinomix_monai.data import make_phantom

ROOT = Path(__file__).parents[1]
SETTINGS = ("--patch_size", "16,16,16", "--spacing_mm=4.5,4.5,5.5", "--intensity_window=-160,240")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Runs ``python -m dinomix_monai ARGUMENTS`` in this process and returns its exit code."""

    def run(*arguments: object) -> object:
        monkeypatch.setattr(sys, "argv", ["dinomix_monai", *map(str, arguments)])
        # Another test may have imported it, of which runpy would warn.
        monkeypatch.delitem(sys.modules, "dinomix_monai.__main__", raising=False)
        with pytest.raises(SystemExit) as end:
            runpy.run_module("dinomix_monai", run_name="__main__")
        return end.value.code

    return run


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    return make_phantom(tmp_path, cases=(2, 1, 1, 1), size=(32, 32, 24)).parent


def test_a_help_text_waits_for_no_large_package():
    packages = "{'matplotlib', 'monai', 'monailabel', 'nvflare', 'scipy', 'timm', 'torch'}"
    code = f"import sys, dinomix_monai.__main__; print(sorted({packages} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_version_tells_what_an_error_report_needs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dinomix_monai", "--version"])
    main()
    expected = rf"dinomix-monai \S+, monai {version('monai')}, torch \S+, Python {platform.python_version()}\n"
    assert re.fullmatch(expected, capsys.readouterr().out)


def test_check_finds_nothing_in_the_phantom(command, phantom, capsys):
    assert command("check", phantom, *SETTINGS) == 0
    assert capsys.readouterr().out == "No problem found.\n"


def test_init_lists_a_folder_and_checks_it(command, phantom, capsys):
    (phantom / "dataset.json").unlink()
    names = ",".join(f"organ {value}" for value in range(1, 14))
    assert command("init", phantom, "--labels", names, "--validation", 1, "--test", 1) == 0
    printed = capsys.readouterr().out
    assert f"{phantom} is images in images, label maps in labels: 5 scans of 5 patients." in printed
    assert f"{phantom / 'dataset.json'} is written. The check says:" in printed
    labels = json.loads((phantom / "dataset.json").read_text())["labels"]
    assert labels["13"] == "organ 13"


def test_check_prints_a_table_and_fails_on_errors(command, phantom, capsys):
    (phantom / "labels/phantom_002.nii").unlink()
    assert command("check", phantom, "--patch_size", "16,16,32", *SETTINGS[2:]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["severity", "file"],
        ["error", "labels/phantom_002.nii"],
        *(["warning", f"images/phantom_00{number}.nii"] for number in range(1, 6)),
    ]


def test_check_passes_with_warnings(command, phantom, capsys):
    assert command("check", phantom, "--datalist_file", "dataset_all_labels.json", *SETTINGS) == 0
    assert "dataset_all_labels.json  lists no unlabeled cases" in capsys.readouterr().out


def test_check_prints_one_json_object_for_machines(command, phantom, capsys):
    assert command("check", phantom, "--json", *SETTINGS) == 0
    assert json.loads(capsys.readouterr().out) == {"errors": 0, "warnings": 0, "findings": []}
    (phantom / "images/phantom_004.nii").unlink()
    assert command("check", phantom, "--json", "--intensity_window=-4000,4000") == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["errors"], printed["warnings"]) == (1, 0)
    assert printed["findings"] == [
        {
            "severity": "error",
            "file": "images/phantom_004.nii",
            "problem": "does not exist",
            "remedy": "Put the file there, or take the case out of the list.",
        }
    ]


def test_allow_names_what_is_new_in_the_list_of_a_kit(tmp_path, capsys):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "resources.json.default").write_text('{"class_allow_list": []}')
    allow(str(tmp_path))
    assert capsys.readouterr().out.splitlines()[-1] == "dinomix_monai."
    allow(str(tmp_path))
    assert capsys.readouterr().out == f"{tmp_path / 'local' / 'resources.json'} permits the job already.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("promote", "."), "Error: checkpoint must be a global model or the folder of a run that has one, got "),
        (("check", "DATA", "--jsn"), "Error: --jsn must be an option of this command, got a name that it does not hav"),
        (("compare", "nowhere", "nowhere"), "Error: "),
        (("prepare", "spleen", "RAW", "OUT"), "Error: "),
        (
            ("cache_tokens", "DATA", "--config_file", "a.json"),
            "Error: config_file must be a configuration of the bundle, got ",
        ),
        (
            ("plan", "--epoch", "3"),
            "Error: --epoch must be a setting, got a name that nothing in the configuration refe",
        ),
        (("plan", "--epochs", "0"), "Error: epochs must be a whole number >= 1, got 0.\n"),
        (
            ("label", ".", "--app", "OUT", "--settings", "a.json"),
            "Error: settings must be a configuration of the bundle",
        ),
        (("label", "nowhere", "--app", "OUT"), "Error: studies must be the folder of the scans, got nowhere, which is"),
        (("check", "DATA", "--patch_size", "1,2"), "Error: patch_size must have three numbers above 0, got (1, 2).\n"),
        (
            ("check", "DATA", "--intensity_window", "2,1"),
            "Error: intensity_window must be two intensities, the first one",
        ),
        (
            ("cache_tokens", "DATA", "--distillation_weight", "0"),
            "Error: config_file must have a distillation_weight above 0 and the token cache",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_message_without_a_traceback(monkeypatch, phantom, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    words = [{"DATA": str(phantom), "OUT": str(tmp_path / "out")}.get(word, word) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["dinomix_monai", *words])
    monkeypatch.delitem(sys.modules, "dinomix_monai.__main__", raising=False)
    with pytest.raises((ValueError, OSError)) as caught:
        runpy.run_module("dinomix_monai", run_name="__main__")
    capsys.readouterr()
    sys.excepthook(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    print(printed)
    assert printed.startswith(message)
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()
