"""``python -m dinomix_monai COMMAND``: what is done around a training; training is ``python -m monai.bundle``."""

from __future__ import annotations

import json as json_format

import fire
from fire.decorators import SetParseFn

from dinomix_monai.data import make_phantom

__all__ = ["compare", "phantom"]


# As typed: fire would take 1,2 for numbers, and those are folders too.
@SetParseFn(str, "run_a", "run_b")
def compare(run_a: str, run_b: str, rule: str = "sound", metric: str | None = None, json: bool = False) -> None:
    """
    Compares two runs on the same cases: means, spread over seeds, intervals, tests, and in words what they support.

    Args:
        run_a: folder with a metrics.csv, or several separated by commas, one for each seed.
        run_b: the same for the run to compare with.
        rule: rule of scoring to compare by.
        metric: column of metrics.csv to compare; the rule's Dice if not given.
        json: print one JSON object instead of the table.
    """
    # Imported here: the other commands need no statistics.
    from dinomix_monai.metrics import compare_runs, read_scores

    a, b = ({folder: read_scores(folder, rule) for folder in run.split(",")} for run in (run_a, run_b))
    comparison = compare_runs(a, b, metric)
    print(json_format.dumps(comparison.to_dict(), indent=1) if json else comparison.table())


def phantom(dataset_dir: str, seed: int = 0) -> None:
    """
    Makes the procedural abdominal phantom, a data set on which everything runs without a download.

    Args:
        dataset_dir: folder to write to.
        seed: seed of the patients; 0 is what the bundle makes on first use.
    """
    print(make_phantom(dataset_dir, seed=seed))


if __name__ == "__main__":
    fire.Fire({"compare": compare, "phantom": phantom}, name="dinomix_monai")
