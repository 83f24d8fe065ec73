"""Requests that cannot be met."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(ValueError):  # noqa: N818  # as Python's KeyboardInterrupt, it is no mistake of the program
    """
    A request that cannot be met, in words for the person who made it.

    The app answers it with its text and status, where MONAI Label would answer anything that is raised with
    ``Internal Server Error``.

    Args:
        message: what is asked for, what was found, and the way out.
        status: HTTP status code.
    """

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status
