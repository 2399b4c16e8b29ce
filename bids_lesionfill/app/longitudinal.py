"""Visits of one participant in one space: their T1w are registered, their lesions known to each other.

A place that is filled in several visits gets its texture from one noise, see `lesions.noise`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from ..diffusion import models as diffusion_models
from ..images import grid, midpoint, nifti, placement, registration
from ..layout import derivatives as layout_derivatives
from ..layout import inputs
from ..lesions import fill, noise, records, settings, unmixing
from ..modality import get

if TYPE_CHECKING:
    from ..images.anatomy import Anatomy
    from .loading import View
    from .options import Options
    from .visits import Visit

logger = logging.getLogger('bids_lesionfill')

SHRINK_MM = (8, 4, 2)  # one scanner and contrast: worth a level more than FLAIR and T1w, see benchmarks/longitudinal.md
LEAST_OVERLAP = 0.8  # Dice coefficient of the brains of one person, one cut by the field of view


def with_masks_of_sessions(images: list[inputs.Inputs], options: Options) -> list[inputs.Inputs]:
    """Return the images of a participant, ready to be filled also where the mask of another session serves.

    See `--mask-session` and `--mask-union`. Nothing is opened.
    """
    if not (options.mask_session or (options.mask_union and options.segmenter is None)):
        return images
    sessions = {image.session for image in images if image.lesion_mask_file and not image.problem}
    if options.mask_session:
        sessions &= {options.mask_session}
    if not sessions and images:
        wanted = f'ses-{options.mask_session}' if options.mask_session else 'every session'
        logger.warning('sub-%s: %s has no lesion mask that could serve others', images[0].subject, wanted)

    def is_served(image: inputs.Inputs) -> bool:
        has_t1w = image.tissue_file is not None or not get(image.modality).needs_t1w
        return image.problem == inputs.NO_MASK and has_t1w and bool(sessions - {image.session})

    return [replace(image, problem='') if is_served(image) else image for image in images]


def join(visits: Iterable[Visit], options: Options) -> None:
    """Let the visits of one participant know each other, unless each session is to be filled on its own."""
    if options.reference == 'sessionwise':
        return
    members = [Member(visit) for visit in visits if any(not image.problem for image in visit.images)]
    if len(members) > 1:
        subject = Subject(members, options)
        for member in members:
            member.subject, member.visit.member = subject, member


class Subject:
    """The visits of a participant, each with one T1w, and the space in which they are registered."""

    def __init__(self, members: Iterable[Member], options: Options) -> None:
        self.members = sorted(members, key=lambda member: member.t1w_path)
        self.options = options

    @cached_property
    def hashes(self) -> dict[Path, str]:
        """SHA-256 of the T1w of each visit."""
        return {member.t1w_file: diffusion_models.sha256_of(member.t1w_file) for member in self.members}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Return what a result depends on beside the inputs and options of its own visit; for the sidecar."""
        images = [image for member in self.members for image in member.visit.images if not image.problem]
        masks = {image.lesion_mask_file for image in images}
        hashes = [diffusion_models.sha256_of(path) for path in masks if path is not None]
        return {
            'subject_anatomical_reference': self.options.reference,
            'mask_session': self.options.mask_session,
            'mask_union': self.options.mask_union,
            'visits': list(self.hashes.values()),
            'masks': sorted(hashes),
        }

    @cached_property
    def spaces(self) -> dict[Path, np.ndarray]:
        """The transform from the world of each T1w to the space of the subject: dict of file -> (4, 4) array.

        A T1w that cannot be read is left out; its images say why.

        Raises
        ------
        ValueError
            If two of them cannot be brought together.
        """
        brains = {}
        for member in self.members:
            try:
                brains[member.t1w_file] = member.own_anatomy
            except (ValueError, OSError) as error:
                logger.warning('%s is no part of the space of its participant: %s', member.t1w_file.name, error)
        if len(brains) < 2:
            return {}
        # One of two images is resampled. Which one, is decided by what they hold: names make no difference.
        ordered = sorted(brains, key=self.hashes.__getitem__)
        logger.info('sub-%s: %d T1w are registered', self.members[0].image.subject, len(ordered))
        to_one = {path: register(brains, path, ordered[0]) for path in ordered}
        if self.options.reference == 'first-lex':
            to_first = np.linalg.inv(to_one[next(iter(brains))])
            return {path: to_first @ transform for path, transform in to_one.items()}
        return dict(zip(to_one, midpoint.to_midpoint(list(to_one.values())), strict=True))

    def cell_of(self, modality: str) -> float:
        """Return the fineness of the noise, one for all images of a modality; mm."""
        visits = [member.visit for member in self.members if member.is_placed]
        images = [(visit, image) for visit in visits for image in visit.images if not image.problem]
        imgs = [visit.opener(image.image_file) for visit, image in images if image.modality == modality]
        return min(noise.cell_size(nib.affines.voxel_sizes(img.affine)) for img in imgs)

    def seed_of(self, image: inputs.Inputs) -> int:
        """Return the seed of the texture, one for all images of a modality."""
        return layout_derivatives.seed_of_path(f'sub-{image.subject}_{image.modality}', self.options.random_seed)


class Member:
    """A visit among those of its participant."""

    subject: Subject  # set by `join`

    def __init__(self, visit: Visit) -> None:
        self.visit = visit

    @property
    def t1w_file(self) -> Path:
        """The T1w."""
        return self.visit.images[0].t1w_file

    @property
    def t1w_path(self) -> str:
        """Path of the T1w in the dataset."""
        return self.visit.images[0].t1w_path

    @property
    def t1w_img(self) -> nib.Nifti1Image:
        """The T1w as it was opened."""
        return self.visit.opener(self.t1w_file)

    @cached_property
    def image(self) -> inputs.Inputs:
        """The image by which the visit is known to others: one with a lesion mask, if there is one."""
        images = [image for image in self.visit.images if not image.problem]
        return next((image for image in images if image.lesion_mask_file is not None), images[0])

    @cached_property
    def own_lesions(self) -> settings.Lesions | None:
        """The lesions of this visit alone, in the world of its T1w."""
        return self.visit.view_alone(self.visit.settle(self.image)).lesions_on_t1w

    @property
    def own_anatomy(self) -> Anatomy:
        """The anatomy of the T1w, as it is found without the other visits."""
        nifti.check_image(self.t1w_img, 'T1w')
        return self.visit.anatomy_with(self.image, self.own_lesions, fill.LESION_SHARE)

    @property
    def to_subject(self) -> np.ndarray:
        """The transform from the world of the T1w to the space of the subject; (4, 4) array."""
        return self.subject.spaces[self.t1w_file]

    @property
    def is_placed(self) -> bool:
        """True if the T1w is part of that space."""
        return self.t1w_file in self.subject.spaces

    @property
    def others(self) -> list[Member]:
        """The other visits that are part of it."""
        return [other for other in self.subject.members if other is not self and other.is_placed]

    def noise_of(self, view: View) -> noise.SubjectNoise | None:
        """Return the noise of which the texture of an image is made; None if the T1w is not part of the space."""
        if not self.is_placed:
            return None
        to_t1w = np.eye(4) if view.from_t1w is None else np.linalg.inv(view.from_t1w)
        cell_mm = self.subject.cell_of(view.image.modality)
        return noise.SubjectNoise(self.subject.seed_of(view.image), self.to_subject @ to_t1w, cell_mm)

    def lesions_of_others(self, has_mask: bool) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
        """Return the lesions of other visits: those to be filled, and those that are only known.

        Parameters
        ----------
        has_mask : bool
            Whether the image to be filled has a mask of its own.

        Returns
        -------
        fill_img, known_img : nibabel images
            uint8, on the T1w.
        """
        options, t1w_img = self.subject.options, self.t1w_img
        to_fill, known = (np.zeros(t1w_img.shape[:3], dtype=bool) for _ in range(2))
        for other in self.others:
            if other.own_lesions is None:
                continue
            serves = options.mask_union or (not has_mask and other.image.session == options.mask_session)
            given, kept = other.own_lesions.on_grid(other.t1w_img)
            for mask, all_of_them in ((given, to_fill if serves else known), (kept, known)):
                mask_img = nifti.mask_image(mask, other.t1w_img)
                moved_img = placement.moved(mask_img, np.linalg.inv(self.to_subject) @ other.to_subject, t1w_img)
                all_of_them |= grid.conform_mask(moved_img, t1w_img)
        return nifti.mask_image(to_fill, t1w_img), nifti.mask_image(known & ~to_fill, t1w_img)

    def complete(self, view: View) -> View:
        """Return a view of an image of the visit with the lesions that others have, and the record of the space."""
        if not self.is_placed:
            if view.lesions is None:
                raise ValueError('it has no lesion mask, and no other T1w of the participant can be read')
            return view
        fill_img, known_img = self.lesions_of_others(view.lesions is not None)
        own, counts = lesions_on(view.image_img, view.lesions, view.bring(fill_img), view.bring(known_img))
        on_t1w = own
        if view.image.tissue_file is not None:
            on_t1w, _ = lesions_on(self.t1w_img, view.lesions_on_t1w, fill_img, known_img)
        place = () if view.lesions is None else placement.notes_on_place(view.image_img, view.lesions.mask_img)
        record = self.record_of(view.image, counts)
        return replace(view, lesions=own, lesions_on_t1w=on_t1w, place_notes=tuple(place), subject_space=record)

    def record_of(self, image: inputs.Inputs, counts: tuple[int, int]) -> records.SubjectSpace:
        """Return the record of the space for the sidecar of an image; see `lesions_on` for the counts."""
        t1w_img, subject = nifti.plain(self.t1w_img, 'T1w'), self.subject
        t1w = t1w_img.get_fdata(dtype=np.float32)
        shift_mm = registration.largest_shift_mm(self.to_subject, t1w, t1w_img.affine)
        members = tuple(f'bids:raw:{member.t1w_path}' for member in subject.members if member.is_placed)
        return records.SubjectSpace(
            subject.options.reference, members, round(shift_mm, 2), subject.seed_of(image), *counts
        )

    def with_sources(self, image: inputs.Inputs) -> inputs.Inputs:
        """Return an image whose sources name what the other visits bring: T1w and lesion masks."""
        beside = [uri for other in self.others for uri in other.image.sources]
        return replace(image, sources=tuple(dict.fromkeys((*image.sources, *beside))))


def write_way(visit: Visit, image: inputs.Inputs, output_dir: Path) -> inputs.Inputs:
    """Write the transform of a visit to the space of its participant, or remove what an earlier run wrote.

    Returns
    -------
    layout.Inputs
        The image, with the sources that the other visits are.
    """
    member = visit.member
    if member is None or not member.is_placed:
        layout_derivatives.write_subject_xfm(output_dir, image, None, {})
        return image
    image, subject = member.with_sources(image), member.subject
    about = {'Reference': subject.options.reference, 'Method': 'rigid, mutual information of the brains'}
    text = registration.itk_text(member.to_subject)
    layout_derivatives.write_subject_xfm(output_dir, image, text, about)
    return image


def register(brains: dict[Path, Anatomy], moving: Path, fixed: Path) -> np.ndarray:
    """Register the brains of two T1w, rigidly: (4, 4) array, from world to world.

    Raises
    ------
    ValueError
        If they do not lie on each other afterwards.
    """
    if moving == fixed:
        return np.eye(4)
    (volume, affine), (target, target_affine) = (brain_of(brains[path]) for path in (moving, fixed))
    to_fixed, _ = registration.rigid(volume, affine, target, target_affine, SHRINK_MM)
    moved_img = nib.Nifti1Image((volume > 0).astype(np.uint8), to_fixed @ affine)
    target_img = nib.Nifti1Image((target > 0).astype(np.uint8), target_affine)
    overlap, both = grid.conform_mask(moved_img, target_img), target > 0
    dice = 2 * (overlap & both).sum() / (overlap.sum() + both.sum())
    if dice < LEAST_OVERLAP:
        raise ValueError(
            f'{moving.name} and {fixed.name} cannot be brought together: after registration their brains overlap by '
            f'{100 * dice:.0f} % (Dice coefficient), expected {100 * LEAST_OVERLAP:.0f} % or more. Are they of one '
            'person? --subject-anatomical-reference sessionwise fills each alone'
        )
    return to_fixed


def brain_of(anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """Return a T1w without what is outside the brain, and its affine."""
    t1w = anatomy.grid_img.get_fdata(dtype=np.float32)
    return np.where(anatomy.brain_mask, t1w, 0), anatomy.grid_img.affine


def lesions_on(
    image_img: nib.Nifti1Image, own: settings.Lesions | None, fill_img: nib.Nifti1Image, known_img: nib.Nifti1Image
) -> tuple[settings.Lesions, tuple[int, int]]:
    """Return lesions together with those of other visits, on the grid of an image.

    A lesion that is only known stays as it is, and is no healthy tissue. Next to a lesion that is filled it is not
    taken for one: there the two masks differ by their raters, and rims are found in the image.

    Parameters
    ----------
    image_img : nibabel image
    own : settings.Lesions or None
    fill_img, known_img : nibabel images
        In the same world.

    Returns
    -------
    lesions : settings.Lesions
    counts : (int, int)
        Voxels that are filled because of other visits, and voxels that are only known.
    """
    given = np.zeros(image_img.shape[:3], dtype=bool)
    kept = given
    if own is not None:
        given, kept = own.on_grid(image_img)
    n_own = int(given.sum())
    given = given | grid.conform_mask(fill_img, image_img)
    known = grid.conform_mask(known_img, image_img) & given.any()  # an image without lesions is copied
    if known.any():
        voxel_mm = nib.affines.voxel_sizes(image_img.affine)
        known &= ndimage.distance_transform_edt(~given, sampling=voxel_mm) > unmixing.REACH_MM
    known &= ~(kept | given)
    counts = int(given.sum()) - n_own, int(known.sum())
    kept = (kept | known) & ~given
    kept_img = nifti.mask_image(kept, image_img) if kept.any() else None
    return settings.Lesions(nifti.mask_image(given, image_img), kept_img), counts
