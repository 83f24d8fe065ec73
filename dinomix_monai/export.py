"""A trained model as TorchScript and ONNX, for programs without this package."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.core.files import atomic_write, check_writable
from dinomix_monai.data import image_files
from dinomix_monai.prediction import TrainedModel
from dinomix_monai.volumes import Image

__all__ = ["FORMATS", "Exported", "export_model"]

FORMATS = {"torchscript": "model.ts", "onnx": "model.onnx"}
"""Formats, and the names of their files beside the model."""
# Of the voxels of a scan, so many may differ: other arithmetic decides ties in another way.
_MOST_DIFFERENT = 1e-4
_IMAGE, _PRED = "image", "pred"
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

_Network = Callable[[torch.Tensor], torch.Tensor]


class Exported(NamedTuple):
    """
    A network in another format, and how its answer compares.

    Args:
        path: its file.
        different: voxels of the scan that it labels otherwise than the model.
        voxels: voxels of the scan.
    """

    path: Path
    different: int
    voxels: int


def export_model(
    bundle_root: str | Path, scan: str | Path, formats: Sequence[str] = tuple(FORMATS), overwrite: bool = False
) -> list[Exported]:
    """
    Writes the network of a trained model in other formats, and proves on a scan that they segment alike.

    The network takes patches (B, num_channels, H, W, D) in [0, 1], of ``patch_size``, and gives logits (B, C, H, W, D);
    what the bundle's ``inference.json`` does before and after it is not part of it, nor is the teacher beside the
    model. In a TorchScript file the entry ``metadata.json`` has the bundle's metadata, as in those of ``monai.bundle
    ckpt_export``. A file that segments otherwise is not kept.

    Args:
        bundle_root: the bundle, the ``output_dir`` of a training.
        scan: see :meth:`TrainedModel.predict`.
        formats: some of ``torchscript`` and ``onnx``.
        overwrite: whether files that are there are replaced.

    Raises:
        FileExistsError: When a file is there.
        FileNotFoundError: When there is no such bundle or scan.
        ValueError: When a format is none, the scan is no scan, or a network segments it otherwise than the model.
        OSError: When the bundle cannot be written to, which is known before the scan is read.
        RuntimeError: When packages that ONNX needs are not installed.
    """
    if not formats or set(formats) - FORMATS.keys():
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {', '.join(formats) or 'none'}.")
    if "onnx" in formats and (missing := [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]):
        raise RuntimeError(
            f"The format onnx needs packages that are not installed: {', '.join(missing)}. Install "
            "dinomix-monai[onnx], or pass --formats torchscript."
        )
    # On the CPU and in single precision, where the files are compared.
    model = TrainedModel(bundle_root, device="cpu", amp=False, teacher_weights="none")
    paths = {name: model.root / "models" / FORMATS[name] for name in formats}
    if not overwrite and (there := [str(path) for path in paths.values() if path.exists()]):
        raise FileExistsError(
            f"models must not have {there[0]} yet, because nothing is replaced unasked. Pass --overwrite True."
        )
    check_writable(model.root / "models", "bundle_root")
    (case,) = image_files(scan, num_channels=model.num_channels)
    expected = _label_map(model, model.network, case[Keys.IMAGE])
    written = []
    for name, path in paths.items():
        content = _WRITERS[name](model)
        found = _label_map(model, _READERS[name](content), case[Keys.IMAGE])
        different = int((found != expected).sum())
        if different > _MOST_DIFFERENT * expected.size:
            raise ValueError(
                f"{name} must segment {scan} as the model does, got other labels in {different} of {expected.size} "
                f"voxels. {path.name} is not written."
            )
        with atomic_write(path) as file:
            file.write(content)
        written.append(Exported(path, different, expected.size))
    return written


def _label_map(model: TrainedModel, network: _Network, image: Image) -> np.ndarray:
    return convert_to_tensor(model.labeler(network)(image)[Keys.PRED], track_meta=False).cpu().numpy()


def _patch(model: TrainedModel) -> torch.Tensor:
    # Of two: a batch of one would be taken for a constant.
    return torch.rand(2, model.num_channels, *model.patch_size, generator=torch.Generator().manual_seed(0))


def _write_torchscript(model: TrainedModel) -> bytes:
    buffer = io.BytesIO()
    metadata = (model.root / "configs" / "metadata.json").read_text(encoding="utf-8")
    with _torchscript():
        torch.jit.save(torch.jit.trace(model.network, _patch(model)), buffer, {"metadata.json": metadata.encode()})
    return buffer.getvalue()


def _read_torchscript(content: bytes) -> _Network:
    with _torchscript():
        return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()


@contextmanager
def _torchscript() -> Iterator[None]:
    with warnings.catch_warnings():
        # It is deprecated, and what other programs read.
        warnings.filterwarnings("ignore", message="`torch.jit")
        yield


def _write_onnx(model: TrainedModel) -> bytes:
    import onnx

    with redirect_stdout(io.StringIO()):  # its progress
        program = torch.onnx.export(
            model.network,
            (_patch(model),),
            input_names=[_IMAGE],
            output_names=[_PRED],
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    proto = program.model_proto
    classes = json.dumps(dict(enumerate(model.class_names)))
    onnx.helper.set_model_props(proto, {"class_names": classes})
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _read_onnx(content: bytes) -> _Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def network(patches: torch.Tensor) -> torch.Tensor:
        # What MONAI knows of a patch is not part of it.
        values = convert_to_tensor(patches, track_meta=False).contiguous().numpy()
        return torch.from_numpy(session.run([_PRED], {_IMAGE: values})[0])

    return network


_WRITERS = {"torchscript": _write_torchscript, "onnx": _write_onnx}
_READERS = {"torchscript": _read_torchscript, "onnx": _read_onnx}
