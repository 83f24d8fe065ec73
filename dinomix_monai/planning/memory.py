"""How large a patch may be."""

from __future__ import annotations

import torch

__all__ = ["patch_budget"]

# Peak memory of a training of ``train.json`` with three patches in a step: a part that does not depend on the patches,
# and bytes for each voxel of a patch, by the stride of the stem and for each class. Measured by the command `plan` in
# single precision on a CPU, with patches of 64 x 64 x 32, 96 x 96 x 64 and 128 x 128 x 64 voxels, of 4 and 14 classes.
_BASE_BYTES = 1.4e9
_VOXEL_BYTES = {1: 3500.0, 2: 1080.0}
_CLASS_BYTES = 31.0
# Of the memory, a part is left to what is not foreseen, to cached volumes and to others.
_USED_SHARE = 0.7
# Beyond, a step takes longer, and more context has not been seen to help.
_MOST_VOXELS = 160 * 160 * 96
# On two cores, a step of three such patches takes a second.
_CPU_VOXELS = 2**18


def patch_budget(
    device: torch.device, num_classes: int, stem_stride: int, memory_gb: float | None = None
) -> tuple[int, str]:
    """
    Voxels that a patch may have, and why, as a phrase.

    Args:
        device: device of the training.
        num_classes: number of classes, background included.
        stem_stride: 1 or 2, the stride of the network's stem.
        memory_gb: memory to fit into, in GB; if not given, that of the GPU, and on a CPU what is soon computed.

    Raises:
        ValueError: When the memory is too little for any training.
    """
    if memory_gb is None and device.type != "cuda":
        return _CPU_VOXELS, f"{_CPU_VOXELS} voxels, which a CPU computes in time"
    memory = memory_gb * 1e9 if memory_gb is not None else torch.cuda.get_device_properties(device).total_memory
    free = _USED_SHARE * memory - _BASE_BYTES
    voxels = int(free / (_VOXEL_BYTES[stem_stride] + _CLASS_BYTES * num_classes))
    if voxels < 32**3:
        raise ValueError(f"memory_gb must be enough for a training, at least 3, got {memory / 1e9:.3g}.")
    if voxels > _MOST_VOXELS:
        return _MOST_VOXELS, f"{_MOST_VOXELS} voxels, the most that are used"
    return voxels, f"{voxels} voxels, which fit into {memory / 1e9:.3g} GB"
