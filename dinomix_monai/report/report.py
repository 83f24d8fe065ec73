"""The report of an evaluation: tables, a file of scores, pictures and a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.engines import Workflow
from monai.utils import convert_to_tensor, ensure_tuple
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.core.files import write_json
from dinomix_monai.data import OriginalScans, dataset_root, relative_name
from dinomix_monai.metrics import CaseScores, chosen_rules, compare_runs, read_scores, write_scores
from dinomix_monai.report.case_views import SliceView, draw_case, orthogonal_views
from dinomix_monai.report.charts import draw_class_scores, draw_losses, draw_mix
from dinomix_monai.report.page import Picture, write_page
from dinomix_monai.report.provenance import RUN_FILE, provenance

__all__ = ["ReportHandler"]

_SYNTHETIC = "The scans are synthetic: these scores say how the method works, and nothing about patients."
# Titles of the pictures, and what to look for in them.
_OF_CLASSES = (
    "Dice of each class",
    "A bar is the mean over the cases, a point is one case. Points far below their bar are cases that lack the organ: "
    "look at them first.",
)
_OF_LOSSES = (
    "Losses and validation",
    "Lines are the means of the losses in each epoch (left axis), black points the mean Dice of the validation cases "
    "(right axis). Where the points still rise at the end, a longer training helps; where they fall while the "
    "supervised loss falls on, the model learns its few labeled scans by heart.",
)
_OF_MIX = (
    "What PIC has pasted",
    "On the left, how frequent each class is in labels and in pseudo-labels; on the right, how probable it was to be "
    "pasted in each epoch, bright for often. Rare classes should be bright at first. A class without pseudo-labels is "
    "one that the model does not find in the unlabeled scans.",
)
_OF_CASE = (
    "The prediction is above and the ground truth below, in the slices that show most classes. Look for organs that "
    "are missing above, or have the color of another."
)
_OF_TEACHER = (
    "What the teacher sees",
    "A slice with its ground truth; the teacher's tokens, of which alike ones have one color; the weight of each cell "
    "in the loss; and how far student and teacher agree before and after the training. A teacher that sees organs "
    "gives each a color of its own, and after the training the last picture is redder than the one before it.",
)


class ReportHandler:
    """
    Scores each case of an evaluation, prints a table for each rule, and writes the report.

    ``metrics.csv`` has the scores, and ``run.json`` what was run. ``report/index.html`` is one file with

    - the failures,
    - the tables of scores and the Dice of each class,
    - the training curves, what PIC pasted and what the teacher sees, if there are ``history.csv``, ``mix.csv`` and
      ``report/teacher.png``,
    - three orthogonal slices of the worst and of the median case,
    - what was run.

    The pictures of the page lie beside it as well. Worst and median are those by the first rule. When an iteration has
    completed, predictions and labels must be label maps: ``postprocessing`` has taken the argmax.

    Args:
        class_names: names by label value, background first.
        output_dir: folder for all of it.
        dataset_dir: folder of the data set. A case is then named by the path of its image from there, which no other
            case has; with ``None``, by the name of its image alone.
        rules: names of the rules to score by, as ``score_rule`` knows them.
        originals: the scans that the data set was made of, for rules that score on their grids; ``None`` to score all
            rules on the grids of the data set's files.
        title: what was evaluated, for the headings.
        notes: sentences for the report, such as which teacher the run had.
        facts: what was run, by name, such as the seed; command, versions and machine are added.
        baselines: folders of other evaluations of the same cases, each with a ``metrics.csv``, by the names that the
            report calls them.
        written: other files of the run to list with these, by what they are; a file that does not exist is left out.
        is_synthetic: whether no patient is behind the scans, which the report then says.
        possible: see :class:`dinomix_monai.metrics.CaseScores`.

    Raises:
        TypeError: When an image is not a ``MetaTensor`` and so has no spacing.
        ValueError: When there is no such rule, none at all, the evaluation had no case, or a baseline had other cases.
        FileNotFoundError: When a baseline has no ``metrics.csv``.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        output_dir: str | Path,
        dataset_dir: str | Path | None = None,
        rules: Sequence[str] | str = "sound",
        originals: OriginalScans | None = None,
        title: str = "Evaluation",
        notes: Sequence[str] | str = (),
        facts: Mapping[str, Any] | None = None,
        baselines: Mapping[str, str] | None = None,
        written: dict[str, str] | None = None,
        is_synthetic: bool = False,
        possible: np.ndarray | None = None,
    ) -> None:
        self.class_names = list(class_names)
        self.output_dir = Path(output_dir)
        self.root = None if dataset_dir is None else dataset_root(dataset_dir)
        self.rules = chosen_rules(rules)
        self.originals = originals
        self.title = title
        self.notes = (*([_SYNTHETIC] if is_synthetic else []), *ensure_tuple(notes))
        self.facts = dict(facts or {})
        # Read now, so that a folder that is not there is known before the evaluation.
        self.baselines = {name: read_scores(folder, self.rules[0].name) for name, folder in (baselines or {}).items()}
        self.written = dict(written or {})
        self.possible = possible

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to start, cases and end of an evaluation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score_cases)
        engine.add_event_handler(Events.COMPLETED, self)

    def _start(self) -> None:
        self.scores = [
            CaseScores(
                self.class_names,
                rule,
                grid="scan" if self.originals and rule.on_scans else "file",
                possible=self.possible,
            )
            for rule in self.rules
        ]
        self._views: list[list[SliceView]] = []

    def _score_cases(self, engine: Workflow) -> None:
        for output in engine.state.output:
            image = output[Keys.IMAGE]
            if not isinstance(image, MetaTensor):
                raise TypeError(
                    f"{Keys.IMAGE} must be a MetaTensor, whose affine tells the spacing, got {type(image).__name__}."
                )
            file = Path(image.meta.get("filename_or_obj", f"case {len(self._views) + 1}"))
            name = file.name if self.root is None else relative_name(file, self.root)
            prediction, label = (convert_to_tensor(output[key], track_meta=False) for key in (Keys.PRED, Keys.LABEL))
            spacing_mm = affine_to_spacing(image.affine, r=label.ndim - 1).tolist()
            label_maps: dict[str, Any] = {"file": (prediction, label, spacing_mm)}
            if self.originals is not None:
                label_maps["scan"] = self.originals(file, prediction)
            for scores in self.scores:
                scores.add(name, *label_maps[scores.grid])
            # Where nobody has drawn, as background.
            shown = label.where(label < len(self.class_names), 0)
            self._views.append(orthogonal_views(image, prediction, shown))

    def __call__(self, engine: Engine) -> None:
        """Prints the tables and writes the files."""
        if not self.scores[0].cases:
            raise ValueError("The evaluation must have at least one case to report, got none.")
        folder = self.output_dir / "report"
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, str | Path] = {"scores per case and class": write_scores(self.output_dir, self.scores)}
        comparisons = self._comparisons()
        facts = {**self.facts, **provenance()}
        write_json(self.output_dir / RUN_FILE, facts)
        page = write_page(
            folder / "index.html",
            title=self.title,
            subtitle=", ".join([*([self.root.name] if self.root else []), facts["finished"][:10]]),
            notes=self.notes,
            facts=facts,
            scores=self.scores,
            comparisons=comparisons,
            pictures=self._draw_pictures(folder),
        )
        written["report"] = page
        print(f"\n{self.title}")
        for scores in self.scores:
            print(f"{scores.table()}\n")
        for sentence in (*comparisons, *self.notes):
            print(sentence)
        print("Written:")
        for what, path in (*self.written.items(), *written.items()):
            if Path(path).exists():
                print(f"  {path}  ({what})")

    def _draw_pictures(self, folder: Path) -> list[Picture]:
        """Draws the pictures of the page."""
        scores, metric = self.scores[0], self.rules[0].metrics[0]
        found = [Picture(draw_class_scores(folder / "dice.png", scores, self.baselines), *_OF_CLASSES)]
        for file, draw, texts in (("history.csv", draw_losses, _OF_LOSSES), ("mix.csv", draw_mix, _OF_MIX)):
            if (self.output_dir / file).is_file():
                picture = folder / f"{draw.__name__.removeprefix('draw_')}.png"
                found.append(Picture(draw(picture, self.output_dir / file), *texts))
        mean_dice = [np.nanmean(case[0]) if np.isfinite(case[0]).any() else math.nan for case in scores.scores]
        # A case without any class has no score and stands for nothing, unless there is no other.
        ranking = [i for i in np.argsort(mean_dice) if not math.isnan(mean_dice[i])] or [0]
        for kind, index in {"worst": ranking[0], "median": ranking[len(ranking) // 2]}.items():
            score = f"mean {metric.heading} {mean_dice[index]:.{metric.decimals}f}"
            title = f"{kind.capitalize()} case, {scores.cases[index]}: {score}"
            picture = draw_case(folder / f"{kind}_case.png", self._views[index], self.class_names, title)
            found.append(Picture(picture, title, _OF_CASE))
        # Drawn by TeacherViewHandler.
        teacher = folder / "teacher.png"
        return [*found, *([Picture(teacher, *_OF_TEACHER)] if teacher.is_file() else [])]

    def _comparisons(self) -> list[str]:
        """Sentences on what the numbers support about this evaluation (A) and each baseline (B)."""
        sentences = []
        for name, baseline in self.baselines.items():
            if len(baseline.cases) > 1:
                comparison = compare_runs({self.title: self.scores[0]}, {name: baseline})
                mean = comparison.mean
                verdict = {"A": "higher than", "B": "lower than"}.get(
                    mean.higher(1 - comparison.confidence) or "", "not shown to differ from"
                )
                sentences.append(
                    f"Mean {comparison.metric.heading} {mean.mean_a:.3f}, {verdict} {name} with {mean.mean_b:.3f}: "
                    f"difference {mean.difference:+.3f}, {comparison.confidence:.0%} interval {mean.low:+.3f} to "
                    f"{mean.high:+.3f}."
                )
        return sentences
