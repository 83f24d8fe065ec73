"""What the processes of one training do together; each of them holds a share of every batch."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["data_parallel", "gather_over_processes", "process_count", "rank_seed", "sum_over_processes"]


def data_parallel(module: nn.Module, device: str | torch.device) -> DistributedDataParallel:
    """
    Keeps the module of this process equal to those of the others.

    On GPUs batch norm takes its statistics over all of them. Parameters without a gradient are allowed for, because
    projection heads have none in steps that do not distill.

    Args:
        module: what a step differentiates; its batch norms are replaced.
        device: device of this process.
    """
    if torch.device(device).type != "cuda":
        return DistributedDataParallel(module, find_unused_parameters=True)
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(module, device_ids=[device], find_unused_parameters=True)


def process_count() -> int:
    """Number of processes that train together, 1 without ``torch.distributed``."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank_seed(seed: int, rank: int) -> int:
    """A seed for one of several processes that are given the same; rank 0 keeps it."""
    return (seed + 15_485_863 * rank) % 2**32


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """
    The sum of a tensor over all processes, the tensor itself where there is one.

    All processes must call it, in the same order. It can be differentiated: the gradient of each process's tensor is
    the sum of the gradients of all results. Where every process computes the same loss from such sums and gradients of
    weights are averaged, as ``DistributedDataParallel`` does, they are those of one process with the whole batch.
    """
    if process_count() == 1:
        return value
    if torch.is_grad_enabled() and value.requires_grad:
        return _Sum.apply(value)
    return _summed(value)


def gather_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The tensors of all processes, which have one shape, concatenated along the first axis in the order of ranks."""
    if process_count() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(process_count())]
    distributed.all_gather(parts, value.contiguous())
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return _summed(gradient)


def _summed(value: torch.Tensor) -> torch.Tensor:
    result = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(result)
    return result
