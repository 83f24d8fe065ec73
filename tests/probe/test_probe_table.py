from __future__ import annotations

import numpy as np

from dinomix_monai.probe import ProbeTable


def test_the_table_names_classes_and_means():
    dice = {"teacher": np.array([0.5, np.nan, 0.7]), "intensities": np.array([0.25, np.nan, 0.0])}
    table = str(ProbeTable(["background", "liver", "vein", "gland"], np.array([90, 0, 3]), dice, smallest=2))
    assert table.splitlines() == [
        "class       voxels  teacher  intensities",
        "liver           90    0.500        0.250",
        "vein             0        -            -",
        "gland            3    0.700        0.000",
        "mean                  0.600        0.125",
        "2 smallest            0.700        0.000",
    ]
