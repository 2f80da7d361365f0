"""A DICOM header without the person: PS3.15 Annex E, basic profile, and then a closed list of what may stay.

    source ─▶ closed list (`_MAY_STAY`) ─▶ PS3.15's table (dicom-anonymizer) ─▶ new UIDs, dates, words ─▶ method codes

The library brings the standard's table of actions. It looks at the outermost level only, keeps what the table does not
name, gives UIDs at random and leaves neither PatientIdentityRemoved nor method codes behind; so the list comes first,
at every level of nesting, and the rest is done here. Private attributes, overlays, curves, the preamble and every time
of day go. The site's options are those of PS3.15 E.3:

    dates    shift: 113107 (longitudinal information, modified dates), or remove
    device   113109 (device identity stays), off by default

Both are recorded in the header itself, with 113100 (basic profile) and 113105 (descriptors cleaned).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal, TypeAlias

import dicomanonymizer.simpledicomanonymizer as ps315
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

import msfl.imaging.deidentify.silence  # noqa: F401  # before any value is read
from msfl.imaging.deidentify.keys import Pseudonyms
from msfl.imaging.deidentify.words import imaging_words, maker, model

_STANDARD: Final = "1.2.840.10008."
Dates: TypeAlias = Literal["shift", "remove"]
_Action: TypeAlias = Callable[[Dataset, tuple[int, int]], None]

# By keyword, sequences included; what is inside a sequence is held against the same list. Whoever adds an attribute
# here adds it to the words that a person at a console cannot type into, or to `_REBUILT`.
_LISTED_MAY_STAY = """
    ImageType SOPClassUID SOPInstanceUID Modality Manufacturer ManufacturerModelName SeriesDescription ProtocolName
    StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime StudyInstanceUID SeriesInstanceUID
    FrameOfReferenceUID SeriesNumber AcquisitionNumber InstanceNumber StudyID AccessionNumber StudyTime PatientName
    PatientID PatientBirthDate PatientSex ReferringPhysicianName NumberOfFrames ImagesInAcquisition BurnedInAnnotation
    Laterality PositionReferenceIndicator ScanningSequence SequenceVariant ScanOptions MRAcquisitionType SequenceName
    AngioFlag SliceThickness RepetitionTime EchoTime InversionTime NumberOfAverages ImagingFrequency ImagedNucleus
    EchoNumbers MagneticFieldStrength SpacingBetweenSlices NumberOfPhaseEncodingSteps EchoTrainLength PercentSampling
    PercentPhaseFieldOfView PixelBandwidth AcquisitionMatrix InPlanePhaseEncodingDirection FlipAngle
    VariableFlipAngleFlag SAR dBdt PatientPosition ReconstructionDiameter ImagePositionPatient ImageOrientationPatient
    SliceLocation TemporalPositionIdentifier NumberOfTemporalPositions SamplesPerPixel PhotometricInterpretation
    PlanarConfiguration Rows Columns PixelSpacing PixelAspectRatio BitsAllocated BitsStored HighBit PixelRepresentation
    SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit WindowCenter WindowWidth
    RescaleIntercept RescaleSlope RescaleType LossyImageCompression LossyImageCompressionRatio
    LossyImageCompressionMethod VOILUTFunction PixelData SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    FrameContentSequence PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence
    PixelValueTransformationSequence FrameVOILUTSequence MRImageFrameTypeSequence MRTimingAndRelatedParametersSequence
    MREchoSequence MRModifierSequence MRAveragesSequence MRFOVGeometrySequence MRImagingModifierSequence
    DimensionOrganizationSequence DimensionOrganizationUID DimensionIndexSequence DimensionIndexPointer
    FunctionalGroupPointer DimensionIndexValues StackID InStackPositionNumber TemporalPositionIndex
    FrameAcquisitionNumber FrameType PixelPresentation VolumetricProperties VolumeBasedCalculationTechnique
    ComplexImageComponent AcquisitionContrast EffectiveEchoTime InversionRecovery InversionTimes EchoPulseSequence
    PulseSequenceName MultiPlanarExcitation SteadyStatePulseSequence Spoiling SpectrallySelectedSuppression
    ResonantNucleus RFEchoTrainLength GradientEchoTrainLength GeometryOfKSpaceTraversal MultipleSpinEcho
"""
_MAY_STAY: Final = frozenset(_LISTED_MAY_STAY.split())
_DEVICE: Final = frozenset({"DeviceSerialNumber", "StationName", "SoftwareVersions", "DeviceUID", "GantryID"})

_REBUILT: Final[Mapping[str, Callable[[str], str]]] = {
    "SeriesDescription": imaging_words,
    "ProtocolName": imaging_words,
    "SequenceName": imaging_words,
    "PulseSequenceName": imaging_words,
    "Manufacturer": maker,
    "ManufacturerModelName": model,
    "PositionReferenceIndicator": lambda _: "",
    "StackID": lambda text: text if text.isdigit() and len(text) <= 3 else "1",
}
# Code strings that stay are of the standard's own vocabulary or two makers'; a name typed into one is not.
_LISTED_CODE_STRING = """
    ORIGINAL DERIVED PRIMARY SECONDARY M ND NORM DIS2D DIS3D FM FIL MFSPLIT OTHER REFORMATTED AXIAL LOCALIZER MPR MIP
    FFE SE GR IR EP RM SK MTC SS TRSS SP MP OSP NONE PER RG CG PPG FC PFF PFP SP FS PFF FAT_SAT FILTERED_GEMS EDR_GEMS
    MR SEG OT SC CT 2D 3D Y N YES NO ROW COL HFS HFP FFS FFP HFDR HFDL MONOCHROME1 MONOCHROME2 RGB LINEAR MIXED COLOR
    MONOCHROME VOLUME MAGNITUDE PHASE REAL IMAGINARY T1 T2 T2_STAR FLUID_ATTENUATED PROTON_DENSITY UNKNOWN DIFFUSION
    SPIN GRADIENT BOTH WATER FAT SPOILED RF GRADIENT_AND_RF TRANSVERSE LONGITUDINAL TIME_REVERSED R L U A P H F 00 01
    RECTILINEAR RADIAL SPIRAL W_OTHER_OTHER MULTIPLANAR SAMPLED DISTORTED ISO_10918_1 ISO_15444_1 ISO_14495_1 US HU
    NORMALIZED ECHO RECON UNI DEN INV1 INV2 SUB CSA
"""
_CODE_STRING: Final = frozenset(_LISTED_CODE_STRING.split())

BASIC_PROFILE, CLEAN_DESCRIPTORS, MODIFIED_DATES, DEVICE, NO_FACE = "113100", "113105", "113107", "113109", "113102"
CODES: Final[Mapping[str, str]] = {
    BASIC_PROFILE: "Basic Application Confidentiality Profile",
    CLEAN_DESCRIPTORS: "Clean Descriptors Option",
    MODIFIED_DATES: "Retain Longitudinal Temporal Information Modified Dates Option",
    DEVICE: "Retain Device Identity Option",
    NO_FACE: "Clean Recognizable Visual Features Option",
}
"""Of DCM, context group 7050 (PS3.16)."""


@dataclass(frozen=True)
class Options:
    dates: Dates = "shift"
    device: bool = False

    @property
    def codes(self) -> tuple[str, ...]:
        found = [BASIC_PROFILE, CLEAN_DESCRIPTORS]
        found += [MODIFIED_DATES] if self.dates == "shift" else []
        found += [DEVICE] if self.device else []
        return tuple(found)


def deidentify(source: Dataset, patient: str, pseudonyms: Pseudonyms, options: Options) -> Dataset:
    """A new dataset that names `patient` (a pseudonym) and nobody else; `source` is not changed.

    Pixels are taken over as they are: faces and burned-in text are for `deface` and `burned_in`. The result can be
    written with `save_as(file, enforce_file_format=True)`.
    """
    made = _only_what_may_stay(source, options)
    ps315.anonymize_dataset(
        made, {**_rules(patient, pseudonyms, options)}, delete_private_tags=True, base_rules_gen=_table
    )
    for nested in _every_level(made):
        _finish(nested, patient, pseudonyms, options)
    made.PatientName = made.PatientID = patient
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "msfl: PS3.15 basic profile, then a closed list of attributes"
    made.DeidentificationMethodCodeSequence = Sequence([_code(code) for code in options.codes])
    made.LongitudinalTemporalInformationModified = "MODIFIED" if options.dates == "shift" else "REMOVED"
    made.preamble = b"\0" * 128
    made.file_meta = _file_meta(source, made)
    return made


def _only_what_may_stay(source: Dataset, options: Options) -> Dataset:
    """A copy of the listed attributes, at every level; character sets go, too: what stays is ASCII."""
    kept = Dataset()
    for element in source:
        allowed = element.keyword in _MAY_STAY or (options.device and element.keyword in _DEVICE)
        if element.tag.is_private or not allowed:
            continue
        if element.VR == "SQ":
            setattr(kept, element.keyword, Sequence([_only_what_may_stay(item, options) for item in element.value]))
        else:
            kept.add(pydicom.DataElement(element.tag, element.VR, element.value, already_converted=True))
    return kept


@functools.cache
def _standard_table() -> Mapping[tuple[int, ...], _Action]:
    return dict(ps315.initialize_actions_2024b())


def _table() -> dict[tuple[int, ...], _Action]:
    return dict(_standard_table())


def _rules(patient: str, pseudonyms: Pseudonyms, options: Options) -> dict[tuple[int, int], _Action]:
    """What is better than the table's own way; `_finish` does it, at every level."""
    later = (
        [k for k in _MAY_STAY if _vr(k) in {"UI", "DA", "DT"}] + [*_REBUILT] + ([*_DEVICE] if options.device else [])
    )
    return {_pair(keyword): ps315.keep for keyword in later}


@functools.cache
def _vr(keyword: str) -> str:
    return str(pydicom.datadict.dictionary_VR(keyword))


@functools.cache
def _pair(keyword: str) -> tuple[int, int]:
    tag = Tag(keyword)
    return (tag.group, tag.element)


def _every_level(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _every_level(item)


def _finish(dataset: Dataset, patient: str, pseudonyms: Pseudonyms, options: Options) -> None:
    for element in list(dataset):
        match element.VR:
            case "UI":
                element.value = _each(element.value, lambda uid: _new_uid(str(uid), pseudonyms))
            case "DA" | "DT" if options.dates == "remove" or element.keyword == "PatientBirthDate":
                element.value = ""
            case "DA" | "DT":
                element.value = _each(element.value, lambda text: _moved(str(text), patient, pseudonyms))
            case "TM" | "AS" | "PN" | "LT" | "ST" | "UT" | "UC" | "UR":
                element.value = ""
            case "CS":
                element.value = _each(element.value, lambda text: text if str(text) in _CODE_STRING else "")
            case "LO" | "SH":
                kept = options.device and element.keyword in _DEVICE
                rebuild = _REBUILT.get(element.keyword, (lambda text: text) if kept else (lambda _: ""))
                element.value = _each(element.value, lambda text, rebuild=rebuild: rebuild(str(text)))  # type: ignore[misc]
            case _:
                pass  # numbers and pixels


def _each(value: Any, change: Callable[[Any], str]) -> Any:
    if isinstance(value, MultiValue):
        return [change(one) for one in value]
    return change(value) if value else value


def _new_uid(uid: str, pseudonyms: Pseudonyms) -> UID:
    """UIDs of the standard (what kind of object this is) say nothing of a patient and stay."""
    return UID(uid) if uid.startswith(_STANDARD) else UID(pseudonyms.uid(uid))


def _moved(text: str, patient: str, pseudonyms: Pseudonyms) -> str:
    """`YYYYMMDD` or a date with time; the time of day is dropped. What is no date is dropped whole."""
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:8]))
    except ValueError:
        return ""
    return pseudonyms.shifted(patient, day).strftime("%Y%m%d")


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", CODES[value]
    return item


def _file_meta(source: Dataset, made: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = made.SOPClassUID
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    before = getattr(source, "file_meta", FileMetaDataset())
    syntax = before.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if not syntax.is_compressed else syntax
    return meta
