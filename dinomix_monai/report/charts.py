"""The charts of a report: scores of the classes, losses by epoch, and what PIC pasted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dinomix_monai.core.epoch_table import read_table
from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.metrics import CaseScores
from dinomix_monai.report.pictures import new_figure, save_figure

__all__ = ["draw_class_scores", "draw_losses", "draw_mix"]

# The colors are of one palette for color-blind readers; each marker has a shape of its own, for print.
_BASELINE_MARKERS = [
    ("#cc3311", "D"),
    ("#ee7733", "s"),
    ("#009988", "^"),
    ("#33bbee", "v"),
    ("#ee3377", "P"),
    ("#bbbbbb", "X"),
]


def draw_class_scores(path: Path, scores: CaseScores, baselines: Mapping[str, CaseScores]) -> Path:
    """Draws the Dice of each class: a bar for the mean, a point for each case, a marker for the mean of a baseline."""
    names, rule = scores.class_names[1:], scores.rule
    figure, axes = new_figure(7, 0.3 * len(names) + 1 + 0.2 * len(baselines))
    axes.barh(names, np.nan_to_num(scores.mean()[0]), color="#4477aa", label="mean")
    rows = np.arange(len(names))
    for number, values in enumerate(np.stack(scores.scores)[:, 0]):
        axes.plot(values, rows, ".", color="black", markersize=3, label="" if number else "a case")
    for (color, marker), (name, baseline) in zip(_BASELINE_MARKERS * len(baselines), baselines.items()):
        means = dict(zip(baseline.class_names[1:], baseline.mean()[0]))
        values = [means.get(name, math.nan) for name in names]
        axes.plot(values, rows, marker, color=color, markersize=5, markeredgecolor="white", label=name)
    axes.invert_yaxis()
    axes.set(xlim=(0, rule.full_dice), xlabel=f"{rule.metrics[0].heading} by the {rule.name} rule")
    figure.legend(loc="outside lower center", ncols=4, fontsize="medium", frameon=False)
    return save_figure(figure, path)


def draw_losses(path: Path, history: Path) -> Path:
    """Draws each loss over the epochs, and the key metric on an axis of its own."""
    rows = read_table(history)
    figure, axes = new_figure(7, 3.5)
    right = axes.twinx()
    for column in rows[0] if rows else ():
        points = [(int(row["epoch"]), float(row[column])) for row in rows if row[column]]
        if column != "epoch" and points:
            is_metric = column == MetricKeys.KEY
            target = right if is_metric else axes
            target.plot(*zip(*points), "o-k" if is_metric else "-", markersize=3, label=column)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    right.set(ylabel=str(MetricKeys.KEY), ylim=(0, 1))
    if axes.lines or right.lines:
        figure.legend(loc="outside lower center", ncols=4, fontsize="medium", frameon=False)
    return save_figure(figure, path)


def draw_mix(path: Path, history: Path) -> Path:
    """Draws how frequent each class is, and beside it how probable PIC was to paste it in each epoch."""
    rows = read_table(history)
    names = list(dict.fromkeys(row["class"] for row in rows))
    epochs = sorted({int(row["epoch"]) for row in rows})
    origins = ("labeled", "unlabeled")
    figure, axes = new_figure(9, 0.25 * len(names) + 1.4, columns=3)
    tables = {
        (origin, key): np.full((len(names), len(epochs)), math.nan)
        for origin in origins
        for key in ("probability", "voxels")
    }
    for row in rows:
        cell = names.index(row["class"]), epochs.index(int(row["epoch"]))
        for key in ("probability", "voxels"):
            tables[row["origin"], key][cell] = float(row[key])
    for offset, (origin, color) in zip((-0.2, 0.2), zip(origins, ("#4477aa", "#ee7733"))):
        voxels = tables[origin, "voxels"][:, -1]
        share = 100 * voxels / max(voxels.sum(), 1e-9)
        axes[0].barh(np.arange(len(names)) + offset, share, 0.4, color=color, label=origin)
    axes[0].set(xscale="log", xlabel="% of the organs' voxels", yticks=range(len(names)), yticklabels=names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].legend(fontsize="medium")
    top = max(np.nanmax(tables[origin, "probability"]) for origin in origins)
    extent = (epochs[0] - 0.5, epochs[-1] + 0.5, len(names) - 0.5, -0.5)
    for ax, origin in zip(axes[1:], origins):
        image = ax.imshow(tables[origin, "probability"], aspect="auto", vmin=0, vmax=top, extent=extent)
        ax.set(title=f"pasted from {origin} patches", xlabel="epoch", yticks=range(len(names)), yticklabels=[])
        ax.title.set_fontsize("medium")
    figure.colorbar(image, ax=axes[1:], label="probability")
    return save_figure(figure, path)
