"""Answers to requests that cannot be met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import HTTPException

from dinomix_monai.label.refusal import Refusal

__all__ = ["answered"]


def answered(task: Callable[..., Any], *arguments: Any) -> Any:
    """
    What a task returns, for the server to answer.

    Args:
        task: a function that may refuse.
        *arguments: of it.

    Raises:
        HTTPException: When it refuses, with the reason and its status.
    """
    try:
        return task(*arguments)
    except Refusal as refusal:
        raise HTTPException(refusal.status, str(refusal)) from refusal
