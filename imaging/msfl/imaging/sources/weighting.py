"""Which contrast does this image have? Asked of the image itself, when its headers are silent.

The template of the nilearn wheel is moved onto the brain (affine, mutual information, which cares for no contrast), and
brings along where grey matter, white matter and fluid are. Then the order of their brightness tells::

    T1w     white > grey > fluid
    FLAIR   grey ≥ white > fluid        water is nulled
    T2w     fluid > grey > white

A head that does not fit the template, or tissues that cannot be told apart, are unknown: a person is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from msfl.imaging.checks import Volume
from msfl.imaging.sources.series import Weighting

_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
_WORKING_MM: Final = 4.0
_FEWEST_VOXELS: Final = 50
_APART: Final = 0.08  # of white matter's brightness: less is noise


@dataclass(frozen=True)
class Tissues:
    """Median brightness, in the image's own unit."""

    white: float
    grey: float
    fluid: float


def weighting_of(tissues: Tissues) -> Weighting:
    """From the order of brightness alone. Pure."""
    apart = _APART * max(tissues.white, tissues.grey)
    if tissues.fluid > max(tissues.white, tissues.grey) + apart:
        return Weighting.OTHER
    if tissues.fluid > min(tissues.white, tissues.grey) - apart:
        return Weighting.UNKNOWN
    if tissues.white > tissues.grey + apart:
        return Weighting.T1W
    if tissues.grey > tissues.white - apart / 4:
        return Weighting.FLAIR
    return Weighting.UNKNOWN


def look_at(head: Volume, brain: NDArray[np.bool_]) -> Weighting:
    """`head` in any orientation, `brain` on its grid. Takes seconds; the same image gives the same answer."""
    tissues = measure(head, brain)
    return Weighting.UNKNOWN if tissues is None else weighting_of(tissues)


def measure(head: Volume, brain: NDArray[np.bool_]) -> Tissues | None:
    """Brightness of the tissues where the moved template has them; None where it found no place."""
    import SimpleITK as sitk
    from nilearn import datasets

    template = datasets.load_mni152_template(resolution=2)
    maps = {
        "white": datasets.load_mni152_wm_template(resolution=2),
        "grey": datasets.load_mni152_gm_template(resolution=2),
    }
    moved_to = _coarse(_itk(np.where(brain, head.voxels, 0).astype(np.float32), head.affine))
    moving = _itk(np.asarray(template.get_fdata(), np.float32), template.affine)
    transform = _register(moved_to, moving)
    image = sitk.GetArrayFromImage(moved_to)

    def brought(values: Any, affine: Any) -> NDArray[Any]:
        there = sitk.Resample(_itk(np.asarray(values, np.float32), affine), moved_to, transform, sitk.sitkLinear, 0.0)
        return np.asarray(sitk.GetArrayFromImage(there))

    white, grey = (brought(maps[name].get_fdata(), maps[name].affine) for name in ("white", "grey"))
    inside = brought(template.get_fdata() > 0, template.affine) > 0.9
    places = {
        "white": white > 0.85,
        "grey": grey > 0.8,
        # Inside the brain and neither: the ventricles. What is next to nothing was outside of the mask.
        "fluid": inside & (white + grey < 0.12) & (image > 0.02 * image.max()),
    }
    if any(np.count_nonzero(places[name]) < _FEWEST_VOXELS for name in ("white", "grey")):
        return None
    # Fluid that is nulled may not show at all.
    medians = {name: float(np.median(image[place])) if place.any() else 0.0 for name, place in places.items()}
    return Tissues(**medians)


def _itk(voxels: NDArray[np.float32], affine: NDArray[Any]) -> Any:
    import SimpleITK as sitk

    lps = _LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _coarse(image: Any) -> Any:
    """On a grid of _WORKING_MM, smoothed as that asks."""
    import SimpleITK as sitk

    spacing = np.array(image.GetSpacing())
    smooth = sitk.SmoothingRecursiveGaussian(image, (_WORKING_MM / 2.355 * np.ones(3)).tolist())
    size = np.maximum(1, np.array(image.GetSize()) * spacing / _WORKING_MM).astype(int)
    grid = sitk.Image(size.tolist(), sitk.sitkFloat32)
    grid.SetSpacing([_WORKING_MM] * 3)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.GetOrigin())
    return sitk.Resample(smooth, grid, sitk.Transform(), sitk.sitkLinear, 0.0)


def _register(fixed: Any, moving: Any) -> Any:
    import SimpleITK as sitk

    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, 200, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1.0, 0.0])
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(fixed, moving)
