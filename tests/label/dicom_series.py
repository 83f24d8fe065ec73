"""A CT as DICOM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def dicom_series(folder: Path) -> np.ndarray:
    """Twelve axial slices of 4 x 4 x 5 mm of a block that touches no side, in HU; axes x, y, z."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    volume = np.full((40, 36, 12), -160, np.int16)
    volume[8:20, 10:30, 3:8] = 200
    shared = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    for number in range(volume.shape[2]):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        uid = generate_uid()
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = uid
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = shared.values()
        slice_.Modality, slice_.PatientName, slice_.PatientID = "CT", "Block", "1"
        slice_.ImagePositionPatient = [0, 0, 5 * number]
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing, slice_.SliceThickness, slice_.InstanceNumber = [4, 4], 5, number + 1
        slice_.Rows, slice_.Columns = volume.shape[1], volume.shape[0]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
        slice_.PixelData = volume[:, :, number].T.tobytes()
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.save_as(folder / f"{number:02d}.dcm", write_like_original=False)
    return volume
