from __future__ import annotations

import torch

from dinomix_monai.engines import ScanTokens
from dinomix_monai.probe.dataset_probe import _held_out


class Recorder:
    """A probe that remembers what it was fitted to, and gives each scan the class of its number."""

    def __init__(self) -> None:
        self.fitted: list[list[float]] = []

    def fit(self, scans: list[ScanTokens]) -> Recorder:
        self.fitted.append([float(scan.tokens.flatten()[0]) for scan in scans])
        return self

    def logits(self, tokens: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        logits = torch.zeros(8, *shape)
        logits[int(tokens.flatten()[0])] = 1
        return logits


def test_scans_of_a_patient_are_left_out_together() -> None:
    scans = [ScanTokens(torch.full((1, 1, 1, 1), float(n)), torch.zeros(2, 2, 2)) for n in range(5)]
    probe = Recorder()
    found = _held_out(probe, scans, ["a", "b", "a", "c", "b"])
    assert sorted(probe.fitted) == sorted([[1, 3, 4], [0, 2, 3], [0, 1, 2, 4]])
    assert [int(classes.unique()) for classes in found] == [0, 1, 2, 3, 4]
