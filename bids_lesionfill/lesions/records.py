"""Records of filling and synthesis; `sidecars` writes them as JSON.

None: does not apply, or is not in the sidecar of an earlier version.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import sidecars


@dataclass(frozen=True)
class Registration:
    """Registration of two images of a visit."""

    method: str
    shift_mm: float  # largest, by which their headers disagree
    information_by_headers: float  # mutual
    information_registered: float
    used: bool
    moved: str | None = None  # file name of the second image, if it is no FLAIR


@dataclass(frozen=True)
class Visits:
    """Images of a simulated follow-up."""

    first: str
    second: str


# The order of fields is the order of keys in the sidecar.


@dataclass(frozen=True)
class FillRecord:
    """Record of a filled image."""

    lesion_voxels_given: int | None = None
    lesion_voxels_used: int | None = None
    lesion_voxels_kept: int | None = None
    lesion_sign: int | None = None  # 1: brighter than white matter, -1: darker; measured
    lesions: int | None = None
    lesions_dropped: int | None = None
    lesion_voxels_dropped: int | None = None
    lesion_voxels_outside_brain: int | None = None
    brain_volume_ml: float | None = None
    dilation: int | None = None  # voxels; if rims were grown
    rim_voxels: int | None = None
    lesion_voxels_replaced: int | None = None  # if rims were unmixed
    lesion_voxels_unmixed: int | None = None
    fluid_voxels_kept: int | None = None
    skull_stripped: bool | None = None
    brain_mask_source: str | None = None
    white_matter_source: str | None = None
    model: str | None = None
    weights_sha256: str | None = None
    random_seed: int | None = None
    num_inference_steps: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict, metadata=sidecars.AS_IT_IS)  # of the filler
    num_samples: int | None = None
    device: str | None = None
    texture: str | None = None
    white_matter_median: float | None = None
    voxels_changed: int | None = None
    white_matter_deviation: float | None = None  # robust standard deviation
    # What a reader sees of all that was filled (`measures`); None where it cannot be told.
    fill_grain: float | None = None  # times that of white matter
    fill_glow: float | None = None  # share
    fill_wall: float | None = None  # steepness, times that of walls elsewhere
    fill_outline: float | None = None  # SD
    mask_step: float | None = None  # SD, at the border of the given mask
    mask_step_moved: float | None = None  # SD, of the mask moved by 6 mm
    lesion_left: float | None = None  # share of the given mask
    flair_registration: Registration | None = None


@dataclass(frozen=True)
class SynthesisRecord:
    """Record of an image with new lesions."""

    model: str | None = None
    weights_sha256: str | None = None
    random_seed: int | None = None
    num_inference_steps: int | None = None
    texture: str | None = None  # sampled or mean, of one step; None: as the network paints it in more
    device: str | None = None
    halo_share: float | None = None
    contrast_reference: str | None = None
    lesion_voxels_old: int | None = None
    lesion_voxels_new: int | None = None
    lesions: int | None = None
    voxels_changed: int | None = None
    white_matter_median: float | None = None
    white_matter_deviation: float | None = None  # robust standard deviation
    brain_volume_ml: float | None = None
    new_lesions_touching_old: int | None = None
    skull_stripped: bool | None = None
    brain_mask_source: str | None = None
    white_matter_source: str | None = None
    lesion_source: str | None = None
    visits: Visits | None = None
    flair_registration: Registration | None = None
