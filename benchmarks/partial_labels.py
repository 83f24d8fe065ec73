"""
Data sets whose training labels are not complete, made of one whose are.

    python benchmarks/partial_labels.py make DIR OUT --share 0.5 [--seed 0]
    python benchmarks/partial_labels.py make DIR OUT --every 5
    python benchmarks/partial_labels.py make DIR OUT --sites 2 [--seed 0]
    python benchmarks/partial_labels.py table RESULTS

``OUT/declared`` says what was looked for, and in ``OUT/naive`` the same label maps count as complete, so what was taken
out of them counts as background. All other lists are those of ``DIR``, whose files they name; trainings need
``--datalist#allow_outside True``. Compare with a training on ``DIR`` itself.

The third line deals the cases out to hospitals: in ``OUT/complete/site-1`` and so on with all classes, and in
``OUT/disjoint/site-1`` with the hospital's own share of the classes, in a numbering of its own, also for validation.

The last line prints a table of ``RESULTS/SEED/ARM/metrics.csv``, files of ``evaluating`` for the arms ``complete``,
``classes_declared``, ``classes_naive``, ``slices_declared`` and ``slices_naive``.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from spread import spread

from dinomix_monai.core.files import write_json
from dinomix_monai.data import Datalist, open_datalist, split_dataset
from dinomix_monai.metrics import read_scores
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.metrics.paired_statistics import paired_interval
from dinomix_monai.volumes import label_on_grid, write_volume

ARMS = {
    "complete": "complete",
    "classes_declared": "half of the classes, said",
    "classes_naive": "half of the classes, not said",
    "slices_declared": "one slice in five, said",
    "slices_naive": "one slice in five, not said",
}
# In the order of the phantom's classes: gallbladder, esophagus, veins and both adrenal glands.
SMALLEST = [3, 4, 9, 11, 12]


def make(
    dataset_dir: str,
    out_dir: str,
    share: float | None = None,
    every: int | None = None,
    sites: int | None = None,
    seed: int = 0,
) -> None:
    """
    Writes the data sets.

    Args:
        dataset_dir: data set with complete labels.
        out_dir: folder of both.
        share: of the labeled cases, so many keep each class, drawn by the seed.
        every: of the slices along the third axis of a label map, one in so many is kept.
        sites: number of hospitals.
        seed: of the draw.
    """
    if [share, every, sites].count(None) != 2:
        raise ValueError("One of share, every and sites must be given.")
    if sites is not None:
        _deal(dataset_dir, Path(out_dir), sites, seed)
        return
    datalist, root = open_datalist(dataset_dir, allow_outside=True), Path(out_dir)
    classes = None if share is None else _classes_of_cases(datalist, share, seed)
    lists: dict[str, list[dict[str, Any]]] = {"declared": [], "naive": []}
    for number, case in enumerate(datalist.training):
        volume = nib.load(case["label"])
        values = np.asanyarray(volume.dataobj).reshape(volume.shape[:3]).astype(np.uint8)
        declared: dict[str, Any] = {}
        if classes is not None:
            values[~np.isin(values, classes[number])] = 0
            declared["annotated"] = [datalist.class_names[value] for value in classes[number]]
        if every is not None:
            slices = list(range(every // 2, values.shape[2], every))
            values[..., [z for z in range(values.shape[2]) if z not in slices]] = 0
            declared["annotated_slices"] = slices
        label = write_volume(label_on_grid(values, volume.header), root / "labels" / f"{number}.nii.gz")
        entry = {"image": case["image"], "label": str(label.absolute())}
        lists["naive"].append(entry)
        lists["declared"].append({**entry, **declared})
    for name, training in lists.items():
        content = {section: getattr(datalist, section) for section in ("unlabeled", "validation", "test")}
        labels = {str(value): label for value, label in enumerate(datalist.class_names)}
        write_json(root / name / "dataset.json", {"labels": labels, "training": training, **content})
        print(root / name)


def table(results: str) -> None:
    """
    Prints the arms over all seeds, and what saying brings, with its interval.

    Args:
        results: folder with a folder for each seed.
    """
    seeds = sorted(folder.name for folder in Path(results).iterdir() if folder.is_dir())
    # Dice comes first, shape (cases, metrics, classes).
    scores = {
        arm: np.stack([np.stack(read_scores(Path(results, seed, arm), "sound").scores)[:, 0] for seed in seeds])
        for arm in ARMS
    }
    print(f"seeds {', '.join(seeds)}, {scores['complete'].shape[1]} cases")
    print(
        "| labels | mean Dice | five smallest organs | lowest class | share of the gap closed |\n|---|---|---|---|---|"
    )
    complete = nan_mean(scores["complete"], axis=1)
    for arm, name in ARMS.items():
        means = nan_mean(scores[arm], axis=1)
        row = [spread(means.mean(1)), spread(means[:, SMALLEST].mean(1)), f"{means.mean(0).min():.2f}", ""]
        if arm.endswith("declared"):
            naive = nan_mean(scores[arm.replace("declared", "naive")], axis=1)
            row[-1] = f"{(means.mean() - naive.mean()) / (complete.mean() - naive.mean()):.0%}"
        print(f"| {name} | {' | '.join(row)} |")
    for kind in ("classes", "slices"):
        low, high = paired_interval(scores[f"{kind}_declared"], scores[f"{kind}_naive"])
        print(f"{kind}: said above not said by {low[-1]:.3f} to {high[-1]:.3f} (95 %)")


def _deal(dataset_dir: str, root: Path, sites: int, seed: int) -> None:
    """Gives each hospital its cases and its classes."""
    for number, path in enumerate(split_dataset(dataset_dir, sites), start=1):
        datalist = open_datalist(dataset_dir, file=path.name, allow_outside=True)
        drawn = random.Random(seed).sample(range(1, datalist.num_classes), datalist.num_classes - 1)
        for kind, classes in (
            ("complete", range(1, datalist.num_classes)),
            ("disjoint", sorted(drawn[number - 1 :: sites])),
        ):
            folder = root / kind / f"site-{number}"
            values_of = np.zeros(datalist.num_classes, dtype=np.uint8)
            values_of[list(classes)] = range(1, len(classes) + 1)
            content: dict[str, Any] = {"labels": ["background", *(datalist.class_names[value] for value in classes)]}
            for section in ("training", "unlabeled", "validation", "test"):
                content[section] = [dict(case) for case in getattr(datalist, section)]
                for case in content[section] if section != "unlabeled" else ():
                    volume = nib.load(case["label"])
                    values = values_of[np.asanyarray(volume.dataobj).reshape(volume.shape[:3]).astype(int)]
                    file = folder / "labels" / Path(case["label"]).name
                    case["label"] = str(write_volume(label_on_grid(values, volume.header), file).absolute())
            write_json(folder / "dataset.json", content)
        print(root / "*" / f"site-{number}")


def _classes_of_cases(datalist: Datalist, share: float, seed: int) -> list[list[int]]:
    """The classes that each labeled case keeps, each class in as many cases."""
    draw, cases = random.Random(seed), range(len(datalist.training))
    kept: list[list[int]] = [[] for _ in cases]
    for value in range(1, datalist.num_classes):
        for case in draw.sample(cases, max(1, round(share * len(cases)))):
            kept[case].append(value)
    return kept


if __name__ == "__main__":
    fire.Fire({"make": make, "table": table})
