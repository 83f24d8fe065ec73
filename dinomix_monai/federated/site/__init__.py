"""What runs at a site."""

from __future__ import annotations

from dinomix_monai.federated.site.proximal import ProximalHandler
from dinomix_monai.federated.site.site import Site
from dinomix_monai.federated.site.site_settings import SiteSettings

__all__ = ["ProximalHandler", "Site", "SiteSettings"]
