"""From logits on the network's grid to a label map on the grid of the image's file."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor, ensure_tuple_rep
from torch.nn import functional as F

__all__ = ["InvertToLabeld", "interpolated_argmax"]

# How far, in voxels of the logits over a whole axis, a grid may lean against the other and still count as aligned.
_LEAN = 0.05


class InvertToLabeld(MapTransform):
    """
    The label map that ``Invertd`` of the logits and then an argmax give, in a fraction of their time and memory; takes
    one sample.

    ``Invertd`` resamples every class to the size of the file in double precision before all but one number for each
    voxel are thrown away; taking the argmax first would leave blocks of the network's voxels. Here logits are
    interpolated linearly, but only where it matters: between 2 x 2 x 2 cells that agree on their class, every weighted
    mean of their logits has the same one.

    The grids follow from the affines of the image, so any preprocessing will do that keeps the axes of the file
    parallel to those of the network: changes of orientation and spacing, flips, crops and pads. Beyond the logits their
    border is continued.

    Args:
        keys: logits, replaced by label maps.
        orig_keys: image that each of them belongs to, as the network saw it.
        allow_missing_keys: whether a key may be missing.

    Raises:
        TypeError: When the image is not a ``MetaTensor`` and so has no affine.
        ValueError: When the preprocessing has rotated the image by anything but right angles.
    """

    def __init__(self, keys: KeysCollection, orig_keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_keys = ensure_tuple_rep(orig_keys, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with logits (C, H, W[, D]) and their image on the same grid.

        Returns:
            The sample with label maps (1, h, w[, d]) of the shape and affine of the image's file.
        """
        result = dict(data)
        for key, orig_key in self.key_iterator(result, self.orig_keys):
            logits, image = convert_to_tensor(result[key], track_meta=False), result[orig_key]
            if not isinstance(image, MetaTensor):
                raise TypeError(
                    f"{orig_key} must be a MetaTensor, whose affine tells where it lies, got {type(image).__name__}."
                )
            dims = logits.ndim - 1
            original = torch.as_tensor(image.meta["original_affine"]).double().cpu()
            shape = [int(side) for side in image.meta["spatial_shape"][:dims]]
            label = interpolated_argmax(logits, torch.linalg.solve(image.affine.double().cpu(), original), shape)
            result[key] = MetaTensor(label, meta={**image.meta, "affine": original})
        return result


def interpolated_argmax(logits: torch.Tensor, matrix: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """
    The class whose linearly interpolated logit is highest, on another grid.

    Args:
        logits: shape (C, H, W[, D]).
        matrix: maps indices of the new grid to those of the logits, shape (n + 1, n + 1) for n axes or larger.
        shape: sides (h, w[, d]) of the new grid.

    Returns:
        Class of each voxel, shape (1, h, w[, d]), ``uint8`` for up to 256 classes and ``int32`` for more. Of equal
        classes the first is taken.

    Along axes that are parallel only the voxels between cells of different classes are interpolated. Otherwise, as
    where the gantry was tilted and MONAI's ``Spacing`` has straightened the scan, all of them are.
    """
    dims = len(shape)
    linear = matrix[:dims, :dims]
    order = linear.abs().argmax(dim=0).tolist()
    lean = linear * torch.as_tensor(shape, dtype=linear.dtype)
    lean[order, range(dims)] = 0
    if sorted(order) != list(range(dims)) or lean.abs().max() > _LEAN:
        return _dense_argmax(logits, matrix, shape)
    logits = logits.permute(0, *(1 + axis for axis in order))
    axes = [
        _Axis.of(linear[axis, i] * torch.arange(side) + matrix[axis, -1], logits.shape[1 + i], logits.device)
        for i, (axis, side) in enumerate(zip(order, shape))
    ]
    result = torch.empty(tuple(shape), dtype=_dtype(logits), device=logits.device)
    first, *others = axes
    for low, slices in _runs(first.low.tolist()):
        planes = logits[:, [low, min(low + 1, logits.shape[1] - 1)]]
        _fill(result[slices], planes, first.share[slices], others)
    return result[None]


def _dense_argmax(logits: torch.Tensor, matrix: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """As :func:`interpolated_argmax`, for any matrix, slice by slice."""
    dims, logits = len(shape), logits.float()
    cells = torch.tensor(logits.shape[1:], dtype=matrix.dtype)
    plane = torch.stack(torch.meshgrid(*(torch.arange(side).to(matrix) for side in shape[1:]), indexing="ij"), dim=-1)
    within = plane @ matrix[:dims, 1:dims].T + matrix[:dims, -1]
    result = torch.empty(tuple(shape), dtype=_dtype(logits), device=logits.device)
    for number in range(shape[0]):
        places = within + number * matrix[:dims, 0]
        # To [-1, 1] from the first cell to the last, and the axes in reverse.
        places = (2 * places / (cells - 1).clamp_min(1) - 1).flip(-1).to(logits)
        grid = places.reshape(1, *[1] * (dims - 1), -1, dims)
        values = F.grid_sample(logits[None], grid, mode="bilinear", padding_mode="border", align_corners=True)
        result[number] = values.reshape(len(logits), -1).argmax(0).reshape(tuple(shape[1:]))
    return result[None]


def _dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.uint8 if len(logits) <= 256 else torch.int32


def _fill(result: torch.Tensor, planes: torch.Tensor, shares: torch.Tensor, axes: Sequence[_Axis]) -> None:
    """Classes of the slices (n, h[, w]) that lie between two planes of logits (C, 2, H[, W])."""
    labels = planes.argmax(dim=0)
    least, most = labels.amin(dim=0), labels.amax(dim=0)
    for i, axis in enumerate(axes):
        pair = [torch.stack([x.index_select(i, axis.low), x.index_select(i, axis.high)]) for x in (least, most)]
        least, most = pair[0].amin(dim=0), pair[1].amax(dim=0)
    result[:] = least.to(result.dtype)
    where = (least != most).nonzero(as_tuple=True)
    if not len(where[0]):
        return
    # All corners of the cells within a plane, and the weight of each, (N, 2 or 4).
    corners = torch.zeros(len(where[0]), 1, dtype=torch.long, device=planes.device)
    weights = torch.ones(len(where[0]), 1, device=planes.device)
    for i, axis in enumerate(axes):
        low, high, share = axis.low[where[i]], axis.high[where[i]], axis.share[where[i]]
        side = planes.shape[2 + i]
        corners = torch.cat([corners * side + low[:, None], corners * side + high[:, None]], dim=1)
        weights = torch.cat([weights * (1 - share)[:, None], weights * share[:, None]], dim=1)
    values = [
        F.embedding_bag(corners, plane.flatten(1).T.float().contiguous(), mode="sum", per_sample_weights=weights)
        for plane in planes.unbind(1)
    ]
    for number, share in enumerate(shares):
        result[number][where] = torch.lerp(values[0], values[1], share).argmax(dim=1).to(result.dtype)


class _Axis(NamedTuple):
    """For each place along an axis the two cells it lies between, and how far towards the second, in [0, 1]."""

    low: torch.Tensor
    high: torch.Tensor
    share: torch.Tensor

    @classmethod
    def of(cls, places: torch.Tensor, cells: int, device: torch.device) -> _Axis:
        places = places.clamp(0, cells - 1)
        low = places.floor().clamp(max=max(cells - 2, 0))
        high = (low + 1).clamp(max=cells - 1)
        return cls(low.long().to(device), high.long().to(device), (places - low).float().to(device))


def _runs(values: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Runs of equal values: each value, and the slice that has it."""
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            yield values[start], slice(start, end)
            start = end
