"""Segmentation of a scan for an annotator."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import SaveImaged
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.transform.writer import Writer

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.first_answer import FirstAnswer, Undecided
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.models import load_model
from dinomix_monai.report import class_colors
from dinomix_monai.volumes import VolumeError, is_nifti_name, label_volume, open_volume, read_geometry, write_volume

__all__ = ["DinoMixInferTask"]

_EXTENSION = re.compile(r"(\.[A-Za-z0-9]+)+")


class DinoMixInferTask(BasicInferTask):
    """
    The bundle's ``inference.json`` behind MONAI Label's ``/infer``.

    The label map is uint8 and has the shape of the scan and its place, see :func:`dinomix_monai.volumes.label_volume`.
    What may be wrong with the scan stands among the answer's parameters under ``warnings``. A model that a training has
    put in its place is used from the next request on. Without a model the teacher's probe of the first labels answers;
    without these or a teacher it says so, and MONAI Label would answer with random weights.

    Args:
        folder: folder of the app.
        first_answer: segments as long as there is no model.
    """

    def __init__(self, folder: AppFolder, first_answer: FirstAnswer) -> None:
        self.folder, self.first_answer = folder, first_answer
        self._parsers: dict[str, tuple[ConfigParser, int]] = {}
        self._inferers: dict[str, tuple[Inferer, int]] = {}
        names = folder.class_names
        super().__init__(
            path=str(folder.model_file),
            network=None,
            type=InferType.SEGMENTATION,
            labels={name: value for value, name in enumerate(names) if value > 0},
            dimension=3,
            description=folder.metadata["description"],
        )
        self.label_colors = {
            name: [round(255 * part) for part in color[:3]]
            for name, color in zip(names[1:], class_colors(len(names))[1:])
        }

    def info(self) -> dict[str, Any]:
        """What clients are told, the color of each label included."""
        return {**super().info(), "label_colors": self.label_colors}

    def is_valid(self) -> bool:
        """Always: an app without a model is there to get one."""
        return True

    def __call__(self, request: Mapping[str, Any], callbacks: Any = None) -> tuple[str | None, dict[str, Any]]:
        """
        Segments a scan.

        Args:
            request: MONAI Label's; ``image`` is the path of the scan.
            callbacks: see ``BasicInferTask``.

        Returns:
            Path of the label map, and what clients are told about it.

        Raises:
            Refusal: When there is no model yet, it does not fit the app, the scan is damaged or its header contradicts
                itself, or ``result_extension`` is no extension.
        """
        extension = request.get("result_extension")
        if extension and not _EXTENSION.fullmatch(extension):
            raise Refusal(f"result_extension must be an extension such as .nii.gz, got {extension!r}.")
        doubts = _doubts(request["image"])
        if not self.folder.model_file.is_file():
            doubts.append("There is no model yet: this is what the frozen teacher makes of the first labels.")
        path, result = super().__call__(request, callbacks)
        return path, {**result, "warnings": doubts}

    def pre_transforms(self, data: Mapping[str, Any] | None = None) -> Sequence[Callable]:
        """The bundle's ``preprocessing``."""
        return self._parsed("preprocessing", data).transforms

    def inferer(self, data: Mapping[str, Any] | None = None) -> Inferer:
        """The bundle's ``inferer``, with the probe of the current model."""
        device, stamp = str((data or {}).get("device", "cpu")), self.folder.model_stamp
        if not self.folder.model_file.is_file():
            return self.first_answer.inferer(device)
        if device not in self._inferers or self._inferers[device][1] != stamp:
            try:
                inferer = self.folder.bundle.parser("inference", device=device).get_parsed_content("inferer")
            except RuntimeError as error:  # as MONAI wraps it
                raise Refusal(f"The model's teacher cannot be asked. {error.__cause__ or error}", 409) from error
            self._inferers[device] = inferer, stamp
        return self._inferers[device][0]

    def post_transforms(self, data: Mapping[str, Any] | None = None) -> Sequence[Callable]:
        """The bundle's ``postprocessing``, up to where MONAI Label writes the file."""
        transforms = self._parsed("postprocessing", data).transforms
        return [transform for transform in transforms if not isinstance(transform, SaveImaged)]

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[Any, Any]:
        """Writes the label map as uint8, as NIfTI in the very place of the scan, and names the colors."""
        label = data[self.output_label_key]
        array, affine = label.array[0].astype(np.uint8), np.asarray(label.affine, dtype=float)
        extension = extension or data.get("result_extension") or _own_extension(data["image_path"])
        result = {**data.get(self.output_json_key, {}), "label_colors": self.label_colors}
        if extension in (".nii", ".nii.gz"):
            # MONAI Label's writers rotate by way of quaternions, or take the first axis for channels.
            with NamedTemporaryFile(suffix=extension, delete=False) as file:
                write_volume(label_volume(array, affine, label.meta), file.name)
            return file.name, result
        plain = {self.output_label_key: array, f"{self.output_label_key}_meta_dict": {"affine": affine}}
        options = {"result_extension": extension, "result_dtype": np.uint8}
        path, _ = Writer(label=self.output_label_key)({**data, **plain, **options})
        return path, result

    def _get_network(self, device: str, data: Mapping[str, Any] | None) -> Any:
        path = Path(self.folder.model_file)
        if not path.is_file():
            return Undecided(len(self.folder.class_names))
        changed = path.stat().st_mtime_ns
        network, of = self._networks.get(device, (None, None))
        if of != changed:
            try:
                network = load_model(self._parsed("network", data), path).eval()
            except ValueError as error:
                raise Refusal(f"The model does not fit the app. {error}", 409) from error
            self._networks[device] = network, changed
        return network

    def _parsed(self, name: str, data: Mapping[str, Any] | None) -> Any:
        # One for each device, since what inverts the preprocessing must be the objects that preprocessed.
        device, stamp = str((data or {}).get("device", "cpu")), self.folder.settings_file.stat().st_mtime_ns
        if device not in self._parsers or self._parsers[device][1] != stamp:
            self._parsers[device] = self.folder.bundle.parser("inference", device=device), stamp
        return self._parsers[device][0].get_parsed_content(name)


def _doubts(image: str) -> list[str]:
    """What may be wrong with a scan, in sentences."""
    if not is_nifti_name(image):
        return []
    try:
        doubt = read_geometry(open_volume(image).header).doubt
    except VolumeError as error:
        raise Refusal(str(error.of(Path(image).name))) from error
    return [] if doubt is None else [f"{Path(image).name} {'. '.join(doubt)}"]


def _own_extension(path: str) -> str:
    """That of a file which may have more dots in its name; a series of DICOM files has none and becomes a NIfTI."""
    known = (".nii.gz", ".nii", ".nrrd")
    return next((extension for extension in known if path.lower().endswith(extension)), ".nii.gz")
