"""``python -m dinomix_monai COMMAND``: what is done around a training; training is ``python -m monai.bundle``."""

from __future__ import annotations

import fire

from dinomix_monai.data import make_phantom

__all__ = ["phantom"]


def phantom(dataset_dir: str, seed: int = 0) -> None:
    """
    Makes the procedural abdominal phantom, a data set on which everything runs without a download.

    Args:
        dataset_dir: folder to write to.
        seed: seed of the patients; 0 is what the bundle makes on first use.
    """
    print(make_phantom(dataset_dir, seed=seed))


if __name__ == "__main__":
    fire.Fire({"phantom": phantom}, name="dinomix_monai")
