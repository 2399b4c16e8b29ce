"""New lesions in all images of a visit (a T1w and what goes with it): the same in each image, variant by variant."""

import functools
import logging
import time
from dataclasses import replace
from functools import cached_property

import numpy as np

from ..diffusion import models as diffusion_models
from ..images import anatomy as images_anatomy
from ..images import placement, registration
from ..layout import derivatives as layout_derivatives
from ..layout import errors, inputs, naming, pairing
from ..layout import status as layout_status
from ..lesions import library
from ..lesions import synthesis as lesions_synthesis
from . import loading, progress

logger = logging.getLogger('bids_lesionfill')


DONOR_PROBLEM = 'skipped: its lesions are those that --mask-from gives to the others'


def run(images, models, donor, run_id, options):
    """Paint new lesions into all images of a participant, unless that is done.

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
    results, by_t1w = [], {}
    for image in images:
        if image.problem:
            status = inputs.DONOR if image.problem == DONOR_PROBLEM else 'failed'
            logger.log(logging.ERROR if status == 'failed' else logging.WARNING, '%s: %s', image.name, image.problem)
            results.append((image, options.variants[0], {'status': status, 'message': image.problem}))
        else:
            by_t1w.setdefault(image.t1w_file, []).append(image)
    for of_visit in by_t1w.values():
        visit = Visit(of_visit, donor, options)
        done = {
            (image.name, desc): run_image(visit, image, variant, desc, models, run_id, options)
            for variant, desc in enumerate(options.variants)  # its lesions are drawn once, for all images
            for image in of_visit
        }
        results += [(image, desc, done[image.name, desc]) for image in of_visit for desc in options.variants]
    return results


def with_mask_of(image, owner):
    """An image that found no lesion mask, with that of another of its visit: their real lesions are the same.

    A mask may be named as one image alone is (`acq-mprage`), and then the others do not find it.

    Raises
    ------
    ValueError
        If the mask lies on one FLAIR and the image is another one, elsewhere.
    """
    owner = loading.settle(owner)
    flair_file = owner.image_file if owner.modality == 'FLAIR' else owner.flair_file
    on_flair = loading.drawn_on_flair(owner) and owner.drawn_on != 'T1w'
    if on_flair and image.modality == 'FLAIR':
        flair_img, image_img = (loading.open_image(path) for path in (flair_file, image.image_file))
        if not placement.same_grid(flair_img, image_img):
            raise ValueError(f'{owner.lesion_mask_file.name} lies on {flair_file.name}, not on {image.image_file.name}')
    return replace(
        image,
        lesion_mask_file=owner.lesion_mask_file,
        lesion_labels=owner.lesion_labels,
        mask_space='FLAIR' if on_flair else 'T1w',
        flair_file=flair_file if image.modality == 'T1w' else image.flair_file,
        sources=tuple(dict.fromkeys((*image.sources, *owner.sources))),
    )


def run_image(visit, image, variant, desc, models, run_id, options):
    """One variant of one image; what became of it."""
    if options.reports_only:
        done = bool(layout_derivatives.read_sidecar(naming.synth_files(options.output_dir, image, desc)['synth']))
        return {'status': 'synthesized'} if done else {'status': 'failed', 'message': 'not synthesized yet'}
    try:
        synthesize_image(visit, image, variant, desc, models[image.modality], options)
    except Exception as error:
        name = f'{image.name}_{desc}'
        return {
            'status': 'failed',
            'message': layout_status.note_crash(error, name, image.subject, run_id, options.output_dir),
        }
    return {'status': 'synthesized'}


def synthesize_image(visit, image, variant, desc, model, options):
    """Paint new lesions into one image and write its derivatives, unless they are there from the same input."""
    image = loading.settle(visit.with_mask(image))
    files = naming.synth_files(options.output_dir, image, desc)
    layout_derivatives.check_files(image)
    result_options = options.of_result(image.modality) | {'variant': variant} | visit.fingerprint
    run_hash = layout_derivatives.hash_run(image, result_options, model.sha256, options.version)
    if layout_derivatives.are_written(files['synth'], files.values(), run_hash):
        logger.info('%s desc-%s: already done', image.name, desc)
        return
    started = time.monotonic()
    anatomy, new, old_img = visit.seen_from(image, variant)
    with progress.of_parts(f'{image.name} desc-{desc}') as report_tiles:
        synthesis = lesions_synthesis.paint(
            loading.open_image(image.image_file),
            anatomy,
            new,
            model.loaded,
            lesion_mask_img=old_img,
            num_inference_steps=options.num_inference_steps,
            seed=(layout_derivatives.seed_of(image, options.random_seed) + 7919 * variant) % 2**63,
            device=diffusion_models.choose_device(options.device),
            batch_size=options.batch_size,
            mask_threshold=options.mask_threshold,
            progress=report_tiles,
            lesion_halo=options.lesion_halo,
        )
    synthesis.info['LesionSource'] = visit.source
    if options.second_visit:
        synthesis.info['Visits'] = {'First': image.sources[0], 'Second': 'this image'}
    visit.note_way(image, synthesis)
    provenance = layout_derivatives.provenance_of(result_options, run_hash, options.version)
    layout_derivatives.write_synthesis(options.output_dir, image, desc, synthesis, provenance)
    for warning in synthesis.warnings:
        logger.warning('%s: %s', image.name, warning)
    logger.info(
        '%s desc-%s: %d new lesion(s) in %.0f s', image.name, desc, len(synthesis.lesions), time.monotonic() - started
    )


class Visit:
    """A T1w and the images that share its new lesions. What is costly is done once, and when it is first asked for."""

    def __init__(self, images, donor, options):
        self.images, self.donor, self.options = images, donor, options
        self.seed = layout_derivatives.seed_of_path(images[0].t1w_path, options.random_seed)
        self.new_lesions = functools.lru_cache(maxsize=1)(self.new_lesions)  # those of one variant, no more
        self.ways = {}  # from each FLAIR to the T1w, by the name of the image

    @cached_property
    def first(self):
        """The image whose lesions and tissues are those of the visit."""
        return loading.settle(self.owner or self.images[0])

    @property
    def owner(self):
        """The first image that found a lesion mask; None if none did."""
        return next((image for image in self.images if image.lesion_mask_file), None)

    def with_mask(self, image):
        """An image of the visit, with the lesion mask of another one if it has none itself; see `with_mask_of`."""
        return image if image.lesion_mask_file or self.owner is None else with_mask_of(image, self.owner)

    @cached_property
    def anatomy(self):
        """See `synth.look_at`."""
        first, t1w_img = self.first, loading.open_image(self.first.t1w_file)
        tissue_seg_img, source, notes = loading.load_segmentation(first.segmentation, t1w_img)
        for note in notes:
            logger.warning('%s: %s', first.name, note)
        anatomy = images_anatomy.look_at(
            t1w_img,
            self.old_lesions(first),
            loading.open_brain_mask(first),
            self.options.mask_threshold,
            tissue_seg_img,
        )
        if source:
            anatomy.info['WhiteMatterSource'] = source
        return anatomy

    @cached_property
    def atlas(self):
        """See `synth.find_places`."""
        return lesions_synthesis.find_places(self.anatomy, library.load_lesion_library())

    @cached_property
    def mask_img(self):
        """The mask that was given, or another patient's."""
        if self.options.new_mask_file:
            mask_img = loading.open_image(self.options.new_mask_file)
            return placement.beside(mask_img, loading.open_image(self.first.t1w_file), 'mask of new lesions')
        donor = loading.settle(self.donor)
        lesions_img = loading.lesions_of(donor, to_t1w=loading.way_to_t1w(donor)[0])
        return lesions_synthesis.borrow(loading.open_image(donor.t1w_file), lesions_img, self.anatomy)

    @property
    def source(self):
        """Where the lesions come from, in words."""
        if self.options.new_mask_file:
            return f'the mask {self.options.new_mask_file.name}'
        return f'sub-{self.donor.subject}, by deformable registration' if self.donor else 'drawn from a library'

    @cached_property
    def fingerprint(self):
        """What else the result depends on: the bytes of masks that are given, by their hashes."""
        files = [self.options.new_mask_file] if self.options.new_mask_file else []
        files += [self.donor.t1w_file, self.donor.lesion_mask_file] if self.donor else []
        files += [file for file in (self.first.lesion_mask_file, self.first.brain_mask_file) if file]
        return {'masks': [diffusion_models.sha256_of(file) for file in files]}

    def way_to_t1w(self, image):
        """See `inputs.way_to_t1w`."""
        if image.name not in self.ways:
            self.ways[image.name] = loading.way_to_t1w(image)
        return self.ways[image.name]

    def old_lesions(self, image):
        """The real lesions of an image in the world of the T1w; None without a mask."""
        return loading.lesions_of(image, self.options.mask_threshold, self.way_to_t1w(image)[0])

    def seen_from(self, image, variant):
        """Anatomy, new lesions of a variant, and old ones in the world of an image, which may be a FLAIR elsewhere."""
        anatomy, new, old_img = self.anatomy, self.new_lesions(variant), self.old_lesions(image)
        to_t1w, _ = self.way_to_t1w(image)
        if image.tissue_file is None or to_t1w is None:
            return anatomy, new, old_img
        back = np.linalg.inv(to_t1w)
        return (
            replace(anatomy, grid_img=placement.moved(anatomy.grid_img, back, anatomy.grid_img)),
            replace(new, mask_img=placement.moved(new.mask_img, back, anatomy.grid_img)),
            placement.moved(old_img, back, loading.open_image(image.image_file)),
        )

    def note_way(self, image, synthesis):
        """Write how FLAIR and T1w of an image were brought together, and say so in its synthesis."""
        to_t1w, about = self.way_to_t1w(image)
        text = None if to_t1w is None else registration.itk_text(to_t1w)
        layout_derivatives.write_xfm(self.options.output_dir, image, text, about)
        if about:
            synthesis.info['FlairRegistration'] = about
        if to_t1w is not None:
            synthesis.warnings.append(loading.shift_note(about))

    def new_lesions(self, variant):
        """The lesions of one variant, the same for all images of the visit; see `synth.NewLesions`."""
        options, rng = self.options, np.random.default_rng([self.seed, variant])
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


def find_donor(bids_layout, options, derivatives):
    """The T1w with a lesion mask of the participant whose lesions are taken, the first by name.

    Raises
    ------
    UsageError
        If there is none.
    """
    found = pairing.find_inputs(
        bids_layout,
        derivatives,
        participant_labels=[options.mask_from],
        filters=options.filters,
        mask_labels=options.mask_labels,
        mask_desc=options.mask_desc,
    )
    usable = [image for image in found[options.mask_from] if not image.problem]
    if not usable:
        raise errors.UsageError(f'--mask-from: sub-{options.mask_from} has no T1w with a lesion mask')
    return usable[0]


def without_donor(found, subject):
    """The images to work on (dict of subject -> list of layout.Inputs); those of `--mask-from` are to be skipped.

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
