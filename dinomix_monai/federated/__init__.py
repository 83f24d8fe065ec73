"""
Training at several sites with NVFlare.

``server`` holds what runs at the server, ``site`` what runs at a site, and ``protocol`` what both share. The server's
code and a site's code do not import each other. Each of the three says at its top what crosses the border between them.
``recipe`` makes the job that a federation runs, and ``execution`` runs it and follows it to its end. The functions here
permit it at a site, and make its global model the bundle's own.
"""

from __future__ import annotations

from dinomix_monai.federated.permission import permit_classes
from dinomix_monai.federated.promotion import find_checkpoint, promote_checkpoint, read_checkpoint

__all__ = ["find_checkpoint", "permit_classes", "promote_checkpoint", "read_checkpoint"]
