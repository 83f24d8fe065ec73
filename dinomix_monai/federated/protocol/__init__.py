"""
What server and sites share: the words that they have for one another, and the network whose weights they exchange.

This is all that crosses the border between the server and a site.

From a site to the server:

- ``labels``: the names of the site's own classes, where a run takes the union of them.
- ``handshake``: the fingerprint of the frozen teacher, the names of the classes and which of them somebody has looked
  for, the shapes of the network's weights, the labeled voxels of each class (in whole and in a random patch), the
  numbers of cases, and the versions of Python and of packages, see :class:`SiteDescription`.
- ``train``: the student's weights or their change, see :class:`UpdateForm`; how many optimizer steps the site took; the
  mean Dice of the global model over the site's validation cases; and as curves of TensorBoard this same Dice and, for
  each epoch, the mean of each loss and the share of the unlabeled voxels whose pseudo-label counts.
- ``validate``: the mean Dice of the global model over the site's validation cases.
- ``score`` and ``alone``: for each class the mean Dice over the site's cases and the number of those cases, see
  :data:`ClassScores`.
- If a task fails: the name of the exception's class, such as ``FileNotFoundError``, and never its text.

From the server to a site:

- With each task: the task's name, see :class:`TaskName`, the number of the round, and the run's plan, see
  :class:`RunPlan`. The plan has the labeled voxels of each class summed over all sites, so where there are two sites
  each can work out the other's, and the names of all classes where a run takes the union of the sites' own.
- ``train``, ``validate``, ``score`` and ``alone``: the weights of a global model.
- ``train``: the names of the classes, the fingerprint of the teacher, the job's settings, the weight of FedProx's
  term, and, from the second round on, what NVFlare's ``FedAvg`` keeps of the last one: how many updates it averaged,
  the average of the sites' validation Dice, and each site's name with its weight in the average, which is its number of
  optimizer steps times a factor.
- ``score`` and ``alone``: which model is scored, see :class:`ScoredModel`.

Images, labels, names of files, the frozen teacher, its tokens, the EMA teacher and the optimizer's state never leave a
site. NVFlare itself sends the site's name, heartbeats, the state of a job and, unless a site forbids it, the errors in
its log.
"""

from __future__ import annotations

from dinomix_monai.federated.protocol.bundle_network import bundle_network, class_axes
from dinomix_monai.federated.protocol.messages import ClassScores, MetaKeys, ScoredModel, TaskName, UpdateForm
from dinomix_monai.federated.protocol.run_plan import RunPlan
from dinomix_monai.federated.protocol.site_description import VOXEL_COUNTS, SiteDescription, SiteLabels

__all__ = [
    "VOXEL_COUNTS",
    "ClassScores",
    "MetaKeys",
    "RunPlan",
    "ScoredModel",
    "SiteDescription",
    "SiteLabels",
    "TaskName",
    "UpdateForm",
    "bundle_network",
    "class_axes",
]
