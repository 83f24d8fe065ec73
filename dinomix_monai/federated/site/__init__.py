"""
What runs at a site: the client, which does what the server asks, and the training that it drives.

This is all that leaves a site, and ``replies`` is the only module here that makes it:

- in the handshake: the frozen teacher's fingerprint, the names of the classes and which of them somebody has looked
  for, the shapes of the network's weights, the labeled voxels of each class (in whole and in a random patch), the
  numbers of cases, and versions of Python and packages;
- after a round: the student's weights or their change, without the normalization layers if the plan leaves them at the
  site, and the number of optimizer steps;
- the mean Dice of a global model over the validation cases, and for each class the mean Dice over the test cases (or
  the validation cases, where there are no others) with the number of those cases;
- as curves of TensorBoard: the mean Dice of the global model, and for each epoch the mean of each loss and the share of
  the unlabeled voxels whose pseudo-label counts;
- if a task fails: the name of the exception's class. Its text, which may name files, is a warning in the site's log.

All else stays in the site's folder: the EMA teacher, the optimizer, the projection heads, PIC's donors and counts, the
thresholds, the token cache and the models. A site may add ``privacy``, a filter that clips and noises its updates.
:mod:`dinomix_monai.federated.protocol` has the list for both directions.
"""

from __future__ import annotations

from dinomix_monai.federated.site.proximal import ProximalHandler
from dinomix_monai.federated.site.site import Site
from dinomix_monai.federated.site.site_settings import SiteSettings

# ``client``, ``replies`` and ``privacy`` are imported from where they are, because they need NVFlare, and a training
# with ``federated.json`` that MONAI's own federated client drives does not.
__all__ = ["ProximalHandler", "Site", "SiteSettings"]
