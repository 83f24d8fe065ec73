"""Whether one intensity means the same tissue in all scans, as their names and intensities tell."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from dinomix_monai.transforms import AIR_HU

__all__ = ["Calibration", "calibration_of"]

_CT = {"ct", "cta"}
_OTHERS = {
    *("mr", "mri", "mra", "t1", "t1w", "t1ce", "t1c", "t1gd", "t1n", "t2", "t2w", "t2f", "flair", "adc", "dwi", "pd"),
    *("swi", "pet", "pt", "suv"),
}
# What is cut off below has a value less than this there; what each scan is scaled to by itself, as by z-score or to
# -1 to 1, has none.
_CUT_HU = -20.0
# Share of the voxels of a scan that have its least or greatest value where it was cut off there.
_CUT_SHARE = 0.002
_SAME = 0.01


class Calibration(NamedTuple):
    """
    What a channel is taken for.

    Args:
        is_calibrated: whether one intensity means the same tissue in all scans, as in CT.
        reason: what tells, as a phrase.
        doubt: what tells otherwise, as a phrase that goes on from "Intensities"; empty where nothing does.
    """

    is_calibrated: bool
    reason: str
    doubt: str = ""


def calibration_of(name: str, ranges: np.ndarray, at_ends: np.ndarray) -> Calibration:
    """
    What a channel is taken for.

    The name that the list of the data set gives it counts most. Then images are those of CT where most reach down to
    air in Hounsfield units, or where each one reaches there or is cut off below 0: it has many voxels of its least
    value, a whole number, or all have the same one. Images that have been scaled one by one, as MR to 0 to 1000 or by
    z-score, are not below 0, or not by as much. CT that has been shifted or scaled looks like them.

    Args:
        name: name of the channel.
        ranges: its least and greatest intensity in each scan, shape (scans, 2).
        at_ends: share of the scan's voxels that have either, same shape.
    """
    words = {word for word in re.split(r"[^a-z0-9]+", name.lower()) if word}
    if words & (_CT | _OTHERS):
        return Calibration(not words & _OTHERS, f"dataset.json calls them {name}")
    lows, highs = ranges.T
    is_air, is_same = lows <= AIR_HU, np.ptp(lows) <= _SAME * np.mean(highs - lows)
    if np.median(lows) <= AIR_HU:
        return Calibration(True, "most scans reach down to air in Hounsfield units")
    is_floor = (at_ends[:, 0] >= _CUT_SHARE) & (lows == np.round(lows))
    is_cut = (lows <= _CUT_HU) & (is_floor | (is_same and len(lows) > 1))
    if (is_air | is_cut).all():
        return Calibration(True, f"all scans are cut off below 0, at {_some(lows)}, or reach down to air")
    if (lows <= _CUT_HU).any():
        doubt = f"reach down to {lows.min():g}, and neither reach air in Hounsfield units nor are cut off in all scans"
        return Calibration(False, "not all scans are cut off below 0 or reach down to air", doubt)
    is_shared = np.ptp(ranges, axis=0).max() == 0
    doubt = f"are cut off at {highs[0]:g}" if is_shared and (at_ends[:, 1] >= _CUT_SHARE).all() else ""
    return Calibration(False, f"no scan has values below {_CUT_HU:g}", doubt)


def _some(values: np.ndarray) -> str:
    return " and ".join(f"{value:g}" for value in np.unique(values)[:2])
