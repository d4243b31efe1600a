"""Slices of CT and PET, written element by element."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, PET, MR = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "128", "4"))


def write_slice(path, stored, **elements):
    """Write whole numbers of 16 bits, signed or not, as a CT slice, or what the elements say; None leaves one out."""
    stored = np.asarray(stored)
    dataset = Dataset()
    signed = stored.dtype.kind == "i"
    given = {
        "SOPClassUID": CT,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "Modality": "CT",
        "PatientID": "p",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.7, 0.7],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(signed),
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        **elements,
    }
    for keyword, value in given.items():
        if keyword == "PixelPaddingValue":
            dataset.add_new(keyword, "SS" if signed else "US", value)
        elif value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_pet(path, activity, *, slope, **elements):
    """Write a PET slice of activity, shape (rows, cols), in whole multiples of its own slope."""
    stored = np.rint(np.asarray(activity) / slope).astype(np.int16)
    pet = {
        "SOPClassUID": PET,
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT", "RAN", "NORM"],
        "PixelSpacing": [4.0, 4.0],
        "RescaleSlope": f"{slope:.8g}",
        "RescaleIntercept": "0",
    }
    return write_slice(path, stored, **{**pet, **elements})
