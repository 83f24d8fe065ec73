"""What the frozen teacher sees, and what the student has learned of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn import functional as F

from dinomix_monai.core.keys import BatchKeys
from dinomix_monai.handlers.pictures import class_colors, new_figure, save_figure
from dinomix_monai.losses import FeatureDistillationLoss

__all__ = ["TeacherViewHandler"]


class TeacherViewHandler:
    """
    Draws one slice of a labeled volume as the frozen teacher sees it, and how the student comes to agree.

    Side by side: the slice with its ground truth; the teacher's tokens, their first three principal components as red,
    green and blue; how much each cell weighs in the loss; the cosine between student and teacher, before the training
    and after it. A teacher that sees organs gives each of them a color of its own. Cells without a token are white.

    Args:
        samples: labeled volumes with image, label and ``teacher_key``, in RAS order and of a size that the student
            takes; the first one is drawn.
        network: the student.
        distiller: see :class:`dinomix_monai.engines.FeatureDistiller`; its loss is a
            :class:`dinomix_monai.losses.FeatureDistillationLoss`.
        path: PNG to write.
        class_names: names by label value, background first.
        teacher_key: what the teacher looks at.
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
        """Attaches to start and end of the training."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Takes the cosines before the training, or before what is left of one that is resumed."""
        self._since = "cosine before" if getattr(engine.state, "resumed_from", None) is None else "cosine at resume"
        sample = self.samples[0]
        self._parts = {key: convert_to_tensor(sample[key])[None] for key in (Keys.IMAGE, Keys.LABEL, self.teacher_key)}
        self._before = self._agreement()[1]

    def __call__(self, engine: Engine) -> None:
        """Takes the cosines after the training, and draws."""
        tokens, after = self._agreement()
        label = self._parts[Keys.LABEL][0, 0].long()
        z = _slice_with_most_classes(label)
        layer = z * tokens.shape[-1] // label.shape[-1]
        tokens = tokens[..., layer]
        seen = tokens.any(dim=1)
        maps = {
            "teacher's tokens": _as_colors(tokens[0]),
            f"weight ({self.loss.weighting})": self.loss.weights(tokens, seen)[0],
            self._since: self._before[0, ..., layer],
            "cosine after": after[0, ..., layer],
        }
        for values in maps.values():
            values[~seen[0]] = torch.nan
        figure, axes = new_figure(13, 3.2, columns=1 + len(maps))
        self._draw_slice(axes[0], z)
        # Cells need not be as high as they are wide.
        rows, columns = label.shape[1] / tokens.shape[3], label.shape[0] / tokens.shape[2]
        aspect = rows / columns
        for ax, (title, values) in zip(axes[1:], maps.items()):
            is_cosine = title.startswith("cosine")
            limits = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"} if is_cosine else {"cmap": "magma"}
            shown = ax.imshow(_upright(values.cpu().numpy()), aspect=aspect, **limits)
            if values.ndim == 2:
                figure.colorbar(shown, ax=ax, fraction=0.05)
            ax.set_title(title + (f", mean {float(values.nanmean()):.2f}" if is_cosine else ""), fontsize="small")
            ax.set_axis_off()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, self.path)

    def _agreement(self) -> tuple[torch.Tensor, torch.Tensor]:
        device = next(self.network.parameters()).device
        image, volume = (self._parts[key].to(device) for key in (Keys.IMAGE, self.teacher_key))
        return self.distiller.agreement(self.network, image, volume)

    def _draw_slice(self, ax: Any, z: int) -> None:
        image, label = (self._parts[key][0, 0, ..., z].cpu().numpy() for key in (Keys.IMAGE, Keys.LABEL))
        ax.imshow(_upright(image), cmap="gray")
        ax.imshow(_upright(class_colors(len(self.class_names))[label.astype(int)]), interpolation="nearest")
        ax.set_title("slice and ground truth", fontsize="small")
        ax.set_axis_off()


def _slice_with_most_classes(label: torch.Tensor) -> int:
    """Of (H, W, D); among equals the one with most foreground."""
    slices = label.unbind(-1)
    return max(range(len(slices)), key=lambda z: (len(slices[z].unique()), int((slices[z] > 0).sum())))


def _as_colors(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (C, h, w) to (h, w, 3) in [0, 1]: their first three principal components, of the cells that have one."""
    cells = F.normalize(tokens.flatten(1).T.float(), dim=1)
    seen = cells.any(dim=1)
    components = torch.zeros(len(cells), 3, device=cells.device)
    if not seen.any():
        return components.unflatten(0, tokens.shape[1:])
    centered = cells[seen] - cells[seen].mean(dim=0)
    directions = torch.linalg.svd(centered, full_matrices=False)[2][:3]
    components[seen, : len(directions)] = centered @ directions.T
    low, high = components[seen].quantile(torch.tensor([0.02, 0.98], device=cells.device), dim=0)
    colors = ((components - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return colors.unflatten(0, tokens.shape[1:])


def _upright(plane: np.ndarray) -> np.ndarray:
    """A plane (R, A, ...) as radiologists look at it: the patient's right on the left, front on top."""
    return np.swapaxes(plane[::-1], 0, 1)[::-1]
