from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dinomix_monai.export as module
from dinomix_monai import load_model
from dinomix_monai.export import export_model

CLASSES = 14


@pytest.fixture
def bundle(trained_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained_bundle, tmp_path / "model")


@pytest.fixture
def scan(phantom: Path) -> Path:
    return next((phantom / "images").glob("*_006.nii*"))


def test_other_programs_get_the_same_network(bundle: Path, scan: Path) -> None:
    (script,) = export_model(bundle, scan, ["torchscript"])
    assert (script.path.name, script.different, script.voxels) == ("model.ts", 0, 40 * 40 * 28)
    patches = torch.rand(3, 1, 32, 32, 16)
    with torch.no_grad():
        expected = load_model(bundle, device="cpu", amp=False).network(patches).numpy()
    extra = {"metadata.json": ""}
    found = torch.jit.load(script.path, _extra_files=extra)(patches).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert json.loads(extra["metadata.json"])["network_data_format"]["outputs"]["pred"]["num_channels"] == CLASSES


def test_onnx_is_the_same_network(bundle: Path, scan: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    (graph,) = export_model(bundle, scan, ["onnx"])
    assert (graph.path.name, graph.different, graph.voxels) == ("model.onnx", 0, 40 * 40 * 28)
    patches = torch.rand(3, 1, 32, 32, 16)
    with torch.no_grad():
        expected = load_model(bundle, device="cpu", amp=False).network(patches).numpy()
    session = onnxruntime.InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["pred"], {"image": patches.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    (properties,) = onnx.load(graph.path).metadata_props
    assert json.loads(properties.value)["0"] == "background"


def test_nothing_is_replaced_unasked(bundle: Path, scan: Path) -> None:
    file = bundle / "models" / "model.ts"
    file.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"model\.ts yet.*--overwrite True"):
        export_model(bundle, scan, ["torchscript"])
    assert file.read_bytes() == b"mine"
    export_model(bundle, scan, ["torchscript"], overwrite=True)
    assert torch.jit.load(file) is not None


def test_a_file_that_segments_otherwise_is_not_kept(bundle: Path, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = module._READERS["torchscript"]

    def turned(content: bytes) -> Any:
        network = read(content)
        return lambda patches: network(patches).roll(1, dims=1)

    monkeypatch.setitem(module._READERS, "torchscript", turned)
    with pytest.raises(ValueError, match=r"torchscript must segment .* as the model does, got other labels in \d+ of"):
        export_model(bundle, scan, ["torchscript"])
    assert not (bundle / "models" / "model.ts").exists()


def _full_disk(**_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_cannot_be_is_refused(bundle: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"formats must be some of torchscript, onnx, got tensorrt\."):
        export_model(bundle, scan, ["tensorrt"])
    with pytest.raises(FileNotFoundError, match="bundle_root must be the output_dir of a training"):
        export_model(tmp_path, scan, ["torchscript"])
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", _full_disk)
        with pytest.raises(OSError, match=r"bundle_root must be a folder that can be written to, .*models \(No space"):
            export_model(bundle, tmp_path / "no scan", ["torchscript"])
    monkeypatch.setattr(module, "_ONNX_PACKAGES", ("json", "no_such_package"))
    with pytest.raises(RuntimeError, match=r"packages that are not installed: no_such_package\. Install dinomix-monai"):
        export_model(bundle, scan)
