"""
What it is worth to choose the scans to label: Dice of a linear probe of a frozen teacher after 2, 4 and 6 labels.

    python benchmarks/next_case.py DIR --teacher NAME --weights FILE --name synapse [--pools 5] [--minutes 8]

DIR has a list dataset_all_labels.json, whose training cases are the scans to choose from. The learner is the probe of
the command ``probe`` at 8000 points, so that a choice costs seconds and chance is known by many draws; what a
choice is worth to a network was not measured with it. Two experiments, for which strategies are the same:

- ``pools``: of the training cases 14 are drawn, a strategy chooses four of them, and all other training cases and the
  validation cases score;
- ``test``: a strategy chooses from all training cases, and the test cases score.

``random`` draws and ``next`` is the command: it draws too, but never what is nearly the same. ``longest`` takes the
scans of most height. TypiClust (Hacohen et al., ICML 2022), ProbCover (Yehuda et al., NeurIPS 2022) and k-center (Sener
and Savarese, ICLR 2018) go by the mean token of each scan. ``doubt`` begins with two that were drawn, and takes two
that the probe of these is in doubt of, rare classes first, unless they are like one before. What has a result is not
done again, and with ``--minutes`` nothing new is begun after that time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from bundle_workflow import ROOT
from scipy.cluster.vq import kmeans2
from spread import spread
from torch.nn import functional as F

POOL, LABELS, SMALLEST = 14, (2, 4, 6), 5
# Draws of a pool, of which the first ones are gone on from, and of all training cases.
RANDOM_IN_POOL, STARTS, RANDOM_IN_TEST = 8, 3, 8
TRAINING_POINTS, ITERATIONS = 8000, 25
# Voxels of a scan that are looked at of each organ and of the background, at most.
MOST, MOST_BACKGROUND = 700, 3000

Choose = Callable[[Sequence[int], int], list[int]]


class Scans:
    """Tokens, labels and looks of all cases, and the probe that is fitted to some of them."""

    def __init__(self, data: str, teacher: str, weights: str, layer: int, folder: Path, settings: dict) -> None:
        from dinomix_monai.bundle import Bundle
        from dinomix_monai.selection import Thumbnails

        given = {"dataset_dir": data, "datalist#file": "dataset_all_labels.json", "output_dir": str(folder), **settings}
        given |= {"planned_for": None, "device": "cpu", "teacher#model_name": teacher, "teacher#layer": layer}
        parser = Bundle(ROOT / "bundle").parser("train", teacher_weights=weights, **given)
        datalist = parser.get_parsed_content("datalist")
        sections = ("training", "validation", "test")
        cases = [(section, case) for section in sections for case in datalist.section(section)]
        self.of = {section: [i for i, (own, _) in enumerate(cases) if own == section] for section in sections}
        self.class_names = datalist.class_names
        self.sampled = [self._sampled(parser, case, folder / "tokens") for _, case in cases]
        voxels = sum(self.sampled[i][2] for i in self.of["training"])
        self.smallest = np.argsort(voxels[1:].numpy())[:SMALLEST]
        # What there is before any label.
        self.means = np.stack([mean.double().numpy() for *_, mean in self.sampled])
        thumbnails = Thumbnails(folder / "thumbnails")
        self.thumbnails = [thumbnails(case["image"]) for _, case in cases]
        self.heights = [_height_mm(case["image"]) for _, case in cases]

    def _sampled(self, parser: Any, case: dict, folder: Path) -> tuple[torch.Tensor, ...]:
        """Tokens (N, E) and classes (N,) at some voxels of a scan, its voxels by class, and its mean token."""
        from monai.transforms import Compose

        file = folder / f"{Path(case['image']).name}.pt"
        if not file.is_file():
            scan = Compose(parser.get_parsed_content("volume_transforms"))(dict(case))
            found = parser.get_parsed_content("report#probe").scan_tokens(scan)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(_sample(found.tokens, found.label, len(self.class_names)), file)
        return torch.load(file)

    def dice(self, labeled: Sequence[int], judged: Sequence[int]) -> list[float]:
        """Of each organ, the mean Dice over the scans that show it."""
        probe, rows = self.probe(labeled), []
        for scan in judged:
            tokens, labels, voxels, _ = self.sampled[scan]
            weight = (voxels / torch.bincount(labels, minlength=len(voxels)).clamp_min(1)).double()[labels]
            pairs = labels * len(voxels) + probe(tokens.float()).argmax(1)
            table = torch.bincount(pairs, weights=weight, minlength=len(voxels) ** 2).view(len(voxels), -1)
            own = 2 * table.diag() / (table.sum(0) + table.sum(1))
            rows.append(torch.where(table.sum(1) > 0, own, torch.nan)[1:].numpy())
        return np.nanmean(np.stack(rows), axis=0).tolist()

    def probe(self, labeled: Sequence[int]) -> Callable:
        """The probe of some scans, which have the same share of its points, and within it every class."""
        from dinomix_monai.networks import LinearProbe

        tokens, labels, voxels = [], [], []
        for scan in labeled:
            x, y, counts, _ = self.sampled[scan]
            most = TRAINING_POINTS // (2 * len(labeled))
            kept = torch.cat([(y == c).nonzero()[: most // (1 if c == 0 else len(counts) - 1), 0] for c in y.unique()])
            tokens.append(x[kept].float())
            labels.append(y[kept])
            voxels.append(counts)
        total = torch.stack(voxels).sum(0)
        return LinearProbe.fit(torch.cat(tokens), torch.cat(labels), len(total), total, iterations=ITERATIONS)

    def gains(self, labeled: Sequence[int], pool: Sequence[int]) -> np.ndarray:
        """Doubt ``1 - sum(p^2) / sum(p)`` of the probe of some scans about each other one, rare classes first."""
        from dinomix_monai.transforms import class_probabilities

        probe = self.probe(labeled)
        weights = class_probabilities(sum(self.sampled[i][2] for i in labeled)[1:].tolist(), progress=0.0)
        gains = []
        for scan in pool:
            p = probe(self.sampled[scan][0].float()).softmax(1)[:, 1:]
            gains.append(float((1 - p.square().sum(0) / p.sum(0).clamp_min(1e-9)).numpy() @ weights))
        return np.array(gains)


def _sample(tokens: torch.Tensor, label: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, ...]:
    generator, flat = torch.Generator().manual_seed(0), label.flatten()
    chosen = []
    for value in range(num_classes):
        places = (flat == value).nonzero()[:, 0]
        chosen.append(places[torch.randperm(len(places), generator=generator)[: MOST if value else MOST_BACKGROUND]])
    index = torch.cat(chosen)
    voxels = torch.stack(torch.unravel_index(index, label.shape), dim=-1)
    places = ((2 * voxels + 1) / torch.tensor(label.shape) - 1).flip(-1)[None, :, None, None]
    found = F.grid_sample(tokens[None], places.to(tokens), padding_mode="border", align_corners=False)[0, :, :, 0, 0]
    return found.T.half(), flat[index], torch.bincount(flat, minlength=num_classes), tokens.flatten(1).mean(1)


def _height_mm(image: str) -> float:
    header = nib.load(image).header
    return float(header.get_zooms()[2] * header.get_data_shape()[2])


def main(
    data: str,
    teacher: str,
    weights: str,
    name: str,
    layer: int = 8,
    pools: int = 5,
    minutes: float = float("inf"),
    output_dir: str = "benchmarks/results/next_case",
    **settings: Any,
) -> None:
    """Does what is missing and prints the tables."""
    end, folder = time.monotonic() + 60 * minutes, Path(output_dir).absolute() / name
    scans = Scans(data, teacher, weights, layer, folder, settings)
    training, others = scans.of["training"], scans.of["validation"]
    for seed in range(pools):
        random = np.random.RandomState(seed)
        pool = sorted(random.permutation(training)[:POOL].tolist())
        judged = [scan for scan in training if scan not in pool] + others
        drawn = [random.permutation(pool).tolist() for _ in range(RANDOM_IN_POOL)]
        _measure(scans, folder / "pools" / str(seed), pool, judged, drawn, (4,), end)
    random = np.random.RandomState(0)
    drawn = [random.permutation(training).tolist() for _ in range(RANDOM_IN_TEST)]
    _measure(scans, folder / "test" / "all", training, scans.of["test"], drawn, LABELS, end)
    print(f"Smallest: {', '.join(scans.class_names[1 + i] for i in scans.smallest)}\n")
    for experiment in ("pools", "test"):
        print(f"{experiment}\n\n{_table(folder / experiment, scans.smallest)}\n")


def _measure(
    scans: Scans,
    folder: Path,
    pool: Sequence[int],
    judged: Sequence[int],
    drawn: Sequence[Sequence[int]],
    numbers: Sequence[int],
    end: float,
) -> None:
    """Scores every strategy and every draw, and writes after each."""
    strategies: dict[str, Choose] = {
        **{f"random {i}": partial(_first, order) for i, order in enumerate(drawn)},
        **{f"next {i}": partial(_next, scans, i) for i in range(len(drawn))},
        **{name: partial(choose, scans) for name, choose in _STRATEGIES.items()},
    }
    if len(numbers) == 1:
        strategies |= {f"doubt {i}": partial(_doubt, scans, order[:2]) for i, order in enumerate(drawn[:STARTS])}
    file = folder / "result.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for strategy, choose in strategies.items():
        for number in numbers:
            if f"{strategy}: {number}" not in result and time.monotonic() < end:
                chosen = choose(pool, number)
                dice = [round(value, 4) for value in scans.dice(chosen, judged)]
                result[f"{strategy}: {number}"] = {"scans": chosen, "dice": dice}
                file.write_text(json.dumps(result) + "\n")


def _first(order: Sequence[int], _: Sequence[int], count: int) -> list[int]:
    return list(order[:count])


def _next(scans: Scans, seed: int, pool: Sequence[int], count: int) -> list[int]:
    from dinomix_monai.selection import rank_scans

    thumbnails = {f"scan{i}.nii": scans.thumbnails[i] for i in pool}
    ranked = rank_scans(thumbnails, [], Path(), count, seed)
    return [int(Path(scan.name).stem.removeprefix("scan")) for scan in ranked]


def _longest(scans: Scans, pool: Sequence[int], count: int) -> list[int]:
    return sorted(pool, key=lambda i: -scans.heights[i])[:count]


def _doubt(scans: Scans, labeled: Sequence[int], pool: Sequence[int], count: int) -> list[int]:
    distances = _distances(scans, pool)
    similarity = np.exp(-((distances / np.median(distances[np.triu_indices(len(pool), 1)])) ** 2))
    gains, chosen = scans.gains(labeled, pool), [list(pool).index(i) for i in labeled]
    while len(chosen) < count:
        value = gains * (1 - similarity[:, chosen].max(axis=1))
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
    return [pool[i] for i in chosen]


def _typiclust(scans: Scans, pool: Sequence[int], count: int) -> list[int]:
    typicality = 1 / np.sort(_distances(scans, pool), axis=1)[:, 1:6].mean(axis=1)
    _, cluster = kmeans2(scans.means[pool], scans.means[_k_center(scans, pool, count)], minit="matrix")
    largest = sorted(set(cluster), key=lambda c: -(cluster == c).sum())
    chosen = [int(np.argmax(np.where(cluster == c, typicality, -1))) for c in largest]
    chosen += [int(i) for i in np.argsort(-typicality) if i not in chosen]
    return [pool[i] for i in chosen[:count]]


def _prob_cover(scans: Scans, pool: Sequence[int], count: int) -> list[int]:
    distances = _distances(scans, pool)
    covers = distances <= np.quantile(distances[np.triu_indices(len(pool), 1)], 0.3)
    chosen: list[int] = []
    while len(chosen) < count:
        new = (covers & ~covers[chosen].any(axis=0)).sum(axis=1) - 1e-6 * distances.mean(axis=1)
        new[chosen] = -np.inf
        chosen.append(int(new.argmax()))
    return [pool[i] for i in chosen]


def _k_center(scans: Scans, pool: Sequence[int], count: int) -> list[int]:
    distances = _distances(scans, pool)
    chosen = [int(distances.sum(axis=1).argmin())]
    while len(chosen) < count:
        chosen.append(int(distances[:, chosen].min(axis=1).argmax()))
    return [pool[i] for i in chosen]


def _distances(scans: Scans, pool: Sequence[int]) -> np.ndarray:
    means = scans.means[list(pool)]
    return np.linalg.norm(means[:, None] - means[None], axis=-1)


_STRATEGIES = {"longest": _longest, "TypiClust": _typiclust, "ProbCover": _prob_cover, "k-center": _k_center}


def _table(folder: Path, smallest: np.ndarray) -> str:
    """Mean Dice of all and of the smallest organs, and how many deviations of chance a strategy is above it."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*/result.json"))]
    scores: dict[tuple[str, int], list[list[tuple[float, float]]]] = {}
    for result in results:
        own: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for key, entry in result.items():
            strategy, number = key.split(": ")
            values = np.array(entry["dice"])
            own.setdefault((strategy.rstrip(" 0123456789"), int(number)), []).append(
                (float(np.nanmean(values)), float(np.nanmean(values[smallest])))
            )
        for kind, values in own.items():
            scores.setdefault(kind, []).append(values)
    lines = [
        "| strategy | labels | mean Dice | above chance | smallest | above chance |",
        "|---|---|---|---|---|---|",
    ]
    for (strategy, number), of_pools in scores.items():
        cells = []
        for part in (0, 1):
            chance = [[value[part] for value in one] for one in scores["random", number]]
            means = [statistics.mean(value[part] for value in one) for one in of_pools]
            deviation = statistics.mean(statistics.stdev(one) for one in chance)
            above = [(mean - statistics.mean(one)) / deviation for mean, one in zip(means, chance)]
            if strategy == "random":
                cells += [f"{statistics.mean(means):.3f} ± {deviation:.3f}", ""]
            else:
                cells += [f"{statistics.mean(means):.3f}", spread(above)]
        lines.append(f"| {strategy} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    fire.Fire(main)
