"""The MONAI bundle that a training leaves in its output folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from dinomix_monai.core.files import atomic_write, write_json
from dinomix_monai.core.text import by
from dinomix_monai.metrics import CaseScores, read_scores
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.models import read_class_names
from dinomix_monai.planning import PlannedSettings
from dinomix_monai.run import present_parser, read_configuration
from dinomix_monai.volumes import channel_windows

__all__ = ["TrainedBundle", "check_inference_settings", "check_trained_bundle", "note_other_weights"]

# What a training and the inference by its model share, by the id in either configuration.
_SCALING, _WINDOW = "scale_intensity", "intensity_window"
_SHARED = {_SCALING: _SCALING, "network_def": "network_def", "validate#inferer": "inferer#inferer"}
# How a configuration asks for a setting of :class:`PlannedSettings`.
_PLANNED = "$@plan("
_GRID = ("spacing_mm", "patch_size")
# With the overlays that go on with a training; a bundle need not have all of it.
_COPIED = (
    *("configs/evaluate.json", "configs/resume.json"),
    *("LICENSE", "docs/data_license.txt", "docs/meta_schema.json"),
)
_INFERENCE, _METADATA, _CARD = "configs/inference.json", "configs/metadata.json", "docs/README.md"
_FINETUNE = "configs/finetune.json"
_PERFORMANCE, _COMMANDS = "## Performance\n\n", "## Commands\n\n"
# What inference.json of the sources has for overlays alone.
_OF_TRAINING = ("distiller", "ema_teacher")
_RESUMED = "resume_handler"
# By which the configuration of a trained model is told from the one that the sources have.
_WRITTEN = "Segments scans as the training has seen them; label maps come back on each scan's own grid."


class TrainedBundle:
    """
    Writes a bundle with the numbers of a training, so that whoever has the folder needs no overlay any more.

    The folder gets ``configs/inference.json`` and ``configs/metadata.json`` with the classes, the voxel size, the
    patch, the intensities and the network of the training, ``configs/train.json`` as it ran, with the overlays for
    evaluation, resuming and fine-tuning, and a model card, ``docs/README.md``. They are written with each model, so the
    model and its numbers are never those of two trainings; scores come to them at the end. Where the folder is the
    bundle whose configuration runs, nothing is written, because its configs are the sources; nor where that bundle has
    no ``inference.json``, as at a site that MONAI's ``MonaiAlgo`` runs.

    Args:
        output_dir: folder of the training.
        bundle_root: folder of the bundle whose configuration runs.
        spacing_mm: voxel size that the network works on.
        patch_size: voxels of a patch.
        class_names: names by label value, background first.
        channel_names: names of the channels of an image.
        facts: what the report says of the run: ``cases``, ``teacher``, ``protocol``, ``seed`` and ``steps``.
        intensity_window: intensities that are mapped to [0, 1], or a list with those of each channel; ``None`` where
            each image is scaled by its own.
        plan: what the configuration asks for settings, in whose place the written configs have numbers.
        model_file: file of the model; ``models/model.pt`` in the folder if not given.
        rules: rules that the report scores by; the card has the first.
        has_scores: whether there is a report, which a training without validation cases has not.
        data_license: license and source of the data, for the model card; ``None`` if they are not stated.
        config: the configuration of the run; that which is running if not given.

    Raises:
        ValueError: When no configuration is running and none is given.
    """

    def __init__(
        self,
        output_dir: str | Path,
        bundle_root: str | Path,
        spacing_mm: Sequence[float],
        patch_size: Sequence[int],
        class_names: Sequence[str],
        facts: Mapping[str, Any],
        channel_names: Sequence[str] = ("image",),
        intensity_window: Sequence | None = None,
        plan: PlannedSettings | None = None,
        model_file: str | Path | None = None,
        rules: Sequence[str] = ("sound",),
        has_scores: bool = True,
        data_license: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if config is None:
            if (parser := present_parser()) is None:
                raise ValueError("config must be given where no configuration of a bundle is running, got None.")
            config = parser.get()
        # As it is now, before anything that runs can change it.
        self.config: dict[str, Any] = json.loads(json.dumps(config, default=str))
        # Without `..`, so that what is printed shows where a path leads.
        self.root, self.source = (Path(os.path.abspath(Path(path).expanduser())) for path in (output_dir, bundle_root))
        self.plan = plan
        self.spacing_mm, self.patch_size = [float(size) for size in spacing_mm], [int(side) for side in patch_size]
        self.channel_names = list(channel_names)
        self.windows = channel_windows(intensity_window, len(self.channel_names))
        self.class_names = list(class_names)
        self.facts = {**facts, "teacher": _without_folder(str(facts.get("teacher", "none")))}
        model = Path(os.path.abspath(Path(model_file or self.root / "models" / "model.pt").expanduser()))
        is_inside = model.is_relative_to(self.root)
        # One in the folder is found there when the folder is moved.
        self.model_file = (
            f"$str(@bundle_root) + '/{model.relative_to(self.root).as_posix()}'" if is_inside else str(model)
        )
        self.rule = rules[0]
        self.has_scores = has_scores
        self.data_license = data_license

    @property
    def is_written(self) -> bool:
        """Whether there are sources, and the folder is another one."""
        has_sources = (self.source / _INFERENCE).is_file()
        return has_sources and self.root.resolve() != self.source.resolve()

    @property
    def inference_file(self) -> Path:
        """Configuration by which the model segments scans."""
        return self.root / _INFERENCE

    def write(self) -> None:
        """
        Writes the configs, and a model card without scores.

        Raises:
            OSError: When the folder cannot be written to.
        """
        if not self.is_written:
            return
        configs = self.source / "configs"
        write_json(self.inference_file, self._inference(read_configuration(configs / "inference.json")))
        if _RESUMED not in self.config:
            # The folder may be moved.
            own = {"bundle_root": {"_target_": "dinomix_monai.run.bundle_root"}, "output_dir": "@bundle_root"}
            write_json(self.root / "configs" / "train.json", {**self._trained().get(), **own})
        for name in _COPIED:
            if (self.source / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.source / name, self.root / name)
        if (self.source / _FINETUNE).is_file():
            # Goes on from this model, wherever the next one is written to.
            start = {"start_file": self.model_file}
            write_json(self.root / _FINETUNE, {**read_configuration(self.source / _FINETUNE), **start})
        self._write_card(None)

    def finish(self) -> None:
        """
        Adds the scores of the report, and prints how scans are segmented by this bundle.

        Raises:
            FileNotFoundError: When there should be scores and are none.
        """
        if not self.is_written:
            return
        self._write_card(read_scores(self.root, self.rule) if self.has_scores else None)
        print(f"A MONAI bundle of this model is in {self.root}. To segment scans:\n  {_command(self.inference_file)}")

    def _inference(self, template: dict[str, Any]) -> dict[str, Any]:
        own = self._trained()
        # A transform of the user's own needs no window.
        window = {_WINDOW: own[_WINDOW]} if f"@{_WINDOW}" in str(own[_SCALING]) else {}
        left_out = {_WINDOW, *_OF_TRAINING}
        result = ConfigParser({name: value for name, value in template.items() if name not in left_out} | window)
        result.update(
            {
                "_desc_": _WRITTEN,
                "model_file": self.model_file,
                "dataset_dir": "$str(@bundle_root) + '/data'",
                "num_channels": len(self.channel_names),
                **dict(zip(_GRID, (self.spacing_mm, self.patch_size))),
                **{theirs: own[ours] for ours, theirs in _SHARED.items()},
            }
        )
        return result.get()

    def _trained(self) -> ConfigParser:
        """The configuration of the run, with the numbers that were planned."""
        parser = ConfigParser(json.loads(json.dumps(self.config)))
        for name, value in (self.plan.asked if self.plan else {}).items():
            if str(parser.get(name)).startswith(_PLANNED):
                parser[name] = value
        return parser

    def _write_card(self, scores: CaseScores | None) -> None:
        metadata = self._metadata(read_configuration(self.source / _METADATA), scores)
        write_json(self.root / _METADATA, metadata)
        with atomic_write(self.root / _CARD) as file:
            file.write(self._card(scores).encode())

    @property
    def _intensities(self) -> str:
        texts = [
            "each image is scaled by its own intensities"
            if window is None
            else "intensities from {:g} to {:g}, as in CT in Hounsfield units".format(*window)
            for window in self.windows
        ]
        if len(texts) == 1:
            return texts[0]
        return "; ".join(f"{name}: {text}" for name, text in zip(self.channel_names, texts))

    @property
    def _files_of_channels(self) -> str:
        if len(self.channel_names) == 1:
            return ""
        names = ", ".join(f"`NAME_{number:04}.nii.gz` for {name}" for number, name in enumerate(self.channel_names))
        return f"\nEach channel of an image is a file: {names}.\n"

    def _metadata(self, template: dict[str, Any], scores: CaseScores | None) -> dict[str, Any]:
        organs = ", ".join(self.class_names[1:])
        result = json.loads(json.dumps(template))
        result["changelog"] = {template["version"]: "written by the training"}
        result["task"] = f"Segmentation of {organs} in 3D scans"
        result["description"] = (
            f"Segments {organs}. Trained by DINO-Mix for MONAI: {self.facts.get('cases')} cases, "
            f"{self.facts.get('steps')} steps, teacher: {self.facts.get('teacher')}."
        )
        result["data_source"] = self.data_license or "not stated"
        number = len(self.channel_names)
        kind = "single channel data" if number == 1 else f"{number} channels, a file for each"
        result["image_classes"] = f"{kind}, {self._intensities}"
        result["label_classes"] = "single channel data, whole numbers as in channel_def of network_data_format"
        result["eval_metrics"] = (
            {} if scores is None else {"validation_mean_dice": round(float(nan_mean(scores.mean()[0], axis=0)), 4)}
        )
        channels = result["network_data_format"]
        image, pred = channels["inputs"]["image"], channels["outputs"]["pred"]
        image["spatial_shape"] = pred["spatial_shape"] = self.patch_size
        are_ct = all(window is not None for window in self.windows)
        image["format"], image["modality"] = ("hounsfield", "CT") if are_ct else ("magnitude", "n/a")
        image["num_channels"] = number
        image["channel_def"] = {str(channel): name for channel, name in enumerate(self.channel_names)}
        pred["num_channels"] = len(self.class_names)
        pred["channel_def"] = {str(value): name for value, name in enumerate(self.class_names)}
        return result

    def _card(self, scores: CaseScores | None) -> str:
        facts = self.facts
        protocol, teacher = facts.get("protocol"), facts["teacher"]
        of_teacher = (
            "" if teacher == "none" else " Its weights are not included, and come under a license of their own."
        )
        performance = (
            "There are no scores: the training has not ended, or had no validation cases."
            if scores is None
            else f"On {len(scores.cases)} validation cases, which have chosen the model:\n\n```\n{scores.table()}\n```"
        )
        return f"""# Segmentation of {len(self.class_names) - 1} classes by DINO-Mix

A model of a training by DINO-Mix for MONAI, as a MONAI bundle.

## Data

- Cases: {facts.get("cases")}.
- Protocol: {protocol if protocol else "none that is published"}.
- Classes: {", ".join(f"{value} {name}" for value, name in enumerate(self.class_names))}.
- Channels of an image: {", ".join(self.channel_names)}.
- License and source: {self.data_license or "not stated by whoever has trained the model"}.

## Training configuration

`configs/train.json` has all of it.

- Voxels of {by(self.spacing_mm)} mm, patches of {by(self.patch_size)} voxels; {self._intensities}.
- {facts.get("steps")} steps, seed {facts.get("seed")}.
- Frozen teacher: {teacher}.{of_teacher}

{_PERFORMANCE}{performance}

{_COMMANDS}From this folder, with the package `dinomix-monai` installed:

```
{_command("configs/inference.json")}
```
{self._files_of_channels}
If `models/model.probe.pt` is there, the frozen teacher is asked beside the model: give its weights by
`--teacher_weights FILE`, or `--teacher_weights none` for the model alone.

## Limitations

- Research only: not for diagnosis, treatment or any other clinical decision.
- Scans of other scanners, protocols or patients than those of the training may be segmented worse than the scores say.
- A bundle's config is a program: use only bundles of people whose scripts you would run.
"""


def check_inference_settings(model_file: str | Path, spacing_mm: Sequence[float], patch_size: Sequence[int]) -> None:
    """
    Makes sure that a model sees scans as in its training, where the bundle that it belongs to says how that was.

    Weights fit any voxel size, so nothing else would tell.

    Args:
        model_file: the model, ``models/model.pt`` of its bundle.
        spacing_mm: voxel size of the configuration.
        patch_size: patch of the configuration.

    Raises:
        ValueError: When they are others than those of the model's own bundle.
    """
    if (root := _bundle_of(model_file)) is None:
        return
    trained = read_configuration(root / _INFERENCE)
    for name, value in zip(_GRID, (spacing_mm, patch_size)):
        if [*map(float, trained[name])] != [*map(float, value)]:
            raise ValueError(
                f"{name} must be that of the model's training, {trained[name]}, got {list(value)} for {model_file}. "
                f"Pass --config_file {root / _INFERENCE}, which has all of its settings."
            )


def check_trained_bundle(model_file: str | Path, class_names: Sequence[str], settings: Mapping[str, Any]) -> None:
    """
    Makes sure that weights of another training may take the place of a model, where that belongs to a training.

    Args:
        model_file: the model, ``models/model.pt`` of its bundle.
        class_names: classes of the weights by label value, background first.
        settings: what is known of the settings that they were trained with, by their ids.

    Raises:
        ValueError: When they are others than those of the bundle.
    """
    if (root := _bundle_of(model_file)) is None:
        return
    own_names, trained = read_class_names(model_file), read_configuration(root / _INFERENCE)
    if list(class_names) != own_names:
        raise ValueError(
            f"The bundle must have the classes of the weights, {', '.join(class_names)}, got {root} with "
            f"{', '.join(own_names)}. Its configs and its card describe these. Promote to another bundle."
        )
    for name in (*_GRID, _WINDOW):
        if name in settings and name in trained and settings[name] != trained[name]:
            raise ValueError(
                f"The bundle must have the {name} that the weights were trained with, {settings[name]}, got {root} "
                f"with {trained[name]}. Promote to a bundle of these settings."
            )


def note_other_weights(model_file: str | Path, origin: str) -> None:
    """
    Takes the scores of a training from its bundle's metadata and card, once its model was replaced.

    Nothing is done where the model is not that of a training's bundle.

    Args:
        model_file: the model, ``models/model.pt`` of its bundle.
        origin: what the new weights are, as a noun.

    Raises:
        OSError: When the files cannot be written.
    """
    if (root := _bundle_of(model_file)) is None:
        return
    metadata = read_configuration(root / _METADATA)
    write_json(root / _METADATA, {**metadata, "eval_metrics": {}, "changelog": {metadata["version"]: f"the {origin}"}})
    card = (root / _CARD).read_text(encoding="utf-8")
    text = f"There are no scores: the weights are the {origin}. Data and training configuration above are those of a "
    text += "training before, which they have replaced."
    before, _, after = card.partition(_PERFORMANCE)
    with atomic_write(root / _CARD) as file:
        file.write(f"{before}{_PERFORMANCE}{text}\n\n{_COMMANDS}{after.partition(_COMMANDS)[2]}".encode())


def _bundle_of(model_file: str | Path) -> Path | None:
    """The bundle of a training that a model belongs to; ``None`` where it belongs to none."""
    root = Path(model_file).expanduser().absolute().parent.parent
    file = root / _INFERENCE
    return root if file.is_file() and read_configuration(file).get("_desc_") == _WRITTEN else None


def _command(config_file: str | Path) -> str:
    file = shlex.quote(str(config_file))
    return f"python -m monai.bundle run inferring --config_file {file} --dataset_dir DIR_OR_FILE"


def _without_folder(teacher: str) -> str:
    """A description of a teacher without the folder of its weights, which is nobody's business elsewhere."""
    origin = re.search("weights from (.*), fingerprint", teacher)
    if origin is None or not Path(origin[1]).is_file():
        return teacher
    return teacher.replace(origin[1], Path(origin[1]).name)
