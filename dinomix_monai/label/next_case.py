"""How sure a model is of a scan; arrays alone."""

from __future__ import annotations

import torch

__all__ = ["dice_shortfall", "mean_entropy"]


def dice_shortfall(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    How far student and EMA teacher are from agreeing on each class: 1 minus their soft Dice.

    ``u_c = 1 - 2 sum(p_c q_c) / sum(p_c + q_c)`` over all voxels: the part of the Dice of class ``c`` that one would
    lose if the other drew the truth from its probabilities. It is 0 where both are sure of the same voxels, rises with
    the doubt of either and with their disagreement, and does not depend on the size of the class. A class that
    neither gives any probability has 0.

    Args:
        student: probabilities of the classes, shape (C, H, W[, D]).
        teacher: likewise.

    Returns:
        One number in [0, 1] for each class, shape (C,).
    """
    p, q = student.flatten(1).double(), teacher.flatten(1).double()
    mass = (p + q).sum(dim=1)
    agreement = 2 * (p * q).sum(dim=1) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    return torch.where(mass > 0, 1 - agreement, torch.zeros_like(mass))


def mean_entropy(probabilities: torch.Tensor) -> float:
    """Mean entropy of the voxels in nats, of probabilities of shape (C, H, W[, D]): the plain measure of doubt."""
    return float(torch.special.entr(probabilities.double()).sum(dim=0).mean())
