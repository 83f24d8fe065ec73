r"""
Methods side by side, each for the same wall time, scored once on the test cases.

    python benchmarks/compare.py --dataset_dir DIR --minutes 10
    python benchmarks/compare.py --dataset_dir DIR --minutes 10 --overlay acdc --learning_rates 0.004,0.008,0.016
    python benchmarks/compare.py --dataset_dir DIR --minutes 15 --table teacher \
        --overlay benchmarks/configs/ct_3mm.json --teacher_weights FILE
    python benchmarks/compare.py --minutes 8 --table ablation

The first two compare DINO-Mix with other methods on a data set of your own, the third one with a pre-trained teacher
and with an untrained one, and the last one takes DINO-Mix apart on the built-in phantom, for the table of the README.
Other options are settings of the bundle for every arm, such as ``--teacher_weights none``.

Each arm first runs a few epochs by itself on all cores, which tell how many of them fit into the time beside what comes
before them (caching the volumes and, for DINO-Mix, computing the token cache from nothing); with ``--jobs``
the runs are then made side by side with their share of the cores, which gives the same steps sooner. Runs that are
already in the output folder are not repeated, so a comparison can be made in pieces. With ``--learning_rates`` each arm
is trained at each of them with the first seed, and the best on the validation cases serves the other seeds.
"""

from __future__ import annotations

import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fire
from spread import spread
from timed_run import epochs_of_arm, in_a_process

NAMES = {
    "supervised": "supervised, labeled cases alone",
    "ema": "+ EMA pseudo-labels",
    "cutmix": "+ plain CutMix",
    "bcp": "BCP",
    "cps": "CPS with DHC's class weighting",
    "self_training": "offline self-training",
    "nnunet": "nnU-Net v2",
    "nnunet_self_training": "nnU-Net v2, offline self-training",
    "pic": "+ PIC",
    "probe": "+ PIC, the teacher beside the model, no FKD",
    "dinomix": "DINO-Mix",
    "fkd_untrained": "DINO-Mix, FKD with an untrained teacher",
    "fkd_content": "DINO-Mix, FKD with a content-coding teacher (bound)",
    "all_labels": "supervised, all labels (bound)",
}
# Their results come from nnunet.py.
NNUNET = ["nnunet", "nnunet_self_training"]
TABLES = {
    "baselines": ["supervised", "ema", "cutmix", "bcp", "cps", "dinomix"],
    "teacher": [
        *("supervised", "ema", "cutmix", "bcp", "cps", "self_training"),
        *("pic", "fkd_untrained", "probe", "dinomix", "all_labels"),
    ],
    "ablation": ["supervised", "ema", "cutmix", "pic", "fkd_untrained", "fkd_content", "all_labels"],
}
SMALLEST = 5


def main(
    dataset_dir: str | None = None,
    minutes: float = 8.0,
    seeds: int | tuple[int, ...] = (0, 1, 2),
    table: str = "baselines",
    arms: str | tuple[str, ...] | None = None,
    overlay: str | tuple[str, ...] = (),
    learning_rates: float | tuple[float, ...] = (),
    output_dir: str = "benchmarks/results",
    jobs: int = 1,
    **settings: Any,
) -> None:
    """
    Runs what is missing and prints the table.

    Args:
        dataset_dir: folder of the data set, the built-in phantom if not given.
        minutes: wall time of each run on all cores.
        seeds: seeds of the runs of each arm.
        table: baselines, teacher or ablation.
        arms: arms to run now, all of the table if not given.
        overlay: configs of the bundle by name, or files, that fit it to the data.
        learning_rates: rates to choose from for each arm; that of the bundle if not given.
        output_dir: folder of all runs.
        jobs: runs side by side.
        **settings: settings of the bundle for all arms.
    """
    chosen, overlays, rates = _listed(arms) or TABLES[table], _listed(overlay), _listed(learning_rates)
    listed = [*TABLES[table], *(NNUNET if table == "teacher" else [])]
    name = Path(dataset_dir).resolve().name if dataset_dir else "phantom"
    folder = Path(output_dir) / name / f"{minutes:g}min"
    common = {"overlays": overlays, **({"dataset_dir": dataset_dir} if dataset_dir else {}), **settings}
    epochs = {arm: epochs_of_arm(folder / arm, minutes, arm=arm, **common) for arm in chosen}
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def run(arm: str, seed: int, rate: float | None) -> None:
        result = _run_folder(folder / arm, rate) / str(seed) / "result.json"
        if not result.is_file():
            at = {} if rate is None else {"learning_rate": rate}
            in_a_process(
                "train", threads, arm=arm, seed=seed, epochs=epochs[arm], output_dir=result.parent, **common, **at
            )
        print(_table(folder, listed), flush=True)

    first, *others = _listed(seeds)
    with ThreadPoolExecutor(jobs) as pool:
        searched = [(arm, first, rate) for arm in chosen for rate in (rates or [_best_rate(folder / arm)])]
        for finished in [pool.submit(run, *one) for one in searched]:
            finished.result()
        for finished in [pool.submit(run, arm, seed, _best_rate(folder / arm)) for seed in others for arm in chosen]:
            finished.result()
    for verdict in _verdicts(folder, listed):
        print(verdict)


def _listed(values: Any) -> list[Any]:
    if isinstance(values, str):
        return values.split(",")
    return list(values) if isinstance(values, (list, tuple)) else [values] if values is not None else []


def _run_folder(folder: Path, rate: float | None) -> Path:
    return folder if rate is None else folder / f"rate_{rate:g}"


def _best_rate(folder: Path) -> float | None:
    """The learning rate that was best on the validation cases, ``None`` where it was not searched."""
    found: dict[float, dict[str, float]] = {}
    for file in sorted(folder.glob("rate_*/*/result.json")):
        result = json.loads(file.read_text())
        found.setdefault(result["learning_rate"], {})[file.parent.name] = result["validation"]
    if not found:
        return None
    # By the seeds that all rates have: one of several seeds would win by luck alone.
    common = set.intersection(*map(set, found.values()))
    return max(found, key=lambda rate: sum(found[rate][seed] for seed in common))


def _results(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    files = sorted(_run_folder(folder, _best_rate(folder)).glob("[0-9]*/result.json"))
    return [(file.parent, json.loads(file.read_text())) for file in files]


def _table(folder: Path, arms: list[str]) -> str:
    lines = [
        "| arm | seeds | steps | mean Dice | five smallest | lowest class |",
        "|---|---|---|---|---|---|",
    ]
    splits, rates = set(), []
    for arm in arms:
        found = _results(folder / arm)
        if not found:
            continue
        results = [result for _, result in found]
        splits |= {result.get("split", "test") for result in results}
        smallest = sorted(results[0]["voxels"], key=results[0]["voxels"].get)[:SMALLEST]
        means = [statistics.mean(result["dice"].values()) for result in results]
        small = [statistics.mean(result["dice"][organ] for organ in smallest) for result in results]
        lowest = min(min(result["dice"].values()) for result in results)
        if searched := len(list((folder / arm).glob("rate_*"))):
            rates.append(f"{NAMES[arm].removeprefix('+ ')} {results[0]['learning_rate']:g} (best of {searched})")
        cells = [
            NAMES[arm],
            ", ".join(path.name for path, _ in found),
            str(results[0]["steps"]),
            spread(means),
            spread(small) if len(results[0]["dice"]) > SMALLEST else "",
            f"{lowest:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rates.append(f"the bundle's for {'the others' if rates else 'all'}")
    lines += ["", f"Learning rates: {', '.join(rates)}."]
    if "validation" in splits:
        lines.append("There are no test cases: these are the validation cases, which have chosen the models as well.")
    return "\n".join(lines)


def _verdicts(folder: Path, arms: list[str]) -> list[str]:
    """DINO-Mix against each other arm, on the same cases and seeds: what the numbers support."""
    from dinomix_monai.metrics import compare_runs, read_scores

    def scores(arm: str) -> dict[str, Any]:
        return {path.name: path / "test" for path, _ in _results(folder / arm) if (path / "test/metrics.csv").is_file()}

    found = {arm: scores(arm) for arm in arms if "bound" not in NAMES[arm]}
    ours = next((arm for arm in ("dinomix", "fkd_untrained") if found.get(arm)), None)
    lines = []
    for arm in found if ours else ():
        seeds = sorted(set(found[arm]) & set(found[ours]))
        if arm == ours or not seeds:
            continue
        runs = [{seed: read_scores(found[one][seed], "sound") for seed in seeds} for one in (ours, arm)]
        if len(next(iter(runs[0].values())).cases) < 2:
            return ["With one test case there is no interval of a difference."]
        mean = compare_runs(*runs).mean
        verdict = {"A": "higher", "B": "lower"}.get(mean.higher(0.05) or "", "no difference shown")
        lines.append(
            f"DINO-Mix - {NAMES[arm].removeprefix('+ ')}: {mean.difference:+.3f} "
            f"({mean.low:+.3f} to {mean.high:+.3f}), p {mean.p:.3f}: {verdict}. Seeds {', '.join(seeds)}."
        )
    return lines


if __name__ == "__main__":
    fire.Fire(main)
