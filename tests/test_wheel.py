"""What ``pip install`` gives works without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dinomix_monai.bundle import Bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package and nothing of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=300)
    return folder / "site"


def test_the_wheel_has_all_files_of_the_package_and_of_the_bundle(site: Path) -> None:
    package = ROOT / "dinomix_monai"
    names = {file.relative_to(package) for file in package.rglob("*") if file.is_file() and file.suffix != ".pyc"}
    installed = {file.relative_to(site / "dinomix_monai") for file in (site / "dinomix_monai").rglob("*.*")}
    assert names - installed == set()
    for name in ("configs", "docs"):
        source = ROOT / "bundle" / name
        for file in source.rglob("*.*"):
            copied = site / "dinomix_monai" / "bundle_files" / name / file.relative_to(source)
            assert copied.read_bytes() == file.read_bytes()


def test_an_installed_package_trains_and_segments_in_any_folder(site: Path, tmp_path: Path) -> None:
    def call(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    dinomix = str(site / "bin" / "dinomix")
    assert "bundle/configs/train.json" in call(dinomix, "bundle")
    small = ["--network_def#n_filters", "2", "--device", "cpu", "--amp", "False", "--distillation_weight", "0"]
    small += ["--spacing_mm", "[9,9,11]", "--patch_size", "[32,32,16]"]
    short = ["--epochs", "1", "--steps_per_epoch", "2", "--output_dir", "OUT"]
    call("-m", "monai.bundle", "run", "training", "--config_file", "bundle/configs/train.json", *short, *small)
    scan = tmp_path / "bundle" / "data" / "phantom" / "images" / "phantom_001.nii"
    printed = call(dinomix, "predict", "OUT", str(scan), "--device", "cpu")
    assert f"{tmp_path / 'OUT' / 'output' / 'phantom_001_seg.nii.gz'}: " in printed
    assert not [file for file in (site / "dinomix_monai" / "bundle_files").iterdir() if file.name == "data"]


def test_a_bundle_is_copied_once_and_without_what_runs_have_left(tmp_path: Path) -> None:
    config = Bundle.find().copy(tmp_path / "bundle")
    assert config.read_bytes() == (ROOT / "bundle" / "configs" / "train.json").read_bytes()
    assert {file.name for file in (tmp_path / "bundle").iterdir()} == {"LICENSE", "configs", "docs"}
    with pytest.raises(FileExistsError, match="folder must not be there yet, because nothing is replaced unasked"):
        Bundle.find().copy(tmp_path / "bundle")
