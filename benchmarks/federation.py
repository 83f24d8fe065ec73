"""
What a site without labels brings to a federation, and what differential privacy takes from it, on the phantom.

    python benchmarks/federation.py [--forms labeled,unlabeled,equal,private] [--seeds 0]

Three sites share the phantom: two of them have the labels, and the unlabeled patients are dealt to all three. Each form
is a run in NVFlare's simulator with the same rounds and steps: the two sites with labels alone; all three; all three
with steps that count alike; and all three with clipped and noised changes. The best global model by validation is
scored on the test patients of the two sites with labels. Runs that are already in the output folder are not repeated.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from simulated_federation import simulate, write_site_settings
from spread import spread

from dinomix_monai.data import make_phantom, read_datalist, split_dataset
from dinomix_monai.federated.recipe import PHANTOM_SETTINGS, build_recipe, client_arguments
from dinomix_monai.federated.server.summary import pool_case_scores
from dinomix_monai.federated.site.privacy import GaussianPrivacy

NAMES = {
    "labeled": "two sites with labels",
    "unlabeled": "and a third one without",
    "equal": "and a third one without, whose steps count as much as the others'",
    "private": "all three, differentially private",
}
SMALLEST = 5


def main(
    forms: str | Sequence[str] = tuple(NAMES),
    seeds: int | Sequence[int] = (0,),
    rounds: int = 4,
    epochs_per_round: int = 2,
    clip_norm: float = 20.0,
    noise_multiplier: float = 0.0003,
    timeout: int = 1800,
    output_dir: str = "benchmarks/results/federation",
) -> None:
    """
    Runs what is missing and prints the table.

    Args:
        forms: what to run.
        seeds: seeds of the sites' training.
        rounds: rounds of a run.
        epochs_per_round: local epochs of a round.
        clip_norm: norm to which the private form clips what a site sends.
        noise_multiplier: standard deviation of its noise over that norm.
        timeout: seconds after which a run is given up.
        output_dir: folder of all runs.
    """
    folder = Path(output_dir).absolute()
    data = folder / "phantom"
    if not (data / "dataset.json").is_file():
        make_phantom(data)
    names = forms.split(",") if isinstance(forms, str) else list(forms)
    chosen_seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    privacy = {"clip_norm": clip_norm, "noise_multiplier": noise_multiplier}
    for seed in chosen_seeds:
        for form in names:
            result = folder / form / str(seed) / "result.json"
            if not result.is_file():
                shutil.rmtree(result.parent, ignore_errors=True)
                result.parent.mkdir(parents=True)
                _run(result, form, seed, data, rounds, epochs_per_round, privacy, timeout)
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
    sites = 2 if form == "labeled" else 3
    # Shares of three, whoever takes part.
    lists = split_dataset(data, 3, unlabeled_sites=1)
    settings_file = write_site_settings(result.parent, lists, [{"seed": seed}] * len(lists))
    recipe = build_recipe(
        num_sites=sites,
        num_rounds=rounds,
        epochs_per_round=epochs_per_round,
        settings=PHANTOM_SETTINGS,
        arguments=client_arguments(settings_file=settings_file),
        transfer="difference" if form == "private" else "full",
        **({"unlabeled_site_weight": 1.0} if form == "equal" else {}),
        compare_alone=False,
    )
    if form == "private":
        recipe.add_client_output_filter(GaussianPrivacy(**privacy), tasks=["train"])
    code, _, results = simulate(recipe, result.parent, sites, timeout)
    summary = results / "summary.json"
    if not summary.is_file():
        raise SystemExit(f"The run has ended with exit code {code}; {result.parent / 'log'} says why.")
    content = json.loads(summary.read_text())
    details: dict[str, Any] = {"steps": rounds * epochs_per_round * PHANTOM_SETTINGS["steps_per_epoch"]}
    details |= privacy if form == "private" else {}
    result.write_text(json.dumps({**details, **content}, indent=1))
    shutil.rmtree(result.parent / "workspace")


def _table(folder: Path, data: Path) -> str:
    voxels = dict(zip(*[(found := read_datalist(data)).class_names, found.training_voxels]))
    smallest = sorted(voxels, key=voxels.__getitem__)[:SMALLEST]
    lines = ["| federation | seeds | steps of a site | mean Dice | five smallest |", "|---|---|---|---|---|"]
    for form, name in NAMES.items():
        files = sorted((folder / form).glob("*/result.json"))
        if not files:
            continue
        results = [json.loads(file.read_text()) for file in files]
        dice = [{organ: mean for organ, (mean, _) in pool_case_scores(r["scores"]["after"]).items()} for r in results]
        if "clip_norm" in results[0]:
            name += f" (clip_norm {results[0]['clip_norm']:g}, noise_multiplier {results[0]['noise_multiplier']:g})"
        cells = [
            name,
            ", ".join(file.parent.name for file in files),
            str(results[0]["steps"]),
            spread([statistics.mean(each.values()) for each in dice]),
            spread([statistics.mean(each.get(organ, 0.0) for organ in smallest) for each in dice]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    fire.Fire(main)
