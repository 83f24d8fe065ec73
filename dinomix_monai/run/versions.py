"""Versions of what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["describe_versions", "package_version"]


def package_version(package: str, otherwise: str) -> str:
    """Version of a package, or ``otherwise`` where it is not installed, as this one run from its source folder."""
    try:
        return str(version(package))
    except PackageNotFoundError:
        return otherwise


def describe_versions() -> str:
    """Versions of this package, of what it is built on, and of Python, as a report of an error needs them."""
    packages = ("dinomix-monai", "monai", "torch")
    versions = [f"{package} {package_version(package, 'not installed')}" for package in packages]
    return ", ".join([*versions, f"Python {platform.python_version()}"])
