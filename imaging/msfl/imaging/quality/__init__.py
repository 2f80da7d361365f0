"""quality: is this case fit to learn from? Figures are measured, limits judge them, people have the last word.

    raw/ ──measure──▶ standard/figures.json ──judge(figures, limits, the others)──▶ qc.json ──overrule──▶ report/
     (slow, once)            (facts)               (pure, again whenever limits change)

=============  ========================================================================================
``geometry``   voxel size, obliquity, what of the brain is cut off by the edge of the image
``signal``     SNR, CNR, CJV, EFC, FBER, by MRIQC's formulas and under its names
``agreement``  do T1w and FLAIR show one brain, the same way round, and are they what they are called
``lesions``    is the mask where a brain is, of the labels it should have, and bright
``artefacts``  motion, ghosting, spike, noise: a small trained detector
``twins``      the same image twice, the same head under two names
``limits``     limits.yaml: what is warned about and what fails
``verdict``    pure: figures and limits → pass, warn or fail, with a sentence per finding
=============  ========================================================================================
"""
