"""standard: images of one visit become images that lie on one grid, in one orientation, the same way every time.

    raw/FLAIR ──reorient──────────────────────────────▶ FLAIR   the grid of everything
    raw/T1w ────reorient──register (rigid, to FLAIR)──resample─▶ T1w
    raw/lesion ─reorient──(resample, if drawn on T1w)──────────▶ lesion      brain ◀── brain extraction of FLAIR

The FLAIR image is only turned and mirrored, which moves no value; everything else is resampled once, by the whole
transform. `Recipe` holds every parameter; with it, the files that went in and the versions of the libraries,
`steps.json` says exactly how to make the same bytes again.
"""
