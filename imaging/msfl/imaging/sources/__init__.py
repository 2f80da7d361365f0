"""sources: what a hospital has, as a list of visits, each with the images of one patient on one day.

    archive   zips, unpacked where nothing can climb out or blow up
    files     the files of a folder, and no others
    dicom     sorted by what the headers say; names and folders do not matter
    segments  which segments of a DICOM segmentation are lesions (pure)
    series    which series is the FLAIR, which the T1w (pure)
    weighting the same, from the image, where headers are silent
    bids      sub-*/ses-*/anat
    table     NIfTI files that a CSV names
    nnunet    a folder in nnU-Net's raw layout
    finding   which of these a source is

Nothing is copied, converted or changed here; that is `msfl.imaging.importing`.
"""
