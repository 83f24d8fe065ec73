"""
What sites without labels bring to a federation, on the phantom.

    python benchmarks/federation.py [--forms labeled,one,three,pooled] [--seeds 0,1,2] [--rounds 8]

Two sites have two labeled scans each and nothing else; the unlabeled scans lie at three sites without labels. Each form
is a run of PIC in NVFlare's simulator with the same rounds: the two sites with labels alone; with one site without
labels; with all three; and all scans at one site, which is the bound. The best global model by validation is scored on
the test patients, which the two sites with labels share. A form that begins with ``private-`` has clipped and noised
changes. Runs that are already in the output folder are not repeated.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
from monai.utils import ensure_tuple
from simulated_federation import simulate, write_site_settings
from spread import spread

from dinomix_monai.core.files import write_json
from dinomix_monai.data import make_phantom, read_datalist
from dinomix_monai.data.datalist import SECTIONS
from dinomix_monai.federated.recipe import PHANTOM_SETTINGS, build_recipe, client_arguments
from dinomix_monai.federated.server.summary import pool_case_scores
from dinomix_monai.federated.site.privacy import GaussianPrivacy
from dinomix_monai.metrics.paired_statistics import paired_interval

FORMS = {
    "labeled": "two sites with labels",
    "one": "and one without",
    "three": "and three without",
    "private-one": "and one without, differentially private",
    "pooled": "all scans at one site",
}
SMALLEST = 5
UNLABELED_SITES = 3


def main(
    forms: str | Sequence[str] = ("labeled", "one", "three", "pooled"),
    seeds: int | Sequence[int] = (0, 1, 2),
    rounds: int | Sequence[int] = 8,
    epochs_per_round: int = 2,
    clip_norm: float = 20.0,
    noise_multiplier: float = 0.0003,
    timeout: int = 7200,
    output_dir: str = "benchmarks/results/federation",
) -> None:
    """
    Runs what is missing and prints the table.

    Args:
        forms: what to run.
        seeds: seeds of the sites' training.
        rounds: rounds of a run; of several numbers, each is a run of its own.
        epochs_per_round: local epochs of a round.
        clip_norm: norm to which a private form clips what a site sends.
        noise_multiplier: standard deviation of its noise over that norm.
        timeout: seconds after which a run is given up.
        output_dir: folder of all runs.
    """
    folder = Path(output_dir).absolute()
    data = folder / "phantom"
    if not (data / "dataset.json").is_file():
        make_phantom(data)
    privacy = {"clip_norm": clip_norm, "noise_multiplier": noise_multiplier}
    for seed in ensure_tuple(seeds):
        for number in ensure_tuple(rounds):
            for form in forms.split(",") if isinstance(forms, str) else forms:
                result = folder / f"{number}rounds" / form / str(seed) / "result.json"
                if not result.is_file():
                    shutil.rmtree(result.parent, ignore_errors=True)
                    result.parent.mkdir(parents=True)
                    _run(result, form, seed, data, number, epochs_per_round, privacy, timeout)
    print(_table(folder, data))


def _run(
    result: Path,
    form: str,
    seed: int,
    data: Path,
    rounds: int,
    epochs_per_round: int,
    privacy: Mapping[str, float],
    timeout: int,
) -> None:
    lists = _site_lists(data, form.removeprefix("private-"))
    settings_file = write_site_settings(result.parent, lists, [{"seed": seed}] * len(lists))
    is_private = form.startswith("private-")
    recipe = build_recipe(
        num_sites=len(lists),
        num_rounds=rounds,
        epochs_per_round=epochs_per_round,
        settings=PHANTOM_SETTINGS,
        overlays=("ablation/pic",),
        arguments=client_arguments(settings_file=settings_file),
        transfer="difference" if is_private else "full",
        compare_alone=False,
    )
    if is_private:
        recipe.add_client_output_filter(GaussianPrivacy(**privacy), tasks=["train"])
    code, _, results = simulate(recipe, result.parent, len(lists), timeout)
    summary = results / "summary.json"
    if not summary.is_file():
        raise SystemExit(f"The run has ended with exit code {code}; {result.parent / 'log'} says why.")
    content = json.loads(summary.read_text())
    details: dict[str, Any] = {"steps": rounds * epochs_per_round * PHANTOM_SETTINGS["steps_per_epoch"]}
    details |= privacy if is_private else {}
    result.write_text(json.dumps({**details, **content}, indent=1))
    shutil.rmtree(result.parent / "workspace")


def _site_lists(data: Path, form: str) -> list[Path]:
    """Writes the datalist of each site of a form."""
    content = json.loads((data / "dataset.json").read_bytes())
    labeled = [section for section in SECTIONS if section != "unlabeled"]
    if form == "pooled":
        shares = [content]
    else:
        shares = [{section: content[section][number::2] for section in labeled} for number in range(2)]
        unlabeled = [content["unlabeled"][number::UNLABELED_SITES] for number in range(UNLABELED_SITES)]
        shares += [{"unlabeled": cases} for cases in unlabeled[: {"labeled": 0, "one": 1, "three": 3}[form]]]
    empty = {section: [] for section in SECTIONS}
    files = [data / f"{form}-{number}.json" for number in range(1, len(shares) + 1)]
    return [write_json(file, {**content, **empty, **share}) for file, share in zip(files, shares)]


def _table(folder: Path, data: Path) -> str:
    found = read_datalist(data)
    voxels = dict(zip(found.class_names, found.training_voxels))
    smallest = sorted(voxels, key=voxels.__getitem__)[:SMALLEST]
    lines = [
        "| rounds | federation | seeds | mean Dice | five smallest | against the sites with labels |",
        "|---|---|---|---|---|---|",
    ]
    for rounds in sorted(folder.glob("*rounds"), key=lambda path: int(path.name.removesuffix("rounds"))):
        by_form = {form: _results(rounds / form) for form in FORMS}
        for form, results in by_form.items():
            if not results:
                continue
            dice = [_pooled(result) for result in results.values()]
            cells = [
                rounds.name.removesuffix("rounds"),
                FORMS[form],
                ", ".join(results),
                spread([statistics.mean(each.values()) for each in dice]),
                spread([statistics.mean(each.get(organ, 0.0) for organ in smallest) for each in dice]),
                "" if form in ("labeled", "pooled") else _gain(results, by_form["labeled"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(folder.glob("*/result.json"))}


def _pooled(result: Mapping[str, Any]) -> dict[str, float]:
    return {organ: mean for organ, (mean, _) in pool_case_scores(result["scores"]["after"]).items()}


def _gain(results: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The difference of the mean Dice on the seeds that both have, with an interval over seeds and classes."""
    seeds = [seed for seed in results if seed in others]
    if not seeds:
        return ""
    scores = [
        np.array([list(_pooled(runs[seed]).values()) for seed in seeds])[:, :, None] for runs in (results, others)
    ]
    difference = float((scores[0] - scores[1]).mean())
    low, high = (float(end[-1]) for end in paired_interval(*scores))
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    fire.Fire(main)
