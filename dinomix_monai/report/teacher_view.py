"""The picture of what the frozen teacher sees, and of what the student has learned of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from dinomix_monai.core.keys import BatchKeys
from dinomix_monai.losses import FeatureDistillationLoss
from dinomix_monai.report.pictures import (
    class_colors,
    new_figure,
    principal_component_colors,
    radiological,
    save_figure,
    slice_with_most_classes,
)

__all__ = ["TeacherViewHandler"]


class TeacherViewHandler:
    """
    Draws one slice of a labeled volume as the frozen teacher sees it, and how the student comes to agree.

    Side by side stand

    - the slice with its ground truth,
    - the teacher's tokens: their first three principal components as red, green and blue,
    - the weight of each cell in the loss,
    - the cosine between student and teacher in each cell, before the training and after it.

    A teacher that sees organs gives each of them a color of its own. Cells without a token are white.

    Args:
        samples: labeled volumes with image, label and ``teacher_key``, in RAS order and of a size that the student
            takes; the first one is drawn.
        network: the student.
        distiller: see :class:`dinomix_monai.engines.FeatureDistiller`; its loss is a
            :class:`dinomix_monai.losses.FeatureDistillationLoss`.
        path: PNG to write.
        class_names: names by label value, background first.
        teacher_key: key of the volume that the teacher looks at.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[str, Any]],
        network: nn.Module,
        distiller: Any,
        path: str | Path,
        class_names: Sequence[str],
        teacher_key: str = BatchKeys.IMAGE,
    ) -> None:
        self.samples, self.network, self.distiller = samples, network, distiller
        self.loss: FeatureDistillationLoss = distiller.loss_function
        self.path, self.class_names, self.teacher_key = Path(path), list(class_names), teacher_key

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to start and end of the training."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Computes the cosines before the training, or before what is left of one that is resumed."""
        is_resumed = getattr(engine.state, "resumed_from", None) is not None
        self._title_before = "cosine at resume" if is_resumed else "cosine before"
        sample = self.samples[0]
        self._volumes = {
            key: convert_to_tensor(sample[key])[None] for key in (Keys.IMAGE, Keys.LABEL, self.teacher_key)
        }
        label = self._volumes[Keys.LABEL]
        # Where nobody has drawn, as background.
        self._volumes[Keys.LABEL] = label.where(label < len(self.class_names), 0)
        self._cosine_before = self._tokens_and_cosine()[1]

    def __call__(self, engine: Engine) -> None:
        """Computes the cosines after the training, and draws the picture."""
        tokens, cosine_after = self._tokens_and_cosine()
        label = self._volumes[Keys.LABEL][0, 0].long()
        z = slice_with_most_classes(label.numpy(force=True), axis=2)
        layer = z * tokens.shape[-1] // label.shape[-1]
        tokens = tokens[..., layer]
        has_token = tokens.any(dim=1)
        maps = {
            "teacher's tokens": principal_component_colors(tokens[0]),
            f"weight ({self.loss.weighting})": self.loss.weights(tokens, has_token)[0],
            self._title_before: self._cosine_before[0, ..., layer],
            "cosine after": cosine_after[0, ..., layer],
        }
        for values in maps.values():
            values[~has_token[0]] = torch.nan
        figure, axes = new_figure(13, 3.2, columns=1 + len(maps))
        self._draw_slice(axes[0], z)
        # Cells need not be as high as they are wide.
        rows, columns = label.shape[1] / tokens.shape[3], label.shape[0] / tokens.shape[2]
        aspect = rows / columns
        for ax, (title, values) in zip(axes[1:], maps.items()):
            is_cosine = title.startswith("cosine")
            limits = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"} if is_cosine else {"cmap": "magma"}
            shown = ax.imshow(radiological(values.cpu().numpy()), aspect=aspect, **limits)
            if values.ndim == 2:
                figure.colorbar(shown, ax=ax, fraction=0.05)
            ax.set_title(title + (f", mean {float(values.nanmean()):.2f}" if is_cosine else ""), fontsize="small")
            ax.set_axis_off()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, self.path)

    def _tokens_and_cosine(self) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(self.network.parameters()).device
        image, volume = (self._volumes[key].to(device) for key in (Keys.IMAGE, self.teacher_key))
        return self.distiller.agreement(self.network, image, volume)

    def _draw_slice(self, ax: Any, z: int) -> None:
        image, label = (self._volumes[key][0, 0, ..., z].cpu().numpy() for key in (Keys.IMAGE, Keys.LABEL))
        ax.imshow(radiological(image), cmap="gray")
        ax.imshow(radiological(class_colors(len(self.class_names))[label.astype(int)]), interpolation="nearest")
        ax.set_title("slice and ground truth", fontsize="small")
        ax.set_axis_off()
