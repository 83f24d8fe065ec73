"""
Training at several sites with NVFlare.

What needs NVFlare (``pip install "dinomix-monai[flare]"``) is imported from where it is: ``client``, ``controller``,
``privacy`` and ``recipe``. The rest, which these names are, does without.
"""

from __future__ import annotations

from dinomix_monai.federated.bundle_network import bundle_network
from dinomix_monai.federated.handshake import check_agreement, version_differences
from dinomix_monai.federated.messages import MetaKeys, Models, Tasks
from dinomix_monai.federated.plan import RunPlan
from dinomix_monai.federated.promotion import promote_checkpoint, read_checkpoint
from dinomix_monai.federated.proximal import ProximalHandler
from dinomix_monai.federated.server_optimizer import ServerOptimizer
from dinomix_monai.federated.site import RoundResult, Site
from dinomix_monai.federated.site_settings import SiteSettings, find_bundle, phantom_site
from dinomix_monai.federated.summary import federation_table, pool_case_scores
from dinomix_monai.federated.update import make_update, norm_names
from dinomix_monai.federated.update_check import UpdateCheck

__all__ = [
    "MetaKeys",
    "Models",
    "ProximalHandler",
    "RoundResult",
    "RunPlan",
    "ServerOptimizer",
    "Site",
    "SiteSettings",
    "Tasks",
    "UpdateCheck",
    "bundle_network",
    "check_agreement",
    "federation_table",
    "find_bundle",
    "make_update",
    "norm_names",
    "phantom_site",
    "pool_case_scores",
    "promote_checkpoint",
    "read_checkpoint",
    "version_differences",
]
