"""Whether a server can listen where it is asked to."""

from __future__ import annotations

import socket

__all__ = ["check_port"]


def check_port(host: str, port: int) -> None:
    """
    Makes sure that a port is free, without the seconds that PyTorch and MONAI take.

    Args:
        host: address of this machine.
        port: the port; 0 for any.

    Raises:
        ValueError: When nobody can listen there.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, OverflowError) as error:
        # Without the address, which Python adds in brackets.
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0].rstrip(".")
        raise ValueError(
            f"port must be one that is free at {host}, got {port}: {reason}. Choose another with --port."
        ) from error
