"""Versions of what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["package_version"]


def package_version(package: str, otherwise: str) -> str:
    """Version of a package, or ``otherwise`` where it is not installed, as this one run from its source folder."""
    try:
        return str(version(package))
    except PackageNotFoundError:
        return otherwise
