"""Features at regular points of the slices of a volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from dinomix_monai.teacher import SliceTokens
from dinomix_monai.teacher.body_position import body_box, body_mask, position_features

__all__ = ["PointFeatures", "labels_at_points"]

_NEIGHBORHOOD = 5


class PointFeatures:
    """
    Features at points that lie ``point_mm`` apart in axial slices: what is seen around a point, and where it lies.

    What is seen are the teacher's tokens, interpolated linearly between the centers of their cells, or without a
    teacher the 5 x 5 points around. Where a point lies is its position in the box around the body, in [-1, 1] along
    each axis, with squares and products, so that a linear classifier can tell a place from its surroundings.

    Args:
        slice_tokens: the teacher, ``None`` for the intensities alone.
        token_mm: side of the square that a token stands for; smaller squares enlarge the slice for the teacher.
        point_mm: distance of the points in a slice.

    Raises:
        ValueError: When a length is not positive.
    """

    def __init__(self, slice_tokens: SliceTokens | None, token_mm: float = 8.0, point_mm: float = 4.7) -> None:
        if token_mm <= 0 or point_mm <= 0:
            raise ValueError(f"token_mm and point_mm must be > 0, got {token_mm} and {point_mm}.")
        self.slice_tokens, self.token_mm, self.point_mm = slice_tokens, token_mm, point_mm

    @torch.no_grad()
    def __call__(self, image: MetaTensor, slices: Sequence[int]) -> torch.Tensor:
        """
        Args:
            image: shape (1, H, W, D) in RAS order, values in [0, 1].
            slices: indices along the last axis.

        Returns:
            Features, shape (len(slices), h, w, F).

        Raises:
            TypeError: When the image is not a ``MetaTensor`` and so has no spacing.
        """
        if not isinstance(image, MetaTensor):
            raise TypeError(f"image must be a MetaTensor, which tells its spacing, got {type(image).__name__}.")
        size = self.points(image)
        voxels = image.as_subclass(torch.Tensor).float()
        if self.slice_tokens is None:
            seen = _neighborhoods(voxels, size, slices)
        else:
            seen = F.interpolate(self.tokens(image, slices), size, mode="bilinear", align_corners=False)
        return torch.cat([seen.movedim(1, -1), _positions(voxels, size, slices)], dim=-1)

    def points(self, image: MetaTensor) -> tuple[int, int]:
        """Number of points (h, w) of a slice."""
        h, w = (
            max(1, round(side * mm / self.point_mm)) for side, mm in zip(image.shape[1:3], image.pixdim[:2].tolist())
        )
        return h, w

    def in_body(self, image: MetaTensor, slices: Sequence[int]) -> torch.Tensor:
        """
        Points that lie in the body or beside it; the air around it is background without a question.

        Args:
            image: see above.
            slices: see above.

        Returns:
            Boolean, shape (len(slices), h, w).
        """
        planes = body_mask(image.as_subclass(torch.Tensor)[0])[:, :, list(slices)].float().movedim(-1, 0)[:, None]
        shares = F.interpolate(planes, self.points(image), mode="area")
        return F.max_pool2d(shares, _NEIGHBORHOOD, stride=1, padding=_NEIGHBORHOOD // 2)[:, 0] > 0

    def tokens(self, image: MetaTensor, slices: Sequence[int]) -> torch.Tensor:
        """
        The teacher's tokens of slices.

        Args:
            image: see above.
            slices: see above.

        Returns:
            Shape (len(slices), C, h, w), a token for each square of ``token_mm``.

        Raises:
            ValueError: When there is no teacher.
        """
        if self.slice_tokens is None:
            raise ValueError("slice_tokens must be a teacher's for tokens, got None.")
        sides = zip(image.shape[1:3], image.pixdim[:2].tolist())
        grid = [*(max(1, round(side * mm / self.token_mm)) for side, mm in sides), image.shape[3]]
        return self.slice_tokens(image.as_subclass(torch.Tensor).float()[None], grid, slices)[0].movedim(-1, 0)


def _neighborhoods(voxels: torch.Tensor, size: tuple[int, int], slices: Sequence[int]) -> torch.Tensor:
    """Intensities of the points around each point, shape (len(slices), 25, h, w)."""
    planes = voxels[0][:, :, list(slices)].movedim(-1, 0)[:, None]
    planes = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
    around = F.pad(planes, [_NEIGHBORHOOD // 2] * 4, mode="replicate")
    return F.unfold(around, _NEIGHBORHOOD).unflatten(-1, size)


def labels_at_points(label: torch.Tensor, size: tuple[int, int], slices: Sequence[int]) -> torch.Tensor:
    """
    Class of the voxel at each point.

    Args:
        label: shape (1, H, W, D).
        size: points (h, w) of a slice.
        slices: indices along the last axis.

    Returns:
        Shape (len(slices), h, w), whole numbers.
    """
    planes = label.as_subclass(torch.Tensor)[0][:, :, list(slices)].movedim(-1, 0)[:, None].float()
    return F.interpolate(planes, size, mode="nearest-exact")[:, 0].long()


def _positions(voxels: torch.Tensor, size: tuple[int, int], slices: Sequence[int]) -> torch.Tensor:
    """Position of each point and its second-order terms, shape (len(slices), h, w, 8)."""
    _, *sides, _ = voxels.shape
    x, y = ((torch.arange(points) + 0.5) * side / points - 0.5 for points, side in zip(size, sides))
    z, x, y = torch.meshgrid(torch.tensor(slices, dtype=torch.float32), x, y, indexing="ij")
    return position_features(torch.stack([x, y, z], dim=-1), body_box(voxels[0])).to(voxels.device)
