"""Two students in one network."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["StudentPair"]


class StudentPair(nn.Module):
    """
    Two networks of one architecture that start from different weights, for methods in which each teaches the other.

    In training mode it gives the logits of both, in evaluation mode their mean, so that it is scored and used like any
    network.

    Args:
        student: the first network; the second is a copy of it whose weights are drawn anew.

    Raises:
        ValueError: When the copy has the weights of the first, because its modules have no ``reset_parameters``.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.first = student
        self.second = copy.deepcopy(student)
        for module in self.second.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        if all(torch.equal(a, b) for a, b in zip(self.first.parameters(), self.second.parameters())):
            raise ValueError(
                "student must have modules with reset_parameters, so that two of them differ, got "
                f"{type(student).__name__}, whose copy stayed the same."
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: what a student takes.

        Returns:
            Logits of both students in training mode, the mean of their logits in evaluation mode.
        """
        first, second = self.first(x), self.second(x)
        return (first, second) if self.training else (first + second) / 2
