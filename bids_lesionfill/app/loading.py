"""From the files that were found for an image to images in one world: which lesions, whose tissues, FLAIR to T1w."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..images import grid, masks, nifti, placement, registration, segmentations
from ..layout import inputs
from ..layout.files import check_content, open_image
from ..lesions import records, settings

logger = logging.getLogger(__name__)

MAX_SHIFT_MM = 1  # up to this, world coordinates agree
MIN_GAIN = 1.02  # of mutual information; less is what interpolation and noise give


@dataclass(frozen=True)
class View:
    """A visit as seen from one of its images: masks in the world of that image, and the way there from the T1w."""

    image: inputs.Inputs  # from `settle`
    image_img: nib.Nifti1Image
    lesions: settings.Lesions | None = None  # None without a lesion mask
    lesions_on_t1w: settings.Lesions | None = None  # the same in the world of the T1w
    to_t1w: np.ndarray | None = None  # (4, 4), world of the FLAIR to that of the T1w; None if they agree
    from_t1w: np.ndarray | None = None  # (4, 4), world of the T1w to that of the image; None if they agree
    registration: records.Registration | None = None  # None if nothing had to be registered
    place_notes: tuple[str, ...] = ()  # on the header of the mask, if `lesions` no longer has it
    subject_space: records.SubjectSpace | None = None  # None if the visit stands alone

    @property
    def notes(self) -> list[str]:
        """Sentences that a person should read."""
        of_registration = self.to_t1w is not None and self.registration is not None
        return [*self.place_notes, *([shift_note(self.registration)] if of_registration else [])]

    def bring(self, img: nib.Nifti1Image) -> nib.Nifti1Image:
        """Move an image from the world of the T1w into that of this image."""
        return img if self.from_t1w is None else placement.moved(img, self.from_t1w, self.image_img)


class Opener:
    """Open each file once: images by path, kept as long as the opener is."""

    def __init__(self) -> None:
        self.opened = {}

    def __call__(self, path: Path) -> nib.Nifti1Image:
        """Return the image of a file; see `open_image`."""
        if path not in self.opened:
            self.opened[path] = open_image(path)
        return self.opened[path]


def settle(image: inputs.Inputs, opener: Callable[[Path], nib.Nifti1Image] = open_image) -> inputs.Inputs:
    """Return an image with the one other image on which its mask lies, if it lies on one that has another grid.

    Headers are read. A mask that names no space lies on the FLAIR (or another T1w that shares the mask) if it has its
    grid and not that of the T1w.
    """
    if image.lesion_mask_file is None or (image.flair_file is None and not image.sibling_files):
        return image
    t1w_img, mask_img = opener(image.image_file), open_lesion_mask(image, opener)
    siblings, image = image.sibling_files, replace(image, sibling_files=())
    if placement.same_grid(mask_img, t1w_img):  # then nobody needs the FLAIR, nor that it can be read
        return replace(image, flair_file=None)
    names_another = image.mask_space not in (None, 'T1w')
    drawn_on = [path for path in siblings if not names_another and placement.same_grid(mask_img, opener(path))]
    if drawn_on:
        return with_source(replace(image, flair_file=drawn_on[0]))
    if image.flair_file is None:
        return image
    flair_img = opener(image.flair_file)
    on_flair = names_another or placement.same_grid(mask_img, flair_img)
    if not on_flair or placement.same_grid(flair_img, t1w_img):
        return replace(image, flair_file=None)
    return with_source(image)


def with_source(image: inputs.Inputs, path: Any = None) -> inputs.Inputs:
    """Return an image whose sources name `flair_file`, or another file beside it, too."""
    uri = image.uri_beside(path or image.flair_file)  # type: ignore[arg-type]
    return replace(image, sources=tuple(dict.fromkeys((*image.sources, uri))))


def with_fluid_file(image: inputs.Inputs, opener: Callable[[Path], nib.Nifti1Image] = open_image) -> inputs.Inputs:
    """Return a T1w whose sources name the FLAIR that tells fluid from lesions, or without it if it cannot be read."""
    if image.fluid_file is None:
        return image
    try:
        check_content(image.fluid_file)
        nifti.check_image(opener(image.fluid_file), 'FLAIR')
    except ValueError as error:
        logger.warning('%s is filled without its FLAIR: %s', image.name, error)
        return replace(image, fluid_file=None)
    return with_source(image, image.fluid_file)


def view(
    image: inputs.Inputs,
    choice: settings.MaskChoice = settings.DEFAULT_CHOICE,
    way: tuple | None = None,
    opener: Callable[[Path], nib.Nifti1Image] = open_image,
) -> View:
    """Read the masks of an image and bring them into its world, and say how the T1w comes there.

    Where a FLAIR is in play and is not on the grid of the T1w, the two are registered (rigid). If that moves the FLAIR
    by more than 1 mm and tells more, it is taken: the affines of what lies in the other world are changed, and nothing
    is resampled twice. Else world coordinates agree and are left alone.

    Parameters
    ----------
    image : layout.Inputs
        From `settle`.
    choice : settings.MaskChoice
    way : tuple, optional
        From `way_to_t1w`, if that is known.
    opener : callable
        Opens the image of a path.

    Raises
    ------
    ValueError
        If a mask does not hold the labels, or the T1w cannot be brought to the image.
    """
    image_img, t1w_img = opener(image.image_file), opener(image.t1w_file)
    to_t1w, about = way_to_t1w(image, opener) if way is None else way
    from_t1w = None
    if image.tissue_file:
        from_t1w = np.linalg.inv(to_t1w) if to_t1w is not None else shift_of_header(t1w_img, image_img)
    own = on_t1w = None
    if image.lesion_mask_file is not None:
        mask_img = open_lesion_mask(image, opener)
        imgs = select_lesions(mask_img, choice.threshold, image.lesion_labels, choice.labels, choice.min_volume_mm3)
        own, on_t1w = (
            settings.Lesions(fill_img, kept_img, choice.threshold)
            for fill_img, kept_img in in_both_worlds(image, imgs, to_t1w, opener)
        )
    return View(image, image_img, own, on_t1w, to_t1w, from_t1w, about)


def in_both_worlds(
    image: inputs.Inputs,
    mask_imgs: Sequence[nib.Nifti1Image | None],
    to_t1w: np.ndarray | None,
    opener: Callable[[Path], nib.Nifti1Image],
) -> tuple[Sequence[nib.Nifti1Image | None], Sequence[nib.Nifti1Image | None]]:
    """Return masks in the world of an image, and the same in that of its T1w: two tuples; None stays None."""

    def move(
        imgs: Sequence[nib.Nifti1Image | None], transform: np.ndarray, target_img: nib.Nifti1Image
    ) -> Sequence[nib.Nifti1Image | None]:
        return tuple(placement.moved(img, transform, target_img) for img in imgs)

    t1w_img, on_flair = opener(image.t1w_file), drawn_on_flair(image, opener)
    if image.tissue_file is None:  # a T1w, whose mask may have been drawn on the FLAIR
        own = move(mask_imgs, to_t1w, t1w_img) if on_flair and to_t1w is not None else mask_imgs
        return own, own
    flair_img = opener(image.image_file)
    if not on_flair:
        own = mask_imgs if to_t1w is None else move(mask_imgs, np.linalg.inv(to_t1w), flair_img)
        return own, mask_imgs
    on_t1w = tuple(img and placement.beside(img, flair_img, 'lesion mask') for img in mask_imgs)
    return mask_imgs, on_t1w if to_t1w is None else move(on_t1w, to_t1w, t1w_img)


def shift_of_header(t1w_img: nib.Nifti1Image, image_img: nib.Nifti1Image) -> np.ndarray | None:
    """Return the (4, 4) transform that puts a T1w on the voxels of an image where one header gives no place, or None.

    See `placement.beside`.
    """
    placed_img = placement.beside(t1w_img, image_img, 'T1w')
    return None if placed_img is t1w_img else placed_img.affine @ np.linalg.inv(t1w_img.affine)


def open_lesion_mask(image: inputs.Inputs, opener: Callable[[Path], nib.Nifti1Image] = open_image) -> nib.Nifti1Image:
    """Read the lesion mask of an image, with the affine of the FLAIR if it follows only its qform."""
    mask_img = opener(image.lesion_mask_file)  # type: ignore[arg-type]
    flair_file = image.image_file if image.tissue_file else image.flair_file
    if flair_file is None or placement.same_grid(mask_img, opener(image.t1w_file)):  # then nobody needs the FLAIR
        return mask_img
    flair_img = opener(flair_file)
    return nifti.with_affine(mask_img, flair_img.affine) if placement.follows_qform(mask_img, flair_img) else mask_img


def open_brain_mask(
    image: inputs.Inputs, opener: Callable[[Path], nib.Nifti1Image] = open_image
) -> nib.Nifti1Image | None:
    """Read the brain mask of an image in the scanner space of its T1w; None if there is none."""
    if not image.brain_mask_file:
        return None
    brain_mask_img = placement.beside(opener(image.brain_mask_file), opener(image.t1w_file), 'brain mask')
    return nifti.plain(brain_mask_img, 'brain mask')


def lesions_of(
    image: inputs.Inputs,
    choice: settings.MaskChoice = settings.DEFAULT_CHOICE,
    to_t1w: np.ndarray | None = None,
    opener: Callable[[Path], nib.Nifti1Image] = open_image,
) -> nib.Nifti1Image | None:
    """Read the lesions (binary or probabilities) in the scanner space of the T1w; None without a mask.

    Parameters
    ----------
    image : layout.Inputs
    choice : settings.MaskChoice
        Which lesions; all by default.
    to_t1w : (4, 4) array, optional
        See `way_to_t1w`: a mask that was drawn on the FLAIR is moved by it.
    opener : callable
    """
    if image.lesion_mask_file is None:
        return None
    mask_img, _ = select_lesions(
        open_lesion_mask(image, opener), choice.threshold, image.lesion_labels, choice.labels, choice.min_volume_mm3
    )
    if to_t1w is None or not drawn_on_flair(image, opener):
        return mask_img
    return placement.moved(mask_img, to_t1w, opener(image.t1w_file))


def drawn_on_flair(image: inputs.Inputs, opener: Callable[[Path], nib.Nifti1Image] = open_image) -> bool:
    """Return True if the lesion mask of an image (from `settle`) is in the scanner space of the FLAIR."""
    if image.tissue_file is None:
        return image.flair_file is not None
    mask_img, t1w_img = open_lesion_mask(image, opener), opener(image.tissue_file)
    return not (image.mask_space == 'T1w' or (image.mask_space is None and placement.same_grid(mask_img, t1w_img)))


def files_of_pair(image: inputs.Inputs) -> tuple[Path | None, Path]:
    """Return the FLAIR and T1w files of an image, either may be the image itself; FLAIR may be None."""
    return image.image_file if image.tissue_file else image.flair_file, image.t1w_file


def way_to_t1w(
    image: inputs.Inputs, opener: Callable[[Path], nib.Nifti1Image] = open_image
) -> tuple[np.ndarray | None, Any]:
    """Compute the transform from FLAIR to T1w scanner space where both are used and headers disagree.

    Parameters
    ----------
    image : layout.Inputs
        From `settle`.
    opener : callable

    Returns
    -------
    to_t1w : (4, 4) array or None
    about : records.Registration, None if nothing had to be registered; see `align`
    """
    flair_file, t1w_file = files_of_pair(image)
    if flair_file is None:
        return None, None
    flair_img, t1w_img = opener(flair_file), opener(image.t1w_file)
    if placement.same_grid(flair_img, t1w_img):
        return None, None
    to_t1w, about = align(flair_img, t1w_img)
    return to_t1w, about if image.drawn_on == 'FLAIR' else replace(about, moved=flair_file.name)


def shift_note(about: Any) -> str:
    """Return the note for the user about a registered FLAIR."""
    moved = about.moved or 'FLAIR'
    return (
        f'{moved} and T1w differ by up to {about.shift_mm:.1f} mm by their headers: the {moved} was registered. '
        'Look at the overlay.'
    )


def align(flair_img: nib.Nifti1Image, t1w_img: nib.Nifti1Image) -> tuple[np.ndarray | None, Any]:
    """Register a FLAIR to a T1w if their headers disagree: ((4, 4) array or None, Registration).

    See `registration.rigid`.
    """
    flair_img, t1w_img = nifti.plain(flair_img, 'FLAIR'), nifti.plain(t1w_img, 'T1w')
    flair = flair_img.get_fdata(dtype=np.float32)
    to_t1w, (before, after) = registration.rigid(
        flair, flair_img.affine, t1w_img.get_fdata(dtype=np.float32), t1w_img.affine
    )
    shift_mm = registration.largest_shift_mm(to_t1w, flair, flair_img.affine)
    used = bool(shift_mm > MAX_SHIFT_MM and after > MIN_GAIN * before)
    about = records.Registration(
        'rigid, mutual information', round(shift_mm, 2), round(before, 4), round(after, 4), used
    )
    return (to_t1w if used else None), about


def select_lesions(
    mask_img: nib.Nifti1Image,
    threshold: float = 0.5,
    holds: Sequence[int] = (),
    labels: Sequence[int] = (),
    min_volume_mm3: float = 0,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image | None]:
    """Return lesions to fill and lesions to keep (or None): uint8 images on the grid of the mask.

    Parameters
    ----------
    mask_img : nibabel image
    threshold : float
        See `fill.mask_on_grid`.
    holds : sequence of int
        Values that are lesions, where the file holds other things too.
    labels : sequence of int
        Values that are to be filled; all lesions if empty.
    min_volume_mm3 : float
        Connected lesions that are smaller stay.

    Raises
    ------
    ValueError
        If the file has none of the labels.
    """
    nifti.check_image(mask_img, 'lesion mask')
    if not (holds or labels or min_volume_mm3):
        return mask_img, None
    values = np.rint(np.nan_to_num(nifti.one_volume(mask_img)))
    lesions = np.isin(values, holds) if holds else placement.mask_on_grid(mask_img, mask_img, threshold)
    wanted = lesions
    if labels:
        wanted = np.isin(values, labels)
        missing = sorted(set(labels) - set(np.unique(values)))
        if len(missing) == len(set(labels)) and lesions.any():
            present = [f'{value:g}' for value in np.unique(values[lesions])[:10]]
            raise ValueError(f'--lesion-labels {missing}: the lesion mask has none of them, but {", ".join(present)}')
    if min_volume_mm3:
        numbers, _ = masks.label_lesions(wanted)
        volumes_mm3 = np.bincount(numbers.flat) * abs(np.linalg.det(mask_img.affine[:3, :3]))
        volumes_mm3[0] = 0
        wanted = (volumes_mm3 >= min_volume_mm3)[numbers]
    kept = lesions & ~wanted
    return nifti.mask_image(wanted, mask_img), nifti.mask_image(kept, mask_img) if kept.any() else None


def load_segmentation(
    segmentation: inputs.Segmentation | None,
    t1w_img: nib.Nifti1Image,
    opener: Callable[[Path], nib.Nifti1Image] = open_image,
) -> tuple[nib.Nifti1Image | None, str | None, list[str]]:
    """Read tissue classes of another tool: (image or None, description of the source, warnings).

    What does not fit the T1w is left out with a warning, and white matter is found without it.

    Parameters
    ----------
    segmentation : layout.Segmentation or None
    t1w_img : nibabel image
    opener : callable
    """
    if segmentation is None:
        return None, '', []
    try:
        seg_imgs = [opener(path) for path in segmentation.files]
        plain_t1w = nifti.plain(t1w_img, 'T1w')
        t1w = grid.resample_to(plain_t1w, seg_imgs[0], order=1)
        if len(seg_imgs) == 3:
            tissue_seg = segmentations.most_probable(np.stack([nifti.one_volume(img) for img in seg_imgs]))
        else:
            labels = np.rint(np.nan_to_num(nifti.one_volume(seg_imgs[0]))).astype(int)
            if segmentation.table == 'freesurfer':
                tissue_seg = segmentations.from_freesurfer(labels)
            elif segmentation.table:
                tissue_seg = segmentations.from_table(labels, segmentation.table)
            else:
                tissue_seg = segmentations.by_intensity(labels, t1w)
        segmentations.check_fit(tissue_seg, t1w)
    except (ValueError, OSError) as error:
        names = ', '.join(path.name for path in segmentation.files)
        return None, '', [f'{names} is not used as tissue segmentation: {error}.']
    return nib.Nifti1Image(tissue_seg, seg_imgs[0].affine), segmentation.source, []
