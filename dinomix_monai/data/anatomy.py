"""Procedural abdominal anatomy: thirteen organs, their variation between patients, and how a scanner sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

__all__ = ["ORGANS", "Anatomy", "Population", "scan"]

Vector = Sequence[float] | np.ndarray

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
"""Organ names in the label order of the Synapse multi-atlas challenge; organ ``i`` has label value ``i + 1``."""

(
    _SPLEEN,
    _RKIDNEY,
    _LKIDNEY,
    _GALLBLADDER,
    _ESOPHAGUS,
    _LIVER,
    _STOMACH,
    _AORTA,
    _IVC,
    _PSV,
    _PANCREAS,
    _RADRENAL,
    _LADRENAL,
) = range(1, 14)

# HU without contrast agent, and what the arterial and the portal venous phase add at their height.
_HU = {
    _SPLEEN: (46, 30, 74),
    _RKIDNEY: (32, 60, 135),
    _LKIDNEY: (32, 60, 135),
    _GALLBLADDER: (10, 0, 4),
    _ESOPHAGUS: (36, 10, 24),
    _LIVER: (54, 0, 52),
    _STOMACH: (38, 10, 16),
    _AORTA: (42, 150, 118),
    _IVC: (40, -10, 92),
    _PSV: (41, -10, 106),
    _PANCREAS: (38, 40, 50),
    _RADRENAL: (32, 24, 46),
    _LADRENAL: (32, 24, 46),
}
_FAT_HU, _AIR_HU, _MUSCLE_HU, _MARROW_HU, _CORTEX_HU = -100.0, -1000.0, 54.0, 150.0, 290.0


@dataclass(frozen=True)
class Population:
    """
    The range that patients and scanners are drawn from.

    Args:
        rotation_rad: standard deviation of the rotation about the body axis.
        scale: smallest and largest body size relative to the mean, drawn for each axis.
        shift: standard deviation of the field of view's offset in z, in half volumes; in x and y it is half of that.
        phase: earliest and latest time of the scan: up to about 0.35 before the contrast agent, 0.55 arterial,
            1 portal venous.
        variation: how much position, size and tilt of the organs vary, relative to the whole population.
        noise_hu: least and greatest standard deviation of the scanner's noise.
    """

    rotation_rad: float
    scale: tuple[float, float]
    shift: float
    phase: tuple[float, float]
    variation: float
    noise_hu: tuple[float, float]


class Anatomy:
    """
    Organs and surroundings of one patient as a label map and noise-free HU, on a regular grid.

    Positions are body coordinates in [-1, 1]: x to the patient's left, y to the back, z to the head. Shapes are
    painted in order, so a later one covers an earlier one.

    Args:
        random_state: source of everything that varies.
        population: the range that the patient is drawn from.
        size: voxels in x, y and z.
    """

    def __init__(self, random_state: np.random.RandomState, population: Population, size: Sequence[int]) -> None:
        self.R = random_state
        self.phase = self.R.uniform(*population.phase)
        self.variation = population.variation
        self.size = tuple(size)
        self.x, self.y, self.z = (c.ravel() for c in self._body_coordinates(population))
        self.label = np.zeros(self.x.size, dtype=np.uint8)
        self.hu = np.full(self.x.size, _AIR_HU)
        self._paint_body()
        self._paint_distractors()
        self._paint_organs()

    @property
    def arterial(self) -> float:
        """How much of the arterial enhancement there is at the time of the scan."""
        return float(np.exp(-(((self.phase - 0.55) / 0.15) ** 2)))

    @property
    def venous(self) -> float:
        """How much of the portal venous enhancement there is."""
        return float(np.clip((self.phase - 0.4) / 0.55, 0, 1) ** 1.5)

    def _body_coordinates(self, population: Population) -> list[np.ndarray]:
        """Body coordinates of every voxel: the grid, moved, turned, scaled and smoothly warped."""
        x, y, z = np.meshgrid(*(np.linspace(-1 + 1 / n, 1 - 1 / n, n) for n in self.size), indexing="ij")
        angle = self.R.normal(0, population.rotation_rad)
        shift = self.R.normal(0, 1, 3) * population.shift * (0.5, 0.5, 1.0)
        scale = self.R.uniform(*population.scale, 3)
        x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
        coordinates = []
        for axis, (c, amplitude) in enumerate(zip((x, y, z), (0.036, 0.036, 0.04))):
            warp = _smooth_field(self.R.normal(0, amplitude, (5, 5, 4)), self.size)
            coordinates.append((c - shift[axis]) / scale[axis] + warp)
        return coordinates

    def _near(self, center: Vector, reach: float) -> np.ndarray:
        """Indices of the voxels within a cube around a point."""
        index = np.flatnonzero(np.abs(self.x - center[0]) < reach)
        # Each axis leaves fewer voxels to the next one.
        for position, middle in ((self.y, center[1]), (self.z, center[2])):
            index = index[np.abs(position[index] - middle) < reach]
        return index

    def _ellipsoid(self, center: Vector, radii: Vector, tilt: Vector = (0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
        """Indices inside an ellipsoid tilted in the axial and the coronal plane, and their radius in [0, 1]."""
        index = self._near(center, max(radii) * 1.01)
        dx, dy, dz = self.x[index] - center[0], self.y[index] - center[1], self.z[index] - center[2]
        axial, coronal = tilt
        dx, dy = np.cos(axial) * dx - np.sin(axial) * dy, np.sin(axial) * dx + np.cos(axial) * dy
        dx, dz = np.cos(coronal) * dx - np.sin(coronal) * dz, np.sin(coronal) * dx + np.cos(coronal) * dz
        radius = np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2)
        inside = radius < 1
        return index[inside], radius[inside]

    def _tube(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices inside a tube along a polyline of nodes (x, y, z, radius), and their radius in [0, 1]."""
        indices, radii = [], []
        for start, end in zip(nodes[:-1], nodes[1:]):
            middle, reach = (start + end) / 2, np.abs(end - start)[:3].max() / 2 + max(start[3], end[3])
            index = self._near(middle, reach)
            along = end[:3] - start[:3]
            dx, dy, dz = self.x[index] - start[0], self.y[index] - start[1], self.z[index] - start[2]
            t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / max((along**2).sum(), 1e-12), 0, 1)
            distance = np.sqrt((dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dz - t * along[2]) ** 2)
            radius = distance / (start[3] + t * (end[3] - start[3]))
            indices.append(index[radius < 1])
            radii.append(radius[radius < 1])
        return np.concatenate(indices), np.concatenate(radii)

    def _column(self, center: Sequence[float], radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Indices inside a column along the body axis, and their radius in [0, 1]."""
        depth = np.sqrt((self.x - center[0]) ** 2 + (self.y - center[1]) ** 2) / radius
        index = np.flatnonzero(depth < 1)
        return index, depth[index]

    def _paint(self, index: np.ndarray, hu: float | np.ndarray, label: int = 0) -> None:
        self.hu[index] = hu
        self.label[index] = label

    def _organ_hu(self, organ: int, spread: float) -> float:
        plain, arterial, venous = _HU[organ]
        enhancement = arterial * self.arterial + venous * self.venous
        return plain + enhancement * self.R.uniform(0.88, 1.12) + self.R.normal(0, spread)

    def _jitter(self, center: Vector, spread: float) -> np.ndarray:
        return np.asarray(center) + self.variation * self.R.normal(0, spread, 3) * (1, 1, 1.2)

    def _paint_body(self) -> None:
        wall = self.R.uniform(0.06, 0.16)
        radius = np.sqrt((self.x / 0.90) ** 2 + (self.y / 0.74) ** 2)
        self.hu[radius < 1] = _FAT_HU
        self.hu[(radius < 1 - wall) & (radius > 0.93 - wall)] = _MUSCLE_HU
        for side in (-1, 1):
            self._paint(
                self._tube(self._nodes([(side * 0.17, 0.40, -1.3, 0.12), (side * 0.15, 0.42, 0.3, 0.05)]))[0], 58
            )
            self._paint(self._column((side * 0.17, 0.58), 0.12)[0], 57)
        index, depth = self._column((0.0, 0.43), 0.135)
        self._paint(index, np.where(depth > 0.82, _CORTEX_HU, _MARROW_HU + 15 * np.cos(14 * self.z[index])))

    def _paint_distractors(self) -> None:
        """Bowel, nodules and vessels without a label, of the same brightness as the organs."""
        for _ in range(self.R.randint(12, 22)):
            center = self.R.uniform((-0.6, -0.5, -1.0), (0.6, 0.2, 0.05))
            index, _ = self._ellipsoid(center, self.R.uniform(0.06, 0.17, 3), self.R.normal(0, 0.5, 2))
            self._paint(index, self.R.choice([20, 45, 70, 95, 120]) + self.R.normal(0, 6))
        for _ in range(self.R.randint(10, 18)):
            center = self.R.uniform((-0.6, -0.45, -0.9), (0.6, 0.35, 0.9))
            index, _ = self._ellipsoid(center, self.R.uniform(0.03, 0.08, 3))
            self._paint(index, self.R.choice([15, 40, 65, 90, 130]) + self.R.normal(0, 6))
        for _ in range(self.R.randint(4, 8)):
            start = self.R.uniform((-0.5, -0.4, -0.9), (0.5, 0.3, 0.7))
            end = start + self.R.uniform(-0.35, 0.35, 3)
            index, _ = self._tube(self._nodes([(*start, 0.035), (*end, 0.025)]))
            self._paint(index, 42 + 100 * self.venous * self.R.uniform(0.4, 1.1))

    @staticmethod
    def _nodes(nodes: Sequence[Sequence[float]]) -> np.ndarray:
        return np.asarray(nodes, dtype=float)

    def _jittered_nodes(self, nodes: Sequence[Sequence[float]], spread: float) -> np.ndarray:
        moved = self._nodes(nodes)
        moved[:, :3] += self.variation * (self.R.normal(0, spread, 3) + self.R.normal(0, spread / 2, (len(moved), 3)))
        moved[:, 3] *= np.exp(self.variation * self.R.normal(0, 0.12))
        return moved

    def _blob(
        self, organ: int, parts: Sequence[tuple], jitter: float, spread: float, size: float = 0.14, tilt: float = 0.2
    ) -> np.ndarray:
        """Paints an organ of ellipsoids that share their offset, size and brightness; returns the first center."""
        hu, offset = self._organ_hu(organ, spread), self._jitter((0, 0, 0), jitter)
        growth = np.exp(self.variation * (self.R.normal(0, size / 1.5) + self.R.normal(0, size / 1.5, 3)))
        angles = self.variation * self.R.normal(0, tilt, 2)
        for center, radii in parts:
            self._paint(self._ellipsoid(center + offset, radii * growth, angles)[0], hu, organ)
        return np.asarray(parts[0][0]) + offset

    def _paint_organs(self) -> None:
        self._blob(
            _LIVER,
            [((-0.42, -0.05, 0.32), (0.37, 0.46, 0.52)), ((-0.08, -0.30, 0.42), (0.32, 0.20, 0.26))],
            jitter=0.03, spread=5, size=0.12, tilt=0.1,
        )  # fmt: skip
        self._paint_stomach()
        self._blob(_SPLEEN, [((0.60, 0.17, 0.40), (0.17, 0.23, 0.34))], jitter=0.04, spread=5, size=0.18)
        right = self._paint_kidney(_RKIDNEY, (-0.36, 0.28, -0.22))
        left = self._paint_kidney(_LKIDNEY, (0.38, 0.28, -0.10))
        self._paint_vessels()
        self._blob(
            _GALLBLADDER, [((-0.34, -0.36, -0.10), (0.10, 0.12, 0.19))], jitter=0.045, spread=6, size=0.2, tilt=0.4
        )
        self._paint_esophagus()
        self._paint_adrenal(_RADRENAL, right + (0.12, -0.10, 0.38), side=-1)
        self._paint_adrenal(_LADRENAL, left + (-0.14, -0.12, 0.32), side=1)

    def _paint_stomach(self) -> None:
        parts = [((0.33, -0.22, 0.40), (0.20, 0.22, 0.33)), ((0.14, -0.36, 0.08), (0.22, 0.12, 0.12))]
        center = self._blob(_STOMACH, parts, jitter=0.05, spread=6, size=0.2)
        index, _ = self._ellipsoid(center, (0.15, 0.17, 0.27))
        self.hu[index[self.label[index] == _STOMACH]] = self.R.choice([5, 30, 70])

    def _paint_kidney(self, organ: int, center: Sequence[float]) -> np.ndarray:
        hu, middle = self._organ_hu(organ, 6), self._jitter(center, 0.04)
        radii = np.array([0.155, 0.145, 0.32]) * np.exp(self.variation * self.R.normal(0, 0.15, 3))
        index, depth = self._ellipsoid(middle, radii, self.variation * self.R.normal(0, 0.25, 2))
        self._paint(index, np.where(depth < 0.55, hu - 30 * self.venous - 60 * self.arterial, hu), organ)
        return middle

    def _paint_vessels(self) -> None:
        trunk = self._jitter((0.0, 0.0, 0.0), 0.03)
        splenic = self._nodes(
            [
                (-0.20, -0.10, 0.22, 0.056),
                (-0.06, -0.04, 0.10, 0.056),
                (0.12, 0.00, 0.14, 0.044),
                (0.36, 0.10, 0.28, 0.040),
            ]
        )
        splenic[:, :3] += trunk + self.variation * self.R.normal(0, 0.025, (4, 3))
        mesenteric = self._nodes([splenic[1], splenic[1] + (0.01, -0.05, -0.34, -0.008)])
        pancreas = self._nodes(
            [
                (-0.16, -0.13, -0.06, 0.105),
                (-0.04, -0.15, 0.05, 0.085),
                (0.13, -0.10, 0.11, 0.080),
                (0.34, 0.00, 0.24, 0.070),
            ]
        )
        pancreas[:, :3] += trunk + self.variation * self.R.normal(0, 0.03, (4, 3))
        self._paint(self._tube(pancreas)[0], self._organ_hu(_PANCREAS, 5), _PANCREAS)
        cava = self._jittered_nodes(
            [(-0.12, 0.20, -1.4, 0.080), (-0.13, 0.16, 0.1, 0.078), (-0.14, 0.04, 0.9, 0.082)], 0.02
        )
        self._paint(self._tube(cava)[0], self._organ_hu(_IVC, 8), _IVC)
        aorta = self._jittered_nodes(
            [(0.05, 0.24, -1.4, 0.072), (0.06, 0.20, 0.1, 0.076), (0.07, 0.24, 1.4, 0.080)], 0.02
        )
        self._paint(self._tube(aorta)[0], self._organ_hu(_AORTA, 10), _AORTA)
        hu = self._organ_hu(_PSV, 7)
        for vessel in (splenic, mesenteric):
            self._paint(self._tube(vessel)[0], hu, _PSV)

    def _paint_esophagus(self) -> None:
        low = 0.46 + 0.06 * self.variation * self.R.uniform(-1, 1)
        nodes = self._jittered_nodes(
            [(0.12, -0.02, low, 0.070), (0.06, 0.08, 0.75, 0.066), (0.03, 0.10, 1.4, 0.066)], 0.02
        )
        index, depth = self._tube(nodes)
        hu = self._organ_hu(_ESOPHAGUS, 6)
        self._paint(index, np.where(depth < 0.35, hu - 30, hu), _ESOPHAGUS)

    def _paint_adrenal(self, organ: int, center: np.ndarray, side: int) -> None:
        hu, center = self._organ_hu(organ, 4), self._jitter(center, 0.022)
        radius = 0.041 * np.exp(self.variation * self.R.normal(0, 0.12))
        apex = (*(center + (0, -0.06, 0.03)), radius)
        for lateral in (-0.02 * side, 0.10 * side):
            foot = (*(center + (lateral, 0.10, -0.05) + self.variation * self.R.normal(0, 0.015, 3)), radius * 0.8)
            self._paint(self._tube(self._nodes([apex, foot]))[0], hu, organ)


def scan(anatomy: Anatomy, random_state: np.random.RandomState, noise_hu: float) -> np.ndarray:
    """
    What a scanner sees of an anatomy: tissue texture, partial volume and correlated noise.

    Args:
        anatomy: the patient.
        random_state: source of the texture and the noise.
        noise_hu: standard deviation of the noise after the reconstruction filter.

    Returns:
        HU as int16, shape (X, Y, Z).
    """
    hu = anatomy.hu.reshape(anatomy.size)
    texture = _smooth_field(random_state.normal(0, 9, (9, 9, 9)), anatomy.size)
    hu = hu + texture * (hu > _FAT_HU)
    hu = gaussian_filter(hu, 0.5, truncate=3)
    noise = gaussian_filter(random_state.normal(0, 1, anatomy.size), 0.55, truncate=3)
    # 0.424 is the standard deviation that this filter leaves of white noise.
    hu += noise * (noise_hu / 0.424)
    return np.rint(np.clip(hu, -1024, 1500)).astype(np.int16)


def _smooth_field(control: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Interpolates a coarse grid of control values with normalized Gaussian weights."""
    for axis, n in enumerate(size):
        position, node = np.linspace(0, control.shape[axis] - 1, n)[:, None], np.arange(control.shape[axis])
        weight = np.exp(-((position - node) ** 2) / (2 * 0.55**2))
        control = np.moveaxis(np.tensordot(weight / weight.sum(1, keepdims=True), control, (1, axis)), 0, axis)
    return control
