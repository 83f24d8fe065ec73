"""
Training at several sites with NVFlare.

The server's code and a site's code lie in rooms of their own, ``server`` and ``site``, and neither imports the other:
both import ``protocol``. ``recipe`` makes the job of both, and what stands here uses its result.
"""

from __future__ import annotations

from dinomix_monai.federated.promotion import promote_checkpoint, read_checkpoint

__all__ = ["promote_checkpoint", "read_checkpoint"]
