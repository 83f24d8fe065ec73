"""The token cache: a frozen teacher's tokens, computed once for each volume and kept on disk."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from torch.nn import functional as F
from tqdm import tqdm

from dinomix_monai.core.precision import computing_in, without_float16
from dinomix_monai.teacher.slices import SliceTokens
from dinomix_monai.teacher.token_files import TokenFiles, sha256

__all__ = ["TokenCache"]

logger = logging.getLogger(__name__)

# For each plane, the order of a volume's axes that puts the plane's own two first and its normal last.
_PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}

# The volumes that the components are those of. More would keep hardly more of the variance, and the first step waits.
_SHARE_OF_VOLUMES, _FEWEST_VOLUMES = 0.1, 4


@dataclass
class _Volume:
    name: str
    file: str
    # In voxels, in tokens, and from mm to voxels; where tokens are sampled, so that no step copies them there.
    shape: torch.Tensor
    tokens: torch.Tensor
    to_voxel: torch.Tensor
    spacing: list[float]
    # Until the teacher has seen them.
    voxels: torch.Tensor | None


class TokenCache:
    """
    Tokens of a frozen teacher for whole volumes, sampled wherever a training patch comes from.

    A teacher that never changes gives the same tokens in every epoch. Here it sees each preprocessed volume once, in
    whole slices, which show it more than a patch does; a step of training then costs one look-up for each cell of the
    student's feature map, whatever the size of the teacher. It sees a volume when tokens of it are first asked for, or
    all of them at once (:meth:`complete`); :meth:`add` tells what there is, in any order and from any thread. It is
    called like :class:`SliceTokens`, with a map of where each voxel comes from in place of an image
    (:class:`dinomix_monai.transforms.SourceCoordinatesd` writes it), so flips, rotations, zooms and the boxes of CutMix
    need no further care.

    Tokens are in half precision, in one file for each volume, mapped into memory and written in one move: a run that
    was killed goes on with the volume it was at. Their folder is named after the teacher's fingerprint and the recipe,
    the file after the volume's voxels and affine, so that stale tokens cannot be used. Several processes may share a
    folder. A volume whose tokens are not all finite, as those of voxels that are NaN are, has none, and a warning says
    so in each run.

    With ``components`` they are reduced to principal components, centered, which lie beside them. Directions and mean
    are those of a tenth of the volumes that have been added, four at least, drawn by digests of their voxels; they are
    found when tokens are first asked for, and the share of the variance that they keep there is logged.

    Args:
        folder: where the tokens are kept, together with those of other teachers and recipes.
        slice_tokens: the teacher, which is asked for the tokens of whole slices.
        cell: voxels of a token along each axis; best the stride of the student's features that are taught.
        components: number of principal components, ``None`` for the teacher's own channels.
        planes: some of ``"axial"``, ``"coronal"`` and ``"sagittal"``; their tokens are averaged. Axes are taken to be
            in RAS order.
        max_anisotropy: planes other than the first are left out for volumes whose spacings in that plane differ by more
            than this factor, since the teacher would see the organs distorted.
        dtype: what the teacher computes in under ``torch.autocast``, as
            :func:`dinomix_monai.core.precision.autocast_dtype` gives it; ``None`` for the precision of its weights.
            ``float16``, whose range a large teacher may leave, counts as ``None``.
        device: where the teacher is while there are volumes that it has not seen, and where tokens are sampled. On a
            GPU tokens are held there, and the teacher, which may be large, leaves it for the CPU afterwards.
        device_gb: most that these tokens take of a GPU, in GB; those of the volume that was asked for longest ago leave
            for others, and are read from disk when they are needed again. ``None`` for no bound.

    Attributes:
        recipe: all that the tokens depend on beside the volumes, but for rounding: those that one machine has computed
            in half precision serve another that would not.
        files: the tokens of this teacher and recipe on disk.
        kept: share of the variance that the components keep of the tokens that they were found on, once they are there.

    Raises:
        ValueError: When an argument is outside its range.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        slice_tokens: SliceTokens,
        cell: Sequence[int],
        components: int | None = None,
        planes: Sequence[str] = ("axial",),
        max_anisotropy: float = 2.0,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        device_gb: float | None = 4.0,
    ) -> None:
        if len(cell) != 3 or min(cell) < 1:
            raise ValueError(f"cell must be three numbers of voxels >= 1, got {tuple(cell)}.")
        if components is not None and not 1 <= components <= slice_tokens.embed_dim:
            raise ValueError(
                f"components must be from 1 to the {slice_tokens.embed_dim} channels of the teacher or None, "
                f"got {components}."
            )
        if not planes or set(planes) - set(_PLANES) or len(set(planes)) < len(planes):
            raise ValueError(f"planes must be one or more of {', '.join(_PLANES)}, each once, got {tuple(planes)}.")
        if device_gb is not None and not device_gb > 0:
            raise ValueError(f"device_gb must be > 0 or None, got {device_gb}.")
        if max_anisotropy < 1:
            raise ValueError(f"max_anisotropy must be >= 1, got {max_anisotropy}.")
        self.slice_tokens, self.components = slice_tokens, components
        self.cell, self.planes, self.max_anisotropy = tuple(cell), tuple(planes), max_anisotropy
        self.dtype = without_float16(dtype)
        self.device, self.device_gb = torch.device(device), device_gb
        self.recipe = {
            "teacher": slice_tokens.fingerprint,
            "offsets": slice_tokens.offsets,
            "tokens_per_cell": slice_tokens.tokens_per_cell,
            "cell": self.cell,
            "planes": self.planes,
            "max_anisotropy": max_anisotropy,
            "padding": "replicate",
        }
        self.kept = 1.0
        self.files = TokenFiles(Path(folder) / sha256(json.dumps(self.recipe, sort_keys=True).encode())[:16])
        self._cell = torch.tensor(self.cell, dtype=torch.float32, device=self.device)
        # The eight tokens around a place, as steps from the lowest of them.
        self._corners = torch.tensor(list(itertools.product((0, 1), repeat=3)), device=self.device)
        self._volumes: dict[str, _Volume] = {}
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        # The one that was asked for longest ago comes first.
        self._tokens: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._without_tokens: set[str] = set()
        self._opened = 0

    @property
    def embed_dim(self) -> int:
        """Channels of the tokens."""
        return self.components or self.slice_tokens.embed_dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the teacher."""
        return self.slice_tokens.fingerprint

    def add(self, volume: MetaTensor) -> str:
        """
        Enters a volume, whose tokens can be asked for then.

        Its voxels are held until the teacher has seen them.

        Args:
            volume: preprocessed as for training, shape (C, H, W, D), values in [0, 1].

        Returns:
            The name under which the token cache knows the volume.

        Raises:
            TypeError: When the volume is not a ``MetaTensor`` and so has no affine.
            ValueError: When it has another shape.
        """
        if not isinstance(volume, MetaTensor):
            raise TypeError(f"volume must be a MetaTensor, which tells where it lies, got {type(volume).__name__}.")
        if volume.ndim != 4:
            raise ValueError(f"volume must have shape (C, H, W, D), got {tuple(volume.shape)}.")
        voxels, affine = volume.as_subclass(torch.Tensor).float(), volume.affine.double().cpu()
        values = np.ascontiguousarray(voxels.cpu().numpy())
        name = sha256(values.data, affine.numpy().tobytes(), str(tuple(voxels.shape)).encode())
        self._volumes[name] = _Volume(
            name,
            str(volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, f"a volume of shape {tuple(voxels.shape[1:])}")),
            torch.tensor(voxels.shape[1:], device=self.device),
            torch.tensor(
                [math.ceil(side / cell) for side, cell in zip(voxels.shape[1:], self.cell)], device=self.device
            ),
            torch.linalg.inv(affine).float().to(self.device),
            volume.pixdim.tolist(),
            None if self.files.path(name).is_file() else voxels,
        )
        return name

    def number(self, name: str) -> int:
        """
        The number of a volume in a map of where voxels come from; the same one whenever the folder is the same.

        Volumes that have none yet are numbered in the order of their files. So numbers do not depend on the order in
        which threads have added them, if all are added before the first one is asked for.

        Args:
            name: name of the volume.

        Raises:
            ValueError: When it was not added.
        """
        if name not in self._volumes:
            raise ValueError(f"name must be that of a volume that was added to the token cache, got {name}.")
        self._number_volumes()
        return self._numbers[name]

    def _number_volumes(self) -> None:
        if len(self._numbers) < len(self._volumes):
            ordered = sorted(self._volumes.values(), key=lambda volume: (volume.file, volume.name))
            self._numbers = self.files.numbers([volume.name for volume in ordered])
            self._names = {number: name for name, number in self._numbers.items()}

    def complete(self) -> None:
        """
        Has the teacher see all volumes that it has not seen yet, with a progress bar.

        Raises:
            ValueError: When no volume has tokens.
        """
        for volume in tqdm(self._volumes.values(), "Teacher tokens", unit="volume"):
            self._compute(volume)
        self._open()
        for name in self._volumes:
            self._read(name)

    def describe(self) -> str:
        """One line on the volumes that the teacher has seen, their tokens and what these take on disk."""
        seen = [volume for volume in self._volumes.values() if volume.voxels is None]
        size = sum(self.files.path(volume.name).stat().st_size for volume in seen) / 1e6
        largest = max((tuple(self.files.read(volume.name).shape[:3]) for volume in seen), default=(0, 0, 0))
        text = f"{len(seen)} volumes, up to {' x '.join(map(str, largest))} tokens each, {size:.1f} MB"
        if self.components is not None and self._opened:
            size *= self.components / self.slice_tokens.embed_dim
            text += f"; {self.components} components keep {100 * self.kept:.1f} % of the variance in {size:.1f} MB"
        return f"{text}; in {self.files.folder}"

    def __call__(self, source: torch.Tensor, grid: Sequence[int], cells: Iterable[int] | None = None) -> torch.Tensor:
        """
        Args:
            source: for each voxel the number of its volume, 0 for none, and its position in mm, shape (B, 4, H, W, D).
            grid: cells (h, w, d) of the student's feature map along each axis of ``source``.
            cells: indices in ``range(d)`` of the layers to look up, in the order wanted. Defaults to all.

        Returns:
            Tokens at the centers of the cells, shape (B, embed_dim, h, w, len(cells)). They are 0 where there are none:
            beyond the volume, in one that has none, and where the edge of a pasted box runs through the center of a
            cell.

        Raises:
            ValueError: When ``source`` has another shape or names a volume that was not added, or no volume has tokens.
        """
        if source.ndim != 5 or source.shape[1] != 4:
            raise ValueError(f"source must have shape (B, 4, H, W, D), got {tuple(source.shape)}.")
        self._open()
        # Positions in half precision would be off by a part of a voxel.
        with torch.autocast(self.device.type, enabled=False):
            return self._sample(source.as_subclass(torch.Tensor).to(self.device).float(), grid, cells)

    def _sample(self, source: torch.Tensor, grid: Sequence[int], cells: Iterable[int] | None) -> torch.Tensor:
        # Linear interpolation is exact where all voxels around a center come from one place; nearest tells where not.
        exact = F.interpolate(source, size=tuple(grid), mode="trilinear", align_corners=False).movedim(1, -1)
        rough = F.interpolate(source, size=tuple(grid), mode="nearest-exact").movedim(1, -1)
        if cells is not None:
            layers = list(cells)
            exact, rough = exact[..., layers, :], rough[..., layers, :]
        shape = exact.shape[:-1]
        exact, rough = exact.flatten(0, -2), rough.flatten(0, -2)
        tokens = source.new_zeros(len(exact), self.embed_dim)
        # Rounded, because what deforms patches interpolates numbers too; read at once, because it waits for a GPU.
        numbers = rough[:, 0].round().cpu().numpy()
        self._number_volumes()
        for number in np.unique(numbers[numbers != 0]).astype(int).tolist():
            if number not in self._names:
                raise ValueError(f"source must name volumes that were added to the token cache, got number {number}.")
            here = torch.from_numpy(np.flatnonzero(numbers == number)).to(tokens.device)
            tokens[here] = self._look_up(number, exact[here], rough[here])
        return tokens.unflatten(0, shape).movedim(-1, 1)

    def _compute(self, volume: _Volume) -> None:
        """Makes sure that the tokens of a volume are on disk."""
        if volume.voxels is None:
            return
        with self.files.lock(volume.name):
            if not self.files.path(volume.name).is_file():
                tokens = self._tokens_of(volume.voxels, volume.spacing)
                # Nowhere in part: interpolation would bring NaN to the cells around, and the mean to other volumes.
                self.files.write(volume.name, tokens if np.isfinite(tokens).all() else tokens[:0, :0, :0])
        volume.voxels = None
        self._rest()

    def _rest(self) -> None:
        """Takes the teacher off the device when it has seen all volumes."""
        if all(volume.voxels is None for volume in self._volumes.values()):
            self.slice_tokens.cpu()

    @torch.no_grad()
    def _tokens_of(self, voxels: torch.Tensor, spacing: Sequence[float]) -> np.ndarray:
        """Tokens of one volume, (h, w, d, C) in half precision, h = ceil(H / cell) and so on."""
        grid = [math.ceil(side / cell) for side, cell in zip(voxels.shape[1:], self.cell)]
        missing = [n * cell - side for n, cell, side in zip(grid, self.cell, voxels.shape[1:])]
        self.slice_tokens.to(self.device)
        # Cells that stick out go on as the volume ends, as its slices do for the teacher online.
        padded = F.pad(voxels.to(self.device), [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")
        views: list[torch.Tensor] = []
        for plane in self.planes:
            order = _PLANES[plane]
            sides = [spacing[axis] for axis in order[:2]]
            if views and max(sides) > self.max_anisotropy * min(sides):
                continue
            slices = padded.permute(0, *(1 + axis for axis in order))[None]
            with computing_in(self.dtype, self.device):
                tokens = self.slice_tokens(slices, [grid[i] for i in order])
            views.append(tokens[0].permute(*(1 + order.index(axis) for axis in range(3)), 0))
        return torch.stack(views).mean(0).cpu().half().numpy()

    def _open(self) -> None:
        """Finds out whether the volumes that there are have tokens at all, and their components."""
        if self._opened == len(self._volumes):
            return
        names = sorted(volume.name for volume in self._volumes.values())
        sample = self._sample_of(names)
        if self.components is not None:
            self.kept = self.files.open_components(names, sample, self.components)
            logger.info("Teacher tokens: %d components keep %.1f %% of the variance.", self.components, 100 * self.kept)
            # By the components of fewer volumes.
            self._tokens.clear()
        self._opened = len(self._volumes)
        # All tokens may have been on disk already.
        self._rest()

    def _sample_of(self, names: Sequence[str]) -> list[str]:
        """The first so many of these volumes that have tokens, for the components to be found on."""
        volumes = {volume.name: volume for volume in self._volumes.values()}
        wanted = 1 if self.components is None else max(_FEWEST_VOLUMES, math.ceil(_SHARE_OF_VOLUMES * len(names)))
        sample: list[str] = []
        unseen = {name for name in names if volumes[name].voxels is not None}
        first = names[:wanted]
        what = f"Teacher tokens of {len(first)} volumes; {len(unseen.difference(first))} follow as they are used"
        with tqdm(total=len(first), desc=what, unit="volume", disable=not unseen) as bar:
            for name in names:
                self._compute(volumes[name])
                if len(self.files.read(name)):
                    sample.append(name)
                    bar.update()
                if len(sample) == wanted:
                    break
        if not sample:
            raise ValueError(
                f"The teacher must have finite tokens for at least one volume, got none for all {len(names)}. "
                "Look for NaN in its weights and, with `python -m dinomix_monai check`, in the data."
            )
        return sample

    @property
    def device_bytes(self) -> int:
        """What the tokens take of a GPU at present; on a CPU they stay in their files."""
        return 0 if self.device.type == "cpu" else sum(map(_nbytes, self._tokens.values()))

    def _read(self, name: str) -> torch.Tensor:
        volume = self._volumes[name]
        self._compute(volume)
        tokens = self.files.read(volume.name, self.components is not None)
        if not len(tokens) and name not in self._without_tokens:
            self._without_tokens.add(name)
            logger.warning(
                "%s has no teacher tokens, because they are not finite: distillation leaves it out.", volume.file
            )
        return tokens

    def _load(self, name: str) -> torch.Tensor:
        if name not in self._tokens:
            tokens = self._read(name)
            most = math.inf if self.device_gb is None else 1e9 * self.device_gb
            while self._tokens and self.device_bytes + _nbytes(tokens) > most:
                self._tokens.popitem(last=False)
            self._tokens[name] = tokens.to(self.device)
        self._tokens.move_to_end(name)
        return self._tokens[name]

    def _look_up(self, number: int, exact: torch.Tensor, rough: torch.Tensor) -> torch.Tensor:
        """
        Tokens (N, C) of one volume, 0 where there are none, at N places (number, x, y, z).

        This is linear interpolation as in ``grid_sample``, written by hand. ``grid_sample`` takes a list of places as a
        grid of N x 1 x 1 and reads channel by channel; ``embedding_bag`` reads the tokens as they lie in memory, in
        half precision, and was the faster of the two on a CPU: the look-up fell from 11 % of a training step to 4 %.
        """
        name = self._names[number]
        volume, tokens = self._volumes[name], self._load(name)
        if not len(tokens):
            return exact.new_zeros(len(exact), self.embed_dim)
        to_voxel, shape, sizes, cell = volume.to_voxel, volume.shape, volume.tokens, self._cell
        voxel, rough_voxel = (place[:, 1:] @ to_voxel[:3, :3].T + to_voxel[:3, 3] for place in (exact, rough))
        inside = ((voxel > -0.51) & (voxel < shape - 0.49)).all(1)
        whole = ((exact[:, 0] - number).abs() < 0.1) & ((voxel - rough_voxel).abs() < cell).all(1)
        # Token k is at the center of its cell, which covers voxels k * cell to (k + 1) * cell - 1.
        place = ((voxel + 0.5) / cell - 0.5).clamp_min(0).minimum(sizes - 1)
        low = place.floor()
        beyond = place - low
        # The eight tokens around each place, (N, 8): numbers in the volume's list of tokens, and their shares.
        index = (low.long()[:, None] + self._corners).minimum(sizes - 1)
        share = (
            torch.where(self._corners.bool(), beyond[:, None], 1 - beyond[:, None]).prod(-1) * (inside & whole)[:, None]
        )
        _, width, depth, _ = tokens.shape
        number_of = (index[..., 0] * width + index[..., 1]) * depth + index[..., 2]
        table = tokens.flatten(0, 2)
        return F.embedding_bag(number_of, table, mode="sum", per_sample_weights=share.to(table.dtype)).to(exact)


def _nbytes(tokens: torch.Tensor) -> int:
    return tokens.numel() * tokens.element_size()
