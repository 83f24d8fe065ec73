"""What an evaluation leaves behind: a table, a CSV file, pictures and a page."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import Workflow
from monai.transforms import Orientation
from monai.utils import convert_to_tensor, ensure_tuple
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.data import OriginalScans
from dinomix_monai.handlers.pictures import class_colors, new_figure, save_figure
from dinomix_monai.keys import MetricKeys
from dinomix_monai.metrics import CaseScores, score_rule, write_scores

__all__ = ["ReportHandler"]


class ReportHandler:
    """
    Scores each case of an evaluator, prints a table for each rule, and writes ``metrics.csv`` and ``report/``.

    ``report/`` has the Dice of each class, the training curves if there is a ``history.csv``, three orthogonal slices
    of the worst and the median case, and ``index.html`` with all of it. Predictions and labels must be label maps when
    the iteration has completed, that is, ``postprocessing`` has taken the argmax. Pictures go by the first rule.

    Args:
        class_names: names by label value, background first.
        output_dir: folder for ``metrics.csv`` and ``report/``.
        rules: names of the rules to score by, as ``score_rule`` knows them.
        originals: the scans that the data set was made of, for rules that score there; ``None`` for the files' grids.
        title: what was evaluated, for the headings.
        notes: sentences for the report, such as which teacher it was.
        written: other files of the run to list with these, by what they are; those that do not exist are left out.
        pictures: files in ``report/`` that others draw, to show on the page; those that do not exist are left out.

    Raises:
        TypeError: When an image is not a ``MetaTensor`` and so has no spacing.
        ValueError: When there is no such rule, none at all, or the evaluation had no case.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        output_dir: str | Path,
        rules: Sequence[str] | str = "sound",
        originals: OriginalScans | None = None,
        title: str = "Evaluation",
        notes: Sequence[str] | str = (),
        written: dict[str, str] | None = None,
        pictures: Sequence[str] = (),
    ) -> None:
        self.class_names = list(class_names)
        self.output_dir = Path(output_dir)
        self.rules = [score_rule(name) for name in ensure_tuple(rules)]
        if not self.rules:
            raise ValueError("rules must name at least one rule to score by, got none.")
        self.originals = originals
        self.title = title
        self.notes = ensure_tuple(notes)
        self.written = dict(written or {})
        self.pictures = tuple(pictures)

    def attach(self, engine: Engine) -> None:
        """Attaches to start, cases and end of an evaluation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self)

    def _start(self) -> None:
        self.scores = [
            CaseScores(self.class_names, rule, grid="scan" if self.originals and rule.on_scans else "file")
            for rule in self.rules
        ]
        self._views: list[list[_View]] = []

    def _score(self, engine: Workflow) -> None:
        for output in engine.state.output:
            image = output[Keys.IMAGE]
            if not isinstance(image, MetaTensor):
                raise TypeError(
                    f"{Keys.IMAGE} must be a MetaTensor, whose affine tells the spacing, got {type(image).__name__}."
                )
            name = Path(image.meta.get("filename_or_obj", f"case {len(self._views) + 1}")).name
            prediction, label = (convert_to_tensor(output[key], track_meta=False) for key in (Keys.PRED, Keys.LABEL))
            spacing_mm = affine_to_spacing(image.affine, r=label.ndim - 1).tolist()
            maps: dict[str, Any] = {"file": (prediction, label, spacing_mm)}
            if self.originals is not None:
                maps["scan"] = self.originals(name, prediction)
            for scores in self.scores:
                scores.add(name, *maps[scores.grid])
            self._views.append(_orthogonal_views(image, prediction, label))

    def __call__(self, engine: Engine) -> None:
        """Prints the tables and writes the files."""
        scores, metric = self.scores[0], self.rules[0].metrics[0]
        if not scores.cases:
            raise ValueError("The evaluation must have at least one case to report, got none.")
        folder = self.output_dir / "report"
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, str | Path] = {"scores per case and class": write_scores(self.output_dir, self.scores)}
        dice = [np.nanmean(case[0]) if np.isfinite(case[0]).any() else math.nan for case in scores.scores]
        # A case without any class has no score and stands for nothing, unless there is no other.
        order = [i for i in np.argsort(dice) if not math.isnan(dice[i])] or [0]
        chosen = {"worst": order[0], "median": order[len(order) // 2]}
        made = [self._draw_bars(folder / "dice.png")]
        made += [self._draw_curves(folder / "curves.png")] if (self.output_dir / "history.csv").is_file() else []
        for kind, index in chosen.items():
            caption = f"{kind} case, {scores.cases[index]}: mean {metric.heading} {dice[index]:.{metric.decimals}f}"
            made.append(self._draw_case(folder / f"{kind}_case.png", self._views[index], caption))
        made += [folder / name for name in self.pictures if (folder / name).is_file()]
        (folder / "index.html").write_text(self._page(made), encoding="utf-8")
        written["report"] = folder / "index.html"
        print(f"\n{self.title}")
        for one in self.scores:
            print(f"{one.table()}\n")
        for note in self.notes:
            print(note)
        print("Written:")
        for what, path in (*self.written.items(), *written.items()):
            if Path(path).exists():
                print(f"  {path}  ({what})")

    def _draw_bars(self, path: Path) -> Path:
        names, scores, rule = self.class_names[1:], self.scores[0], self.rules[0]
        figure, axes = new_figure(7, 0.3 * len(names) + 1)
        axes.barh(names, np.nan_to_num(scores.mean()[0]), color="#4477aa")
        points = np.stack(scores.scores)[:, 0]
        for row, values in enumerate(points.T):
            axes.plot(values, np.full(len(values), row), ".", color="black", markersize=3)
        axes.invert_yaxis()
        label = f"{rule.metrics[0].heading} by the {rule.name} rule (bar: mean, points: cases)"
        axes.set(xlim=(0, rule.full_dice), xlabel=label)
        return save_figure(figure, path)

    def _draw_curves(self, path: Path) -> Path:
        with (self.output_dir / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        figure, axes = new_figure(7, 3.5)
        right = axes.twinx()
        for column in rows[0] if rows else ():
            points = [(int(row["epoch"]), float(row[column])) for row in rows if row[column]]
            if column != "epoch" and points:
                is_metric = column == MetricKeys.KEY
                target = right if is_metric else axes
                target.plot(*zip(*points), "o-k" if is_metric else "-", markersize=3, label=column)
        axes.set(xlabel="epoch", ylabel="loss")
        right.set(ylabel=str(MetricKeys.KEY), ylim=(0, 1))
        handles = axes.get_legend_handles_labels(), right.get_legend_handles_labels()
        axes.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="center right", fontsize="small")
        return save_figure(figure, path)

    def _draw_case(self, path: Path, views: list[_View], caption: str) -> Path:
        figure, axes = new_figure(9, 7, rows=2, columns=len(views))
        colors = class_colors(len(self.class_names))
        for column, view in enumerate(views):
            for row, (name, classes) in enumerate((("prediction", view.prediction), ("ground truth", view.label))):
                ax = np.reshape(axes, (2, -1))[row][column]
                ax.imshow(view.image, cmap="gray", aspect=view.aspect)
                ax.imshow(colors[classes.astype(int)], aspect=view.aspect, interpolation="nearest")
                ax.set_axis_off()
                ax.set_title(name if column == 0 else "", fontsize="small")
        # Imported here, because it takes a second and only an evaluation needs it.
        from matplotlib.patches import Patch

        marks = [Patch(color=color[:3], label=name) for color, name in zip(colors[1:], self.class_names[1:])]
        figure.legend(handles=marks, loc="outside lower center", ncols=5, fontsize="x-small", frameon=False)
        figure.suptitle(caption, fontsize="medium")
        return save_figure(figure, path)

    def _page(self, pictures: Sequence[Path]) -> str:
        body = [f"<h1>{escape(self.title)}</h1>", *(f"<p>{escape(note)}</p>" for note in self.notes)]
        body += [
            *(f"<pre>{escape(scores.table())}</pre>" for scores in self.scores),
            *(f'<p><img src="{path.name}" alt="{path.stem}"></p>' for path in pictures),
        ]
        style = "body{font-family:sans-serif;max-width:60em;margin:2em auto}img{max-width:100%}"
        return (
            f"<!doctype html><meta charset=utf-8><title>{escape(self.title)}</title><style>{style}</style>"
            + "".join(body)
        )


class _View(NamedTuple):
    """A slice of image, prediction and label, and how high a pixel is for its width."""

    image: np.ndarray
    prediction: np.ndarray
    label: np.ndarray
    aspect: float


def _orthogonal_views(image: MetaTensor, prediction: torch.Tensor, label: torch.Tensor) -> list[_View]:
    """For each axis of a volume (1, H, W[, D]), the slice that shows most classes, as radiologists look at it."""
    # Patient's right on the left, front and head on top once the second axis points upwards.
    turn = Orientation(axcodes="LAS"[: image.ndim - 1], labels=None)
    plain = [convert_to_tensor(x, track_meta=False) for x in (image, prediction, label)]
    turned: list[Any] = [turn(MetaTensor(x, affine=image.affine)) for x in plain]
    arrays = [x[0].numpy(force=True) for x in turned]
    spacing = affine_to_spacing(turned[0].affine, r=arrays[0].ndim).tolist()
    if len(spacing) == 2:
        cut_image, cut_prediction, cut_label = (array.T[::-1] for array in arrays)
        return [_View(cut_image, cut_prediction, cut_label, spacing[1] / spacing[0])]
    views = []
    for axis in (2, 1, 0):
        slices = np.moveaxis(arrays[2], axis, 0)
        best = int(np.argmax([len(np.unique(s)) * 1e6 + np.count_nonzero(s) for s in slices]))
        width, height = (side for other, side in enumerate(spacing) if other != axis)
        cut_image, cut_prediction, cut_label = (np.take(array, best, axis).T[::-1] for array in arrays)
        views.append(_View(cut_image, cut_prediction, cut_label, height / width))
    return views
