"""
What it is worth to choose the next case: Dice of the five smallest organs of the phantom after 2, 4 and 6 labels.

    python benchmarks/next_case.py --seeds 0,1,2 [--minutes 8]

For each seed two of the 16 varied patients are labeled, drawn at random, the same for all strategies, and a model is
trained; then, twice, two more are labeled and training goes on from the model. ``dinomix`` is the app's strategy, asked
twice; ``entropy`` takes the two of the highest mean entropy; ``random`` draws. All use the app's own training, with the
others of the 16 as unlabeled scans and the eight test patients for the score. What has a result is not done again, and
with ``--minutes`` nothing new is begun after that time, so it can be run in pieces.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from spread import spread

ROOT = Path(__file__).parents[1]
STRATEGIES = ("dinomix", "random", "entropy")
ROUNDS = (2, 4, 6)
SMALLEST = 5


def main(
    seeds: int | Sequence[int] = (0, 1, 2),
    minutes: float = float("inf"),
    epochs: int = 10,
    more_epochs: int = 6,
    output_dir: str = "benchmarks/results/next_case",
) -> None:
    """Does what is missing and prints the table."""
    sys.path.insert(0, str(ROOT))
    from dinomix_monai.data import make_phantom

    end = time.monotonic() + 60 * minutes
    folder = Path(output_dir).absolute()
    # Another phantom than the bundle's, on which its settings were chosen; four narrow patients are left out.
    data = folder / "phantom"
    if not (data / "dataset.json").is_file():
        make_phantom(data, seed=2, cases=(0, 16, 0, 8))
    for seed in [seeds] if isinstance(seeds, int) else seeds:
        for labels in ROUNDS:
            for strategy in STRATEGIES if labels > ROUNDS[0] else ("start",):
                if time.monotonic() < end and not _result(folder, seed, strategy, labels).is_file():
                    _round(folder, data, seed, strategy, labels, epochs if strategy == "start" else more_epochs)
    print(_table(folder))


def _round(folder: Path, data: Path, seed: int, strategy: str, labels: int, epochs: int) -> None:
    from dinomix_monai.label import AppFolder, TrainingRun, prepare_app_folder

    result = _result(folder, seed, strategy, labels)
    shutil.rmtree(result.parent, ignore_errors=True)
    pool = [data / "images" / f"phantom_{number:03d}.nii" for number in range(1, 17)]
    if strategy == "start":
        app = prepare_app_folder(result.parent / "app", ROOT / "bundle")
        labeled = sorted(np.random.RandomState(seed).permutation(16)[:labels].tolist())
    else:
        before = _result(folder, seed, strategy if labels > ROUNDS[1] else "start", labels - 2)
        shutil.copytree(before.parent / "app", result.parent / "app")
        app = AppFolder(result.parent / "app")
        labeled = json.loads(before.read_text())["labeled"]
        labeled = labeled + _chosen(app, strategy, pool, labeled, seed)
    cases = [{"name": pool[i].stem, "image": str(pool[i]), "label": str(_label_of(pool[i]))} for i in labeled]
    unlabeled = [str(path) for i, path in enumerate(pool) if i not in labeled]
    start = time.monotonic()
    TrainingRun(app, cases, unlabeled)(epochs, pretrained=strategy != "start", seed=seed)
    wall = time.monotonic() - start
    dice = _test_dice(app, sorted((data / "images").iterdir())[16:])
    content = {"seed": seed, "strategy": strategy, "labeled": labeled, "epochs": epochs, "wall_s": wall, "dice": dice}
    result.write_text(json.dumps(content, indent=1) + "\n")


def _chosen(app: Any, strategy: str, pool: list[Path], labeled: list[int], seed: int) -> list[int]:
    """Numbers of the two patients to label next."""
    from dinomix_monai.label.assessment import ScanAssessor
    from dinomix_monai.label.next_case import diverse_order, expected_gain

    rest = [i for i in range(len(pool)) if i not in labeled]
    if strategy == "random":
        return np.random.RandomState([seed, len(labeled)]).permutation(rest)[:2].tolist()
    assessor = ScanAssessor.of_app(app)
    preprocessing = app.bundle.parser("inference", device="cpu").get_parsed_content("preprocessing")
    found = [assessor(preprocessing({"image": str(path)})["image"].as_tensor()) for path in pool]
    if strategy == "entropy":
        return sorted(rest, key=lambda i: -found[i].entropy)[:2]
    counts = np.bincount(np.concatenate([_voxels(_label_of(pool[i])).ravel() for i in labeled]), minlength=14)[1:]
    gains = expected_gain(np.array([found[i].shortfalls for i in rest]), counts.tolist())
    features = np.array([one.features for one in found])
    return [rest[i] for i in diverse_order(gains, features[rest], features[labeled])[:2]]


@torch.no_grad()
def _test_dice(app: Any, images: list[Path]) -> dict[str, float]:
    """Mean Dice of each class over the test patients that have it, on the grid of the files."""
    from dinomix_monai.models import load_model

    parser = app.bundle.parser("inference", device="cpu")
    network = load_model(parser.get_parsed_content("network_def"), app.model_file).eval()
    preprocessing, inferer = (parser.get_parsed_content(name) for name in ("preprocessing", "inferer"))
    # All but what writes the file.
    postprocessing = parser.get_parsed_content("postprocessing").transforms[:-1]
    scores: dict[str, list[float]] = {name: [] for name in app.class_names[1:]}
    for image in images:
        data = preprocessing({"image": str(image)})
        data["pred"] = inferer(data["image"][None], network)[0]
        for transform in postprocessing:
            data = transform(data)
        found, truth = data["pred"].array[0], _voxels(_label_of(image))
        for value, name in enumerate(scores, start=1):
            a, b = found == value, truth == value
            if b.any():
                scores[name].append(float(2 * (a & b).sum() / (a.sum() + b.sum())))
    return {name: statistics.mean(values) for name, values in scores.items()}


def _table(folder: Path) -> str:
    counts = [_voxels(path) for path in sorted((folder / "phantom" / "labels").iterdir())[:16]]
    from dinomix_monai.data.anatomy import ORGANS

    voxels = np.bincount(np.concatenate([one.ravel() for one in counts]), minlength=14)[1:]
    smallest = [ORGANS[i] for i in np.argsort(voxels)[:SMALLEST]]
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*/*/*/result.json"))]
    lines = [
        f"Smallest: {', '.join(smallest)}",
        "",
        "| strategy | seeds | 2 labels | 4 labels | 6 labels |",
        "|---|---|---|---|---|",
    ]
    for strategy in STRATEGIES:
        cells: list[str] = []
        seeds: set[int] = set()
        for labels in ROUNDS:
            of = [one for one in results if one["strategy"] in (strategy, "start") and len(one["labeled"]) == labels]
            values = [statistics.mean(one["dice"][organ] for organ in smallest) for one in of]
            cells.append(f"{spread(values)} ({len(values)})" if values else "")
            seeds |= {one["seed"] for one in of} if labels == ROUNDS[-1] else set()
        lines.append(f"| {strategy} | {', '.join(map(str, sorted(seeds)))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _result(folder: Path, seed: int, strategy: str, labels: int) -> Path:
    return folder / str(seed) / strategy / f"{labels}_labels" / "result.json"


def _label_of(image: Path) -> Path:
    return image.parents[1] / "labels" / image.name


def _voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


if __name__ == "__main__":
    fire.Fire(main)
