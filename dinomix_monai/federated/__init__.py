"""
Training at several sites with NVFlare.

``server`` holds what runs at the server, ``site`` what runs at a site, and ``protocol`` what both share. The server's
code and a site's code do not import each other. Each of the three says at its top what crosses the border between them.
``recipe`` makes the job that a federation runs, and the functions here make its global model the bundle's own.
"""

from __future__ import annotations

from dinomix_monai.federated.promotion import promote_checkpoint, read_checkpoint

__all__ = ["promote_checkpoint", "read_checkpoint"]
