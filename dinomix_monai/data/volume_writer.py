"""Writing label maps."""

from __future__ import annotations

from typing import Any

from monai.config import NdarrayOrTensor
from monai.data import NibabelWriter

__all__ = ["VolumeWriter"]


class VolumeWriter(NibabelWriter):
    """
    ``monai.data.NibabelWriter`` that leaves out a single channel, and no axis of the volume.

    MONAI's takes every trailing axis of length 1 for one to leave out, so that the label map of a single slice would
    have two axes and its image three.
    """

    def set_data_array(
        self,
        data_array: NdarrayOrTensor,
        channel_dim: int | None = 0,
        squeeze_end_dims: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Takes what is to be written.

        Args:
            data_array: volume of three axes and a channel.
            channel_dim: axis of the channel, ``None`` without one.
            squeeze_end_dims: whether a single channel is left out.
            **kwargs: see ``monai.data.NibabelWriter``.
        """
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        volume: Any = self.data_obj
        if squeeze_end_dims and volume.ndim > 3 and volume.shape[-1] == 1:
            self.data_obj = volume[..., 0]
