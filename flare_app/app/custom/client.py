"""What a job with code carries to the sites: the package that they have installed does the rest."""

from dinomix_monai.federated.site.client import main

main()
