"""What an evaluation leaves behind: a table, a CSV file, pictures and a page."""

from __future__ import annotations

import json
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

from dinomix_monai.data import OriginalScans, dataset_root, relative_name
from dinomix_monai.handlers.case_views import View, draw_case, orthogonal_views
from dinomix_monai.handlers.charts import draw_class_scores, draw_losses, draw_mix
from dinomix_monai.handlers.page import write_page
from dinomix_monai.handlers.provenance import FILE_NAME, provenance
from dinomix_monai.metrics import CaseScores, chosen_rules, compare_runs, read_scores, write_scores

__all__ = ["ReportHandler"]


class ReportHandler:
    """
    Scores each case of an evaluator, prints a table for each rule, and writes what it found.

    ``metrics.csv`` has the scores, ``run.json`` what was run. ``report/index.html`` is one file with the failures, the
    tables, the Dice of each class, the training curves and what PIC pasted if there are ``history.csv`` and
    ``mix.csv``, three orthogonal slices of the worst and the median case, and what was run; the pictures lie beside it
    as well. Predictions and labels must be label maps when the iteration has completed, that is, ``postprocessing`` has
    taken the argmax. Pictures go by the first rule.

    Args:
        class_names: names by label value, background first.
        output_dir: folder for all of it.
        dataset_dir: folder of the data set, to name each case by the path of its image from there, which no other case
            has; ``None`` to name it by the image's name alone.
        rules: names of the rules to score by, as ``score_rule`` knows them.
        originals: the scans that the data set was made of, for rules that score there; ``None`` for the files' grids.
        title: what was evaluated, for the headings.
        notes: sentences for the report, such as which teacher it was.
        facts: what was run beside command, versions and machine, by name, such as the seed.
        baselines: folders of other evaluations of the same cases, each with a ``metrics.csv``, by what to call them.
        written: other files of the run to list with these, by what they are; those that do not exist are left out.
        pictures: files in ``report/`` that others draw, to show on the page; those that do not exist are left out.

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
        pictures: Sequence[str] = (),
    ) -> None:
        self.class_names = list(class_names)
        self.output_dir = Path(output_dir)
        self.root = None if dataset_dir is None else dataset_root(dataset_dir)
        self.rules = chosen_rules(rules)
        self.originals = originals
        self.title = title
        self.notes = ensure_tuple(notes)
        self.facts = dict(facts or {})
        # Now, so that a folder that is not there is known before the evaluation.
        self.baselines = {name: read_scores(folder, self.rules[0].name) for name, folder in (baselines or {}).items()}
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
        self._views: list[list[View]] = []

    def _score(self, engine: Workflow) -> None:
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
            maps: dict[str, Any] = {"file": (prediction, label, spacing_mm)}
            if self.originals is not None:
                maps["scan"] = self.originals(file, prediction)
            for scores in self.scores:
                scores.add(name, *maps[scores.grid])
            self._views.append(orthogonal_views(image, prediction, label))

    def __call__(self, engine: Engine) -> None:
        """Prints the tables and writes the files."""
        if not self.scores[0].cases:
            raise ValueError("The evaluation must have at least one case to report, got none.")
        folder = self.output_dir / "report"
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, str | Path] = {"scores per case and class": write_scores(self.output_dir, self.scores)}
        comparisons = self._comparisons()
        facts = {**self.facts, **provenance()}
        (self.output_dir / FILE_NAME).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        page = write_page(
            folder / "index.html",
            title=self.title,
            notes=self.notes,
            facts=facts,
            scores=self.scores,
            comparisons=comparisons,
            pictures=self._draw(folder),
        )
        written["report"] = page
        print(f"\n{self.title}")
        for one in self.scores:
            print(f"{one.table()}\n")
        for sentence in (*comparisons, *self.notes):
            print(sentence)
        print("Written:")
        for what, path in (*self.written.items(), *written.items()):
            if Path(path).exists():
                print(f"  {path}  ({what})")

    def _draw(self, folder: Path) -> dict[Path, str]:
        """Draws the pictures; captions by file."""
        scores, metric = self.scores[0], self.rules[0].metrics[0]
        dice = [np.nanmean(case[0]) if np.isfinite(case[0]).any() else math.nan for case in scores.scores]
        # A case without any class has no score and stands for nothing, unless there is no other.
        order = [i for i in np.argsort(dice) if not math.isnan(dice[i])] or [0]
        chosen = {"worst": order[0], "median": order[len(order) // 2]}
        made = {draw_class_scores(folder / "dice.png", scores, self.baselines): f"{metric.heading} of each class"}
        for file, draw, caption in (
            ("history.csv", draw_losses, "Losses and validation"),
            ("mix.csv", draw_mix, "Classes: how frequent they are, and how probable PIC was to paste them"),
        ):
            if (self.output_dir / file).is_file():
                made[draw(folder / f"{draw.__name__.removeprefix('draw_')}.png", self.output_dir / file)] = caption
        for kind, index in chosen.items():
            value = f"mean {metric.heading} {dice[index]:.{metric.decimals}f}"
            caption = f"{kind.capitalize()} case, {scores.cases[index]}: {value}"
            path = folder / f"{kind}_case.png"
            made[draw_case(path, self._views[index], self.class_names, caption)] = caption
        others = [folder / name for name in self.pictures if (folder / name).is_file()]
        return made | {path: path.stem.capitalize() for path in others}

    def _comparisons(self) -> list[str]:
        """What the numbers support about this evaluation (A) and each baseline (B)."""
        sentences = []
        for name, baseline in self.baselines.items():
            if len(baseline.cases) > 1:
                row = (found := compare_runs({self.title: self.scores[0]}, {name: baseline})).mean
                verdict = {"A": "higher than", "B": "lower than"}.get(
                    row.higher(1 - found.confidence) or "", "not shown to differ from"
                )
                sentences.append(
                    f"Mean {found.metric.heading} {row.mean_a:.3f}, {verdict} {name} with {row.mean_b:.3f}: difference "
                    f"{row.difference:+.3f}, {found.confidence:.0%} interval {row.low:+.3f} to {row.high:+.3f}."
                )
        return sentences
