"""Datastores of MONAI Label whose labels are checked at the door."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from dinomix_monai.label.answer import answered
from dinomix_monai.label.label_door import LabelDoor
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.volumes import named_annotation

__all__ = ["CheckedLabels", "labeled_scans", "plain_name"]

_FINAL = DefaultLabelTag.FINAL.value


class CheckedLabels(LocalDatastore):
    """
    ``LocalDatastore`` that answers what it cannot save with a sentence.

    A label of the tag ``final``, from which a training learns, goes through the door. Its info keeps what was looked
    for, where that is not all.
    """

    door: LabelDoor

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds a scan under a plain name."""
        return answered(self._add, image_id, image_filename, image_info)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Saves a label of a scan that there is."""
        try:
            return answered(self._save, image_id, label_filename, label_tag, label_info)
        except HTTPException:
            # MONAI Label removes what was sent only after it was taken.
            if Path(label_filename).is_relative_to(gettempdir()):
                Path(label_filename).unlink()
            raise

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Changes what is said of a label; with ``annotated`` null it is complete."""
        answered(self._update, label_id, label_tag, info)

    def _add(self, image_id: str, file: str, info: dict[str, Any]) -> str:
        return super().add_image(image_id and plain_name("image", image_id), file, info)

    def _save(self, image_id: str, file: str, tag: str, info: dict[str, Any]) -> str:
        tag = plain_name("tag", tag)
        # What another process has saved meanwhile, such as a batch of segmentations: all is written anew.
        self._init_from_datastore_file()
        if image_id not in self.list_images():
            raise Refusal(f"image must be the name of a scan of the studies, got {image_id!r}, which is none.", 404)
        if tag != _FINAL:
            return self._keep(image_id, file, tag, info)
        name, image = f"the label of {image_id}", self.get_image_uri(image_id)
        with TemporaryDirectory() as folder:
            path, info = self.door.numbered(Path(file), info, name, Path(folder))
            return self._keep(image_id, str(path), tag, self.door.checked(path, info, name, image))

    def _keep(self, image_id: str, file: str, tag: str, info: dict[str, Any]) -> str:
        return super().save_label(image_id, file, tag, info)

    def _update(self, label_id: str, tag: str, info: dict[str, Any]) -> None:
        self._init_from_datastore_file()
        before = self.get_label_info(label_id, tag)
        if not before:
            raise Refusal(f"label must be the name of a scan with a label of tag {tag}, got {label_id!r}.", 404)
        if tag == _FINAL:
            file, image = Path(self.get_label_uri(label_id, tag)), self.get_image_uri(label_id)
            self.door.checked(file, {**before, **info}, f"the label of {label_id}", image)
        super().update_label_info(label_id, tag, info)


def labeled_scans(datastore: Datastore) -> list[dict[str, Any]]:
    """
    Scans with a label of tag final.

    Args:
        datastore: MONAI Label's.

    Returns:
        ``name`` of each, and paths of ``image`` and ``label``; what was looked for, where the label says so.
    """
    # By name, because a datastore lists scans as the disk happens to; a file may be a link to one of another name.
    files = {case["image"]: case["label"] for case in datastore.datalist()}
    images = {name: datastore.get_image_uri(name) for name in sorted(datastore.get_labeled_images())}
    return [
        {
            "name": name,
            "image": image,
            "label": files[image],
            **named_annotation(datastore.get_label_info(name, _FINAL)),
        }
        for name, image in images.items()
    ]


def plain_name(argument: str, value: Any) -> str:
    """
    A value that is joined to paths.

    Raises:
        Refusal: When it is no plain name.
    """
    # MONAI Label's own tags are names of an enumeration, whose text is not their value.
    name = getattr(value, "value", value)
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise Refusal(f"{argument} must be a plain name, got {name!r}.")
    return name
