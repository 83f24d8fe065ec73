"""``python -m dinomix_monai COMMAND``: what is done around a training; training is ``python -m monai.bundle``."""

from __future__ import annotations

import fire

from dinomix_monai.data import make_phantom, prepare_dataset, read_protocol

__all__ = ["phantom", "prepare"]


def phantom(dataset_dir: str, seed: int = 0) -> None:
    """
    Makes the procedural abdominal phantom, a data set on which everything runs without a download.

    Args:
        dataset_dir: folder to write to.
        seed: seed of the patients; 0 is what the bundle makes on first use.
    """
    print(make_phantom(dataset_dir, seed=seed))


def prepare(
    dataset: str, raw_dir: str, out_dir: str, labeled: int | None = None, protocol: str | None = None, workers: int = 4
) -> None:
    """
    Makes the data set of a published protocol from the raw folder of its publisher.

    Args:
        dataset: synapse, amos, acdc or la.
        raw_dir: folder of the raw data set.
        out_dir: folder to make; it appears when it is complete.
        labeled: share of labeled training cases in percent, by default the one that the protocol is known for.
        protocol: name of the split; synapse has skcdf, dhc and genericssl, the others one each.
        workers: processes; each holds one case at a time.
    """
    chosen = read_protocol(dataset, protocol)
    labeled = chosen.default_labeled if labeled is None else labeled
    counts = ", ".join(f"{len(cases)} {section}" for section, cases in chosen.sections(labeled).items())
    print(f"{chosen.title}, protocol {chosen.name}, {labeled} % labeled: {counts}.", flush=True)
    print(prepare_dataset(chosen, raw_dir, out_dir, labeled, workers))


if __name__ == "__main__":
    fire.Fire({"phantom": phantom, "prepare": prepare}, name="dinomix_monai")
