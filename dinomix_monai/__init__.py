"""DINO-Mix for MONAI: semi-supervised 3D segmentation that does not lose the small organs."""
