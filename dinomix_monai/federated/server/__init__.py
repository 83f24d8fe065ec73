"""
What runs at the server: the controller, which leads a run, and what it does with the replies of the sites.

This is all that the server has of a site, and where it keeps it in the run's folder:

- what the site says of itself in the handshake: in ``handshake.json``, as it came, and the names of its classes, where
  the run takes the union of them, in ``labels.json``;
- an update of its weights: in memory until it is checked and added to the average of the round. Only the average is
  written, to the checkpoints, together with each site's name and its weight in the average, which follows from its
  number of optimizer steps. Where a single site has answered, the average is the update of that site;
- the site and the reason of an update that was refused: in ``refused.json``;
- the mean Dice over its validation cases: in the files that NVFlare's ``MetricsArtifactWriter`` writes to ``metrics``;
- the mean Dice of each class over its test cases, and the number of those cases: in ``summary.json`` and in the table
  at the end of the log;
- the curves of its training: in ``tb_events``.

The server has no data of its own. :mod:`dinomix_monai.federated.protocol` lists what it sends to a site.
"""
