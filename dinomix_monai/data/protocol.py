"""Published benchmark protocols: which cases are labeled, and how their volumes are prepared."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

__all__ = ["DATASETS", "Protocol", "read_protocol"]

DATASETS = ("synapse", "amos", "acdc", "la")
"""Data sets of which the package has protocols."""


@dataclass(frozen=True)
class Protocol:
    """
    One published split of a data set, and the preprocessing that it is scored with.

    Args:
        dataset: name of the data set, such as ``synapse``.
        title: its name in full.
        description: what the preparation does to its volumes.
        class_names: names by label value, background first.
        files: where a case may be in the raw folder, as patterns of ``{id}``, the first that exists counts: one of
            ``image`` and one of ``label``, or one of ``image`` alone for an h5 file that holds both.
        name: name of the protocol, such as ``skcdf``.
        source: where it is published.
        default_labeled: the share of labeled training cases that is reported most, in percent.
        labeled: ids of the labeled training cases by share in percent.
        train: ids of all training cases.
        validation: ids of the cases that choose the best model.
        test: ids of the test cases.
        grid: voxels in x, y and z that every volume is resized to, ``None`` to leave it.
        window: intensities that are clipped to before each volume is scaled to [0, 1], ``None`` to leave them.
        axes: order of the axes in h5 files, ``xyz`` or ``zyx``.
        spacing_mm: voxel size in x, y and z of files that hold none, ``None`` where files hold it.
    """

    dataset: str
    title: str
    description: str
    class_names: list[str]
    files: list[dict[str, str]]
    name: str
    source: str
    default_labeled: int
    labeled: dict[str, list[str]]
    train: list[str]
    validation: list[str]
    test: list[str]
    grid: list[int] | None = None
    window: list[float] | None = None
    axes: str = "xyz"
    spacing_mm: list[float] | None = None

    def sections(self, labeled: int) -> dict[str, list[str]]:
        """
        Ids by section of a datalist when ``labeled`` percent of the training cases are labeled.

        Any published share will do, and 100, which leaves no case unlabeled.

        Raises:
            ValueError: When the protocol has no such share.
        """
        shares = {**self.labeled, "100": self.train}
        if str(labeled) not in shares:
            raise ValueError(
                f"labeled must be one of {', '.join(shares)} (percent) in protocol {self.name} of {self.dataset}, "
                f"got {labeled}."
            )
        training = shares[str(labeled)]
        unlabeled = [case for case in self.train if case not in training]
        return {"training": training, "unlabeled": unlabeled, "validation": self.validation, "test": self.test}


def read_protocol(dataset: str | Path, name: str | None = None) -> Protocol:
    """
    Reads a protocol of the package, or of a JSON file of the same form.

    Args:
        dataset: one of :data:`DATASETS`, or the path of a ``.json``.
        name: name of the protocol, by default the first of the data set.

    Raises:
        ValueError: When there is no such data set or no such protocol of it.

    Example:
        >>> from dinomix_monai.data import read_protocol
        >>> read_protocol("synapse", "skcdf").sections(20)["training"]
        ['0021', '0023', '0028', '0032']
    """
    path = Path(dataset)
    if path.suffix == ".json":
        content = json.loads(path.read_bytes())
    elif dataset in DATASETS:
        content = json.loads(resources.files("dinomix_monai.data").joinpath(f"protocols/{dataset}.json").read_text())
    else:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)} or a .json of protocols, got {dataset}.")
    protocols = {entry["name"]: entry for entry in content.pop("protocols")}
    name = next(iter(protocols)) if name is None else name
    if name not in protocols:
        raise ValueError(f"protocol must be one of {', '.join(protocols)} for {path.stem}, got {name}.")
    return Protocol(dataset=path.stem, **content, **protocols[name])
