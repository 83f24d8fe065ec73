r"""
One slice of a scan with several label maps side by side, such as the ground truth and the answers of two models.

    python benchmarks/picture.py --image SCAN --out_file docs/images/synapse.png --class_names_of DIR \
        --panels "{'ground truth': 'LABEL', 'supervised': 'A/SCAN_seg.nii.gz', 'DINO-Mix': 'B/SCAN_seg.nii.gz'}"

The first label map chooses the axial slice: the one with most classes, and of equal ones that with most voxels of the
five smallest classes that the scan has.
"""

from __future__ import annotations

from pathlib import Path

import fire
import nibabel as nib
import numpy as np

from dinomix_monai.data import read_datalist
from dinomix_monai.report import class_colors
from dinomix_monai.volumes import open_volume

SMALLEST = 5


def main(
    image: str,
    panels: dict[str, str],
    class_names_of: str,
    out_file: str,
    window: tuple[float, float] = (-160.0, 240.0),
) -> None:
    """
    Draws the picture.

    Args:
        image: the scan.
        panels: label maps on the grid of the scan, by what is written above them.
        class_names_of: folder of the data set.
        out_file: picture to write.
        window: intensities that become black and white.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = read_datalist(class_names_of, allow_outside=True).class_names
    scan = _oriented(image)
    maps = {title: np.asanyarray(_oriented(file).dataobj).astype(int) for title, file in panels.items()}
    truth = next(iter(maps.values()))
    counts = np.bincount(truth.ravel(), minlength=len(names))
    smallest = [value for value in np.argsort(counts) if value and counts[value]][:SMALLEST]
    shown = max(
        range(truth.shape[2]),
        key=lambda z: (len(np.unique(truth[..., z])), np.isin(truth[..., z], smallest).sum()),
    )
    body = np.argwhere(np.asanyarray(scan.dataobj)[..., shown] > window[0])
    (left, back), (right, front) = body.min(0), body.max(0) + 1
    crop = (slice(left, right), slice(back, front), shown)
    width, height, _ = nib.affines.voxel_sizes(scan.affine)
    colors = class_colors(len(names))
    colors[1:, 3] = 0.75
    figure = Figure(figsize=(3.6 * len(maps), 3.6), layout="constrained")
    for ax, (title, labels) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items()):
        gray = np.asanyarray(scan.dataobj)[crop].T[::-1]
        ax.imshow(gray, cmap="gray", vmin=window[0], vmax=window[1], aspect=height / width)
        ax.imshow(colors[labels[crop].T[::-1]], aspect=height / width, interpolation="nearest")
        ax.set_title(title, fontsize="medium")
        ax.set_axis_off()
    seen = sorted(set().union(*(np.unique(labels[crop]) for labels in maps.values())) - {0})
    legend = [Patch(color=colors[value][:3], label=names[value]) for value in seen]
    figure.legend(handles=legend, loc="outside lower center", ncols=6, fontsize="small", frameon=False)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=110)


def _oriented(file: str) -> nib.Nifti1Pair:
    """A volume whose axes point to the patient's left, front and head, for radiological convention."""
    volume = open_volume(file)
    target = nib.orientations.axcodes2ornt(("L", "A", "S"))
    return volume.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(volume.affine), target))


if __name__ == "__main__":
    fire.Fire(main)
