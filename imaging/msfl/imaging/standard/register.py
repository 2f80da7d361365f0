"""register: where each point of one image lies in another image of the same head, as one rigid motion.

Mattes mutual information (Mattes et al., IEEE TMI 2003;22:120-128) between a fixed and a moving image, driven by a
gradient descent with regular steps through three resolutions. Where to begin is tried out at the coarsest: as the
headers say, and with the brains' centres on each other; the better one goes on.

The same input gives the same motion to the bit: one thread, because sums over several come in any order, and sampling
points drawn from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from msfl.imaging.checks import Volume
from msfl.imaging.volume import LPS, Affine, Mask, to_itk
from msfl.imaging.workspace import Unusable

REGISTRATION_FAILED: Final = "registration_failed"


class Registration(BaseModel):
    """How a rigid registration is done, at three resolutions from coarse to fine."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bins: int = Field(default=32, ge=16, le=128)
    grids_mm: tuple[float, float, float] = (4.0, 2.0, 1.0)
    sampling: tuple[float, float, float] = (1.0, 0.3, 0.1)
    """Part of the fixed image's voxels that the metric looks at."""
    first_step_mm: tuple[float, float, float] = (2.0, 1.0, 0.5)
    last_step_mm: tuple[float, float, float] = (0.05, 0.02, 0.005)
    iterations: tuple[int, int, int] = (80, 60, 40)
    seed: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Rigid:
    """`matrix` maps a point of the fixed image to the point of the moving image that shows the same; mm, RAS+."""

    matrix: Affine

    def shift_mm(self, at: Affine) -> float:
        """How far the point `at` (mm, RAS+) of the fixed image is moved."""
        return float(np.linalg.norm((self.matrix @ np.append(at, 1.0))[:3] - at))

    @property
    def turned_deg(self) -> float:
        cosine = (np.trace(self.matrix[:3, :3]) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))

    def to_itk(self) -> Any:
        """As a SimpleITK transform; LPS, as ITK has it."""
        import SimpleITK as sitk

        lps = LPS @ self.matrix @ LPS
        affine = sitk.AffineTransform(3)
        affine.SetMatrix(lps[:3, :3].ravel().tolist())
        affine.SetTranslation(lps[:3, 3].tolist())
        return affine

    def write(self, file: Path) -> None:
        """As an ITK text file, which ITK, SimpleITK, ANTs and 3D Slicer read."""
        import SimpleITK as sitk

        try:
            sitk.WriteTransform(self.to_itk(), str(file))
        except RuntimeError:
            file.write_bytes(bytes(4096))  # ITK does not say why; the system does, where the disk is full
            raise


def read_rigid(file: Path) -> Rigid:
    """What `Rigid.write` wrote, or any linear transform in an ITK text file."""
    import SimpleITK as sitk

    return Rigid(_matrix(sitk.ReadTransform(str(file))))


def register(moving: Volume, fixed: Volume, moving_brain: Mask, fixed_brain: Mask, how: Registration) -> Rigid:
    """The brains only say where to begin; the whole heads are compared. Raises Unusable where they do not overlap."""
    return register_scored(moving, fixed, moving_brain, fixed_brain, how)[0]


def register_scored(
    moving: Volume, fixed: Volume, moving_brain: Mask, fixed_brain: Mask, how: Registration, levels: int = 3
) -> tuple[Rigid, float]:
    """With the mutual information (nats) that was reached at the last of `levels`. Raises Unusable."""
    fixed_itk, moving_itk = to_itk(fixed), to_itk(moving)
    middle, other = centre_mm(fixed, fixed_brain), centre_mm(moving, moving_brain)
    starts = [_euler(middle, np.zeros(3)), _euler(middle, other - middle)]
    try:
        tried = [(_climb(fixed_itk, moving_itk, start, how, level=0), start) for start in starts]
        information, motion = max(tried, key=lambda run: run[0])
        for level in range(1, levels):
            information = _climb(fixed_itk, moving_itk, motion, how, level=level)
    except RuntimeError as error:  # ITK: "all samples map outside moving image buffer"
        reason = "FLAIR and T1w could not be laid on each other. Look at both: are they of one person and of the head?"
        raise Unusable(REGISTRATION_FAILED, reason) from error
    return Rigid(_matrix(motion)), information


def centre_mm(volume: Volume, mask: Mask) -> Affine:
    """Where the middle of a mask lies; mm, RAS+."""
    voxel = np.array([float(axis.mean()) for axis in np.nonzero(mask)] + [1.0])
    return np.asarray((volume.affine @ voxel)[:3], dtype=np.float64)


def _climb(fixed: Any, moving: Any, motion: Any, how: Registration, *, level: int) -> float:
    """Move `motion`, an ITK transform, to where mutual information is highest; returns that."""
    import SimpleITK as sitk

    grid = how.grids_mm[level]
    coarse = grid > 1.5  # mm; below, blurring and shrinking would only lose
    f, m = (sitk.SmoothingRecursiveGaussian(image, grid / 2) if coarse else image for image in (fixed, moving))
    # not Shrink: that takes single voxels, half a voxel beside where it says they lie
    f = sitk.BinShrink(f, [max(1, round(grid / mm)) for mm in f.GetSpacing()])
    m = sitk.BinShrink(m, [max(1, round(grid / 2 / mm)) for mm in m.GetSpacing()]) if coarse else m
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the metric's sums heed nothing else
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(how.bins)
    if how.sampling[level] < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(how.sampling[level], how.seed)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=how.first_step_mm[level],
        minStep=how.last_step_mm[level],
        numberOfIterations=how.iterations[level],
        relaxationFactor=0.5,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(motion, inPlace=True)
    method.Execute(f, m)
    return -float(method.GetMetricValue())


def _euler(middle: Affine, shift: Affine) -> Any:
    """Turns about `middle`; both are mm, RAS+."""
    import SimpleITK as sitk

    euler = sitk.Euler3DTransform()
    euler.SetCenter((LPS[:3, :3] @ middle).tolist())
    euler.SetTranslation((LPS[:3, :3] @ shift).tolist())
    return euler


def _matrix(transform: Any) -> Affine:
    """RAS+ matrix of a linear ITK transform, from what it does to four points."""
    points = np.vstack([np.zeros(3), np.eye(3)])
    images = np.array([transform.TransformPoint(point.tolist()) for point in points])
    lps = np.eye(4)
    lps[:3, :3] = (images[1:] - images[0]).T
    lps[:3, 3] = images[0]
    return np.asarray(LPS @ lps @ LPS, dtype=np.float64)
