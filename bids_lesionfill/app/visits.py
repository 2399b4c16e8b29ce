"""A visit: a T1w and what goes with it. It is the unit of work of filling, synthesis and thickness.

Files are opened, FLAIR and T1w registered, and brain, bias and tissues found once for a visit. New lesions are the same
in all of its images, variant by variant.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import sidecars
from ..diffusion import models as diffusion_models
from ..images import anatomy as images_anatomy
from ..images import nifti, placement, registration, tissues
from ..images.anatomy import Anatomy
from ..layout import derivatives as layout_derivatives
from ..layout import errors, inputs, naming, pairing, provenance
from ..layout import status as layout_status
from ..lesions import fill, library, records, settings
from ..lesions import sampling as lesions_sampling
from ..lesions import synthesis as lesions_synthesis
from . import config, loading, progress

if TYPE_CHECKING:
    import nibabel as nib

    from ..diffusion.filler import Filler
    from ..diffusion.registry import DeferredFiller
    from ..layout.indexing import ForEachSubject
    from .longitudinal import Member
    from .options import Options

logger = logging.getLogger('bids_lesionfill')


OLD_LESION_SHARE = 0.5  # of a voxel of the working grid that new lesions keep away from
DONOR_PROBLEM = 'skipped: its lesions are those that --mask-from gives to the others'


def run(
    images: Iterable[inputs.Inputs],
    models: dict[str, DeferredFiller],
    donor: inputs.Inputs | None,
    run_id: str,
    options: Options,
) -> list[tuple[inputs.Inputs, str, dict[str, Any]]]:
    """Synthesize new lesions in all images of a participant, unless already done.

    Parameters
    ----------
    images : list of layout.Inputs
    models : dict of modality -> weights.Model
    donor : layout.Inputs or None
        Whose lesions are taken (`--mask-from`).
    run_id : str
    options : cli.Options

    Returns
    -------
    list of (Inputs, desc, dict with `status` and `message`)
    """
    results = []
    for image in images:
        if image.problem:
            status = inputs.DONOR if image.problem == DONOR_PROBLEM else 'failed'
            logger.log(logging.ERROR if status == 'failed' else logging.WARNING, '%s: %s', image.name, image.problem)
            results.append((image, options.variants[0], {'status': status, 'message': image.problem}))
    for visit in visits_of([image for image in images if not image.problem], options, donor):
        done = {}
        for variant, desc in enumerate(options.variants):
            visit.choose_variant(variant)  # its lesions are drawn once, for all images
            for image in visit.images:
                done[image.name, desc] = run_image(visit, image, variant, desc, models, run_id, options)
        results += [(image, desc, done[image.name, desc]) for image in visit.images for desc in options.variants]
    return results


def visits_of(images: Iterable[inputs.Inputs], options: Options, donor: inputs.Inputs | None = None) -> list[Visit]:
    """Group images by their T1w."""
    by_t1w = {}
    for image in images:
        by_t1w.setdefault(image.t1w_file, []).append(image)
    return [Visit(of_visit, options, donor) for of_visit in by_t1w.values()]


def with_mask_of(
    image: inputs.Inputs, owner: inputs.Inputs, opener: Callable[[Path], nib.Nifti1Image] = loading.open_image
) -> inputs.Inputs:
    """Return an image without a lesion mask together with the mask of another image of its visit.

    A mask may be named as one image alone is (`acq-mprage`), and then the others do not find it.

    Raises
    ------
    ValueError
        If the mask lies on one FLAIR and the image is another one, elsewhere.
    """
    owner = loading.settle(owner, opener)
    flair_file = owner.image_file if owner.modality == 'FLAIR' else owner.flair_file
    on_flair = loading.drawn_on_flair(owner, opener) and owner.drawn_on != 'T1w'
    if on_flair and flair_file is not None and image.modality == 'FLAIR':
        flair_img, image_img = opener(flair_file), opener(image.image_file)
        if not placement.same_grid(flair_img, image_img):
            mask_name = owner.lesion_mask_file.name  # type: ignore[union-attr]
            raise ValueError(f'{mask_name} lies on {flair_file.name}, not on {image.image_file.name}')
    return replace(
        image,
        lesion_mask_file=owner.lesion_mask_file,
        lesion_labels=owner.lesion_labels,
        mask_space='FLAIR' if on_flair else 'T1w',
        flair_file=flair_file if image.modality == 'T1w' else image.flair_file,
        sources=tuple(dict.fromkeys((*image.sources, *owner.sources))),
    )


def run_image(
    visit: Visit,
    image: inputs.Inputs,
    variant: int,
    desc: str,
    models: dict[str, DeferredFiller],
    run_id: str,
    options: Options,
) -> dict[str, Any]:
    """Synthesize one variant of one image; return its status and message."""
    if options.reports_only:
        done = bool(layout_derivatives.read_sidecar(naming.synth_files(options.output_dir, image, desc)['synth']))
        return {'status': 'synthesized'} if done else {'status': 'failed', 'message': 'not synthesized yet'}
    try:
        seconds = synthesize_image(visit, image, variant, desc, models[image.modality], options)
        if seconds is not None:
            layout_status.note_seconds(seconds, f'{image.name}_{desc}', image.subject, run_id, options.output_dir)
    except Exception as error:
        name = f'{image.name}_{desc}'
        return {
            'status': 'failed',
            'message': layout_status.note_crash(error, name, image.subject, run_id, options.output_dir),
        }
    return {'status': 'synthesized'}


def synthesize_image(
    visit: Visit, image: inputs.Inputs, variant: int, desc: str, model: DeferredFiller, options: Options
) -> float | None:
    """Synthesize lesions in one image and write its derivatives, unless they exist for the same input.

    Returns
    -------
    float
        Seconds that it took; None if all was there.
    """
    image = replace(visit.settle(visit.with_mask(image)), fluid_file=None)  # which is for filling
    files = naming.synth_files(options.output_dir, image, desc)
    layout_derivatives.check_files(image)
    result_options = options.of_result(image.modality) | {'variant': variant} | visit.fingerprint
    run_hash = layout_derivatives.hash_run(image, result_options, model.sha256, options.version)
    if layout_derivatives.are_written(files['synth'], files.values(), run_hash):
        logger.info('%s desc-%s: already done', image.name, desc)
        return None
    started = time.monotonic()
    with progress.of_parts(f'{image.name} desc-{desc}') as report_tiles:
        synthesis, view = visit.synthesize(image, variant, model.loaded, report_tiles)
    write_way(view, options.output_dir)
    command = config.command_of(options, image.subject, image.modality)
    made_by = provenance.of_result(result_options, run_hash, options.version, 'synth', command)
    layout_derivatives.write_synthesis(options.output_dir, image, desc, synthesis, made_by)
    for warning in synthesis.warnings:
        logger.warning('%s: %s', image.name, warning)
    seconds = time.monotonic() - started
    logger.info('%s desc-%s: %d new lesion(s) in %.0f s', image.name, desc, len(synthesis.lesions), seconds)
    return seconds


class Visit:
    """A T1w and the images that go with it. What is costly is done once, and when it is first asked for."""

    def __init__(self, images: list[inputs.Inputs], options: Options, donor: inputs.Inputs | None = None) -> None:
        self.images, self.options, self.donor = images, options, donor
        self.seed = layout_derivatives.seed_of_path(images[0].t1w_path, options.random_seed)
        self.opener = loading.Opener()
        self.choice = options.mask_choice
        self.ways = {}  # from each FLAIR to the T1w, by the files of the two
        self.anatomies = {}  # of the T1w, by the lesions that take no part in the fit of its tissues
        self.segmentations = {}  # by other tools, in classes
        self.variants = {}  # new lesions of the variant that is being painted
        self.member: Member | None = None  # what the participant's other visits add, if they are to know each other

    # ------------------------------------------------------------------------------------------ files, worlds, anatomy

    def settle(self, image: inputs.Inputs) -> inputs.Inputs:
        """Return an image without an unneeded FLAIR; see `loading.settle`."""
        return loading.settle(image, self.opener)

    def way_to_t1w(self, image: inputs.Inputs) -> tuple:
        """Compute the transform from FLAIR to T1w, once per FLAIR; see `loading.way_to_t1w`."""
        pair = loading.files_of_pair(image)
        if pair not in self.ways:
            self.ways[pair] = loading.way_to_t1w(image, self.opener)
        return self.ways[pair]

    def with_fluid_file(self, image: inputs.Inputs) -> inputs.Inputs:
        """Return an image with the FLAIR that tells fluid from lesions, if one is to be used and can be read."""
        if self.options.growth.rims != 'unmixed':
            return replace(image, fluid_file=None)
        return loading.with_fluid_file(image, self.opener)

    def flair_on_t1w(self, image: inputs.Inputs) -> Any:
        """Return the FLAIR that tells fluid from lesions in the world of its T1w (nibabel image); None without."""
        if image.fluid_file is None:
            return None
        to_t1w, _ = self.way_to_t1w(replace(image, flair_file=image.fluid_file))
        t1w_img, flair_img = self.opener(image.t1w_file), self.opener(image.fluid_file)
        return flair_img if to_t1w is None else placement.moved(flair_img, to_t1w, t1w_img)

    def view(self, image: inputs.Inputs) -> loading.View:
        """Return the masks and the T1w of the visit in the scanner space of an image (from `settle`)."""
        view = self.view_alone(image)
        return view if self.member is None else self.member.complete(view)

    def view_alone(self, image: inputs.Inputs) -> loading.View:
        """Return the same without what other visits add."""
        return loading.view(image, self.choice, self.way_to_t1w(image), self.opener)

    def anatomy_with(self, image: inputs.Inputs, lesions: settings.Lesions | None, lesion_share: float) -> Anatomy:
        """Find brain, bias and tissues of the T1w; what does not depend on the lesions is found once.

        Parameters
        ----------
        image : layout.Inputs
            Which knows the brain mask and the segmentation of the T1w.
        lesions : settings.Lesions
            In the world of the T1w: they take no part in the fit of tissues.
        lesion_share : float
            See `images.anatomy.look_at`.
        """
        t1w_img = self.opener(image.t1w_file)
        mask = None if lesions is None else np.logical_or(*lesions.on_grid(t1w_img))
        key = (
            image.brain_mask_file,
            files_of(image.segmentation),
            lesion_share,
            None if mask is None else mask.tobytes(),
        )
        if key not in self.anatomies:
            known = next((found for other, found in self.anatomies.items() if other[:2] == key[:2]), None)
            mask_img = None if mask is None else nifti.mask_image(mask, t1w_img)
            self.anatomies[key] = self.find_anatomy(image, t1w_img, mask_img, lesion_share, known)
        return self.anatomies[key]

    def find_anatomy(
        self,
        image: inputs.Inputs,
        t1w_img: nib.Nifti1Image,
        mask_img: nib.Nifti1Image | None,
        lesion_share: float,
        known: Anatomy | None,
    ) -> Anatomy:
        """Find the anatomy, with matching tissues of another tool if any; see `images.anatomy.look_at`."""
        tissue_seg_img, source, notes = self.segmentation(image)
        for note in notes:
            logger.warning('%s: %s', image.name, note)
        if known is not None and tissue_seg_img is None:
            return images_anatomy.look_again(known, t1w_img, mask_img, lesion_share)
        brain_mask_img = loading.open_brain_mask(image, self.opener)
        anatomy = images_anatomy.look_at(
            t1w_img, mask_img, brain_mask_img, tissue_seg_img=tissue_seg_img, lesion_share=lesion_share
        )
        return replace(anatomy, sources=replace(anatomy.sources, white_matter_source=source)) if source else anatomy

    def segmentation(self, image: inputs.Inputs) -> tuple:
        """Read the segmentation of an image, each only once; see `loading.load_segmentation`."""
        key = files_of(image.segmentation)
        if key not in self.segmentations:
            t1w_img = self.opener(image.t1w_file)
            self.segmentations[key] = loading.load_segmentation(image.segmentation, t1w_img, self.opener)
        return self.segmentations[key]

    @property
    def fingerprint_of_others(self) -> dict[str, Any]:
        """Further inputs of a filling: what the participant's other visits add; see `longitudinal.Subject`."""
        return {} if self.member is None else self.member.subject.fingerprint

    # ------------------------------------------------------------------------------------------- filling and thickness

    def fill(
        self, image: inputs.Inputs, model: Filler, report_tiles: Callable[[int, int], Any] | None = None
    ) -> tuple[fill.Filling, loading.View]:
        """Fill an image of the visit (of `settle`), and return from where it was seen."""
        # Before what depends on them is done, and fails in other words.
        nifti.check_image(self.opener(image.t1w_file), 'T1w' if image.tissue_file else 'image')
        nifti.check_image(self.opener(image.image_file), 'image')
        view, options = self.view(image), self.options
        anatomy, notes = None, []
        lesions: Any = view.lesions  # no image without a mask comes here
        if lesions.on_grid(view.image_img)[0].any():
            anatomy = self.anatomy_with(image, view.lesions_on_t1w, fill.LESION_SHARE)
            anatomy = anatomy if view.from_t1w is None else anatomy.moved(view.from_t1w)
            _, _, notes = self.segmentation(image)
        sampling = options.sampling(layout_derivatives.seed_of(image, options.random_seed), report_tiles)
        if self.member is not None:
            sampling = replace(sampling, noise=self.member.noise_of(view))
        lesions = lesions if anatomy is None else replace(lesions, flair_img=self.flair_on_t1w(image))
        filling = fill.fill(view.image_img, lesions, anatomy, model, options.growth, sampling)
        warnings = [*filling.warnings, *notes, *view.notes]
        record = replace(filling.record, flair_registration=view.registration, subject_space=view.subject_space)
        return replace(filling, record=record, warnings=warnings), view

    def anatomy_to_measure(self, image: inputs.Inputs) -> Anatomy:
        """Return the anatomy in which a T1w is measured before and after filling: one brain mask, one bias field."""
        image = self.settle(image)
        anatomy = self.anatomy_with(image, self.view(image).lesions_on_t1w, fill.LESION_SHARE)
        if anatomy.bias_field is not None:
            return anatomy
        t1w = anatomy.grid_img.get_fdata(dtype=np.float32)
        return replace(anatomy, bias_field=tissues.find_bias(t1w, anatomy.brain_mask))

    # ------------------------------------------------------------------------------------------------------- synthesis

    @cached_property
    def first(self) -> inputs.Inputs:
        """The image whose lesions and tissues are those of the visit."""
        return self.settle(self.owner or self.images[0])

    @property
    def owner(self) -> inputs.Inputs | None:
        """The first image that found a lesion mask; None if none did."""
        return next((image for image in self.images if image.lesion_mask_file), None)

    def with_mask(self, image: inputs.Inputs) -> inputs.Inputs:
        """Return an image with its own lesion mask, or else one of its visit; see `with_mask_of`."""
        if image.lesion_mask_file or self.owner is None:
            return image
        return with_mask_of(image, self.owner, self.opener)

    @property
    def anatomy(self) -> Anatomy:
        """The space that is free for new lesions; see `images.anatomy.look_at`."""
        lesions_img = loading.lesions_of(self.first, self.choice, self.way_to_t1w(self.first)[0], self.opener)
        lesions = lesions_img and settings.Lesions(lesions_img, threshold=self.choice.threshold)
        return self.anatomy_with(self.first, lesions, OLD_LESION_SHARE)

    def synthesize(
        self, image: inputs.Inputs, variant: int, model: Any, report_tiles: Callable[[int, int], Any] | None = None
    ) -> tuple[lesions_synthesis.Synthesis, loading.View]:
        """Synthesize lesions of a variant in an image (from `settle`): (`Synthesis`, `loading.View`)."""
        view, options, anatomy, new = self.view(image), self.options, self.anatomy, self.new_lesions(variant)
        if view.from_t1w is not None:
            anatomy, new = anatomy.moved(view.from_t1w), replace(new, mask_img=view.bring(new.mask_img))
        seed = (layout_derivatives.seed_of(image, options.random_seed) + 7919 * variant) % 2**63
        synthesis = lesions_synthesis.paint(
            view.image_img,
            anatomy,
            new,
            model,
            view.lesions,
            options.sampling(seed, report_tiles),
            options.lesion_halo,
        )
        record = replace(
            synthesis.record,
            lesion_source=self.source,
            visits=records.Visits(image.sources[0], 'this image') if options.second_visit else None,
            flair_registration=view.registration,
        )
        return replace(synthesis, record=record, warnings=[*synthesis.warnings, *view.notes]), view

    @cached_property
    def atlas(self) -> lesions_sampling.Atlas:
        """See `synth.find_places`."""
        return lesions_synthesis.find_places(self.anatomy, library.load_lesion_library())

    @cached_property
    def mask_img(self) -> nib.Nifti1Image:
        """The mask that was given, or another patient's."""
        if self.options.new_mask_file:
            mask_img = self.opener(self.options.new_mask_file)
            return placement.beside(mask_img, self.opener(self.first.t1w_file), 'mask of new lesions')
        donor = self.settle(self.donor)  # type: ignore[arg-type]
        lesions_img = loading.lesions_of(donor, to_t1w=self.way_to_t1w(donor)[0], opener=self.opener)
        return lesions_synthesis.borrow(self.opener(donor.t1w_file), lesions_img, self.anatomy)

    @property
    def source(self) -> str:
        """The origin of the lesions, in words."""
        if self.options.new_mask_file:
            return f'the mask {self.options.new_mask_file.name}'
        return f'sub-{self.donor.subject}, by deformable registration' if self.donor else 'drawn from a library'

    @cached_property
    def fingerprint(self) -> dict[str, list[str]]:
        """Further inputs of the result: the bytes of masks that are given, by their hashes."""
        files = [self.options.new_mask_file]
        files += [self.donor.t1w_file, self.donor.lesion_mask_file] if self.donor else []
        files += [self.first.lesion_mask_file, self.first.brain_mask_file]
        return {'masks': [diffusion_models.sha256_of(file) for file in files if file]}

    def choose_variant(self, variant: int) -> None:
        """Keep the new lesions of one variant only, and forget those of others."""
        self.variants = {number: new for number, new in self.variants.items() if number == variant}

    def new_lesions(self, variant: int) -> lesions_synthesis.NewLesions:
        """Return the lesions of a variant, the same for all images of a visit; see `synthesis.NewLesions`."""
        if variant not in self.variants:
            self.variants[variant] = self.draw(np.random.default_rng([self.seed, variant]))
        return self.variants[variant]

    def draw(self, rng: np.random.Generator) -> lesions_synthesis.NewLesions:
        """Sample new lesions, or take those of a mask."""
        options = self.options
        if options.new_mask_file or self.donor:
            return lesions_synthesis.given(self.mask_img, rng, options.lesion_intensity, options.mask_threshold)
        return lesions_synthesis.draw(
            self.anatomy,
            self.atlas,
            rng,
            options.lesion_intensity,
            options.n_lesions,
            options.lesion_load_ml,
            options.lesion_locations,
        )


def files_of(segmentation: inputs.Segmentation | None) -> tuple:
    """Return the files of a segmentation; none without."""
    return () if segmentation is None else tuple(segmentation.files)


def write_way(view: loading.View, output_dir: Path) -> None:
    """Write how FLAIR and T1w of an image were brought together, or remove what an earlier run wrote."""
    text = None if view.to_t1w is None else registration.itk_text(view.to_t1w)
    about = sidecars.spell(view.registration) if view.registration else {}
    layout_derivatives.write_xfm(output_dir, view.image, text, about)


def find_donor(bids_layout: ForEachSubject, options: Options, derivatives: dict[str, Path]) -> inputs.Inputs:
    """Find the T1w with a lesion mask of the donor participant (`--mask-from`), the first by name.

    Raises
    ------
    UsageError
        If there is none.
    """
    label = str(options.mask_from)
    found = pairing.find_inputs(
        bids_layout,
        derivatives,
        participant_labels=[label],
        filters=options.filters,
        mask_labels=options.mask_labels,
        mask_desc=options.mask_desc,
    )
    usable = [image for image in found[label] if not image.problem]
    if not usable:
        raise errors.UsageError(f'--mask-from: sub-{options.mask_from} has no T1w with a lesion mask')
    return usable[0]


def without_donor(found: dict[str, list[inputs.Inputs]], subject: str | None) -> dict[str, list[inputs.Inputs]]:
    """Return images by subject (dict of lists of inputs.Inputs), those of `--mask-from` set to skip.

    Raises
    ------
    UsageError
        If nobody else is there.
    """
    if subject not in found:
        return found
    if len(found) == 1:
        raise errors.UsageError(f'--mask-from: sub-{subject} cannot get its own lesions, and there is nobody else')
    return found | {subject: [replace(image, problem=DONOR_PROBLEM) for image in found[subject]]}
