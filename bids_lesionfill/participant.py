"""The participant level: find images and masks, fill lesions or paint new ones, write derivatives and a report."""

import logging
import time

import nibabel as nib
import numpy as np

from . import fill, inputs, layout, raw_layout, registration, report, thickness, visits, weights

logger = logging.getLogger('bids_lesionfill')

OK, SOME_FAILED, NOTHING_TO_DO = 0, 1, 66
NO_IMAGE = 'no image'
PICTURED_VARIANTS = 3  # of a synthesis; the others are in the tables


def run(options):
    """Do all participants that `options` (cli.Options) name; return the exit code.

    One participant that fails does not stop the others. What is already there, from the same input and options, is
    not done again.
    """
    derivatives, found, donor, run_id = prepare(options)
    return conclude(run_all(found, donor, options, run_id), options, derivatives)


def prepare(options):
    """Find all images and write what describes the dataset.

    Returns
    -------
    derivatives : dict of name -> path
    found : dict of subject -> list of layout.Inputs
    donor : layout.Inputs or None
        Whose lesions are taken (`--mask-from`).
    run_id : str
    """
    derivatives = options.derivatives
    if derivatives is None:
        derivatives = layout.find_derivatives(options.bids_dir, options.output_dir)
    make_engines(options)  # one that is not available stops the run before any work
    bids_layout = layout.open_layout(options.bids_dir, derivatives.values(), options.bids_database_dir)
    found = find_images(bids_layout, options, derivatives)
    donor = visits.find_donor(bids_layout, options, derivatives) if options.mask_from else None
    layout.write_dataset_files(options.output_dir, options.bids_dir, derivatives, options.version, citation(options))
    layout.remove_leftovers(options.output_dir)
    if options.raw_dir is not None:
        raw_layout.write_top(options.raw_dir, options.bids_dir, options.version)
    return derivatives, found, donor, layout.new_run_id()


def run_all(found, donor, options, run_id):
    """Do participants one after the other; dict of subject -> status."""
    usable = {image.modality for images in found.values() for image in images if not image.problem}
    models = {modality: load_model(options, modality) for modality in usable if not options.reports_only}
    engines = make_engines(options)
    statuses, started = {}, time.monotonic()
    for number, (subject, images) in enumerate(found.items(), start=1):
        logger.info('sub-%s (%d of %d%s)', subject, number, len(found), time_left(started, number - 1, len(found)))
        layout.write_config(options.output_dir, subject, run_id, options.config)
        statuses[subject] = run_participant(subject, images, models, engines, donor, run_id, options)
        if statuses[subject] == 'failed' and options.stop_on_first_crash:
            break
    return statuses


def time_left(started, n_done, n_all):
    """How long the rest takes if it takes as long as what is done, in words; empty if nothing is done yet."""
    if not n_done:
        return ''
    minutes = (time.monotonic() - started) / n_done * (n_all - n_done) / 60
    return f', about {minutes:.0f} min left' if minutes >= 1 else ', less than a minute left'


def conclude(statuses, options, derivatives):
    """Log what became of the participants; return the exit code."""
    failed = [f'sub-{subject}' for subject, status in statuses.items() if status == 'failed']
    if failed:
        logger.error('failed: %s; %s says why', ', '.join(failed), options.output_dir / 'participants.tsv')
        return SOME_FAILED
    if set(statuses.values()) <= {layout.NO_MASK, NO_IMAGE} and options.mode == 'synth':
        logger.error('nothing to do: no %s with a T1w in %s', ' or '.join(options.modalities), options.bids_dir)
        return NOTHING_TO_DO
    if set(statuses.values()) <= {layout.NO_MASK, NO_IMAGE}:
        logger.error(
            'nothing to do: no %s with a lesion mask in %s (looked for label-%s_mask in %s)',
            ' or '.join(options.modalities),
            options.bids_dir,
            ' or label-'.join(options.mask_labels),
            ', '.join(derivatives) or 'no derivatives',
        )
        return NOTHING_TO_DO
    return OK


def find_images(bids_layout, options, derivatives):
    """All images to work on, a participant's of one modality after the other: dict of subject -> list of Inputs."""
    found = {}
    for modality in options.modalities:
        of_modality = layout.find_inputs(
            bids_layout,
            derivatives,
            modality,
            options.participant_labels,
            options.session_labels,
            options.filters,
            options.mask_labels,
            options.mask_desc,
            needs_mask=options.mode == 'fill',
        )
        for subject, images in of_modality.items():
            found.setdefault(subject, []).extend(images)
    return found


def load_model(options, modality):
    """The model on the device that was asked for; a device that is not there is a matter of usage."""
    try:
        return weights.load_model(options.model_of(modality), fill.choose_device(options.device))
    except ValueError as error:
        raise layout.UsageError(str(error)) from None


def run_participant(subject, images, models, engines, donor, run_id, options):
    """Do all images of a participant, write its report and status; return the status. Nothing is raised."""
    if options.mode == 'synth':
        results = visits.run(images, models, donor, run_id, options)
    else:
        results = [(image, 'filled', run_image(image, models, run_id, options)) for image in images]
        results = [
            (image, desc, measure_thickness(image, result, engines, run_id, options)) for image, desc, result in results
        ]
    try:
        status = finish(subject, results, run_id, options)
        if options.raw_dir is not None and status != 'failed':
            of_raw = (options.raw_dir, options.bids_dir, options.output_dir, subject, images, options.session_labels)
            raw_layout.write_participant(*of_raw)
        return status
    except Exception as error:
        message = layout.note_crash(error, 'report', subject, run_id, options.output_dir)
        status = {'status': 'failed', 'images': 0, 'message': message}
        try:
            layout.write_status(options.output_dir, subject, run_id, status)
        except OSError as failure:  # the disk is full
            logger.error('sub-%s: its status cannot be written: %s', subject, failure)
        return 'failed'


def run_image(image, models, run_id, options):
    """Fill one image unless it is done; return what became of it as a dict with `status` and `message`."""
    if image.problem:
        status = layout.NO_MASK if image.problem == layout.NO_MASK else 'failed'
        logger.log(logging.ERROR if status == 'failed' else logging.WARNING, '%s: %s', image.name, image.problem)
        return {'status': status, 'message': image.problem}
    if options.reports_only:
        done = bool(layout.read_sidecar(layout.output_files(options.output_dir, image)['filled']))
        return {'status': 'filled'} if done else {'status': 'failed', 'message': 'not filled yet'}
    try:
        fill_image(image, models[image.modality], options)
    except Exception as error:
        return {
            'status': 'failed',
            'message': layout.note_crash(error, image.name, image.subject, run_id, options.output_dir),
        }
    return {'status': 'filled'}


def fill_image(image, model, options):
    """Fill one image and write its derivatives, unless they are there from the same input and options."""
    image = inputs.settle(image)
    layout.check_files(image)
    result_options = options.of_result(image.modality)
    run_hash = layout.hash_run(image, result_options, model.sha256, options.version)
    if layout.is_finished(options.output_dir, image, run_hash, options.n_samples):
        logger.info('%s: already done', image.name)
        return
    started = time.monotonic()
    loaded = inputs.load(image, options.mask_threshold, options.lesion_labels, options.min_lesion_volume)
    filling = fill.fill(
        loaded.image_img,
        loaded.lesion_mask_img,
        tissue_img=loaded.tissue_img,
        model=model,
        brain_mask_img=loaded.brain_mask_img,
        tissue_seg_img=loaded.tissue_seg_img,
        kept_mask_img=loaded.kept_mask_img,
        dilate=options.dilate,
        rim_voxels=options.rim_voxels,
        num_inference_steps=options.num_inference_steps,
        n_samples=options.n_samples,
        device=options.device,
        seed=layout.seed_of(image, options.random_seed),
        batch_size=options.batch_size,
        mask_threshold=options.mask_threshold,
    )
    filling.info.update(loaded.info)
    filling.warnings.extend(loaded.warnings)
    to_t1w = loaded.flair_to_t1w
    text = None if to_t1w is None else registration.itk_text(to_t1w)
    layout.write_xfm(options.output_dir, image, text, loaded.info.get('FlairRegistration'))
    provenance = layout.provenance_of(result_options, run_hash, options.version)
    layout.write_filling(options.output_dir, image, filling, provenance)
    for warning in filling.warnings:
        logger.warning('%s: %s', image.name, warning)
    logger.info('%s: %d lesion(s) filled in %.0f s', image.name, len(filling.lesions), time.monotonic() - started)


def make_engines(options):
    """The thickness engines that were asked for, all of them available; none for a run that writes reports only."""
    results = (options.derivatives or {}) | options.thickness_results
    settings = thickness.Settings(results, options.allow_download, options.work_dir)
    return {} if options.reports_only else thickness.make_engines(options.thickness, settings)


def measure_thickness(image, result, engines, run_id, options):
    """Measure an image that was filled, if it is a T1w; return what became of it, as `run_image` does."""
    if not engines or result['status'] != 'filled' or image.modality != 'T1w':
        return result
    from .thickness import measure

    try:
        measure.measure_image(
            image,
            engines,
            options.output_dir,
            seed=layout.seed_of(image, options.random_seed) % 2**32,
            version=options.version,
            noise=options.thickness_noise,
            mask_threshold=options.mask_threshold,
        )
    except Exception as error:
        message = layout.note_crash(error, f'{image.name}_thickness', image.subject, run_id, options.output_dir)
        return {'status': 'failed', 'message': message, 'is_filled': True}
    return result


def finish(subject, results, run_id, options):
    """Write report and status of a participant; return the status."""
    pages, lesions, volumes_ml = [], 0, {'filled': 0.0, 'synthesized': 0.0}
    for image, desc, result in results:
        page = {'name': image.name if len(options.variants) == 1 else f'{image.name}, desc-{desc}', **result}
        if result['status'] in volumes_ml or result.get('is_filled'):
            pictured = desc in ('filled', *options.variants[:PICTURED_VARIANTS])
            page |= describe_image(image, desc, options.output_dir, pictured)
            page |= result if result['status'] == 'failed' else {}
            lesions += len(page['lesions'])
            volumes_ml['filled' if desc == 'filled' else 'synthesized'] += (
                sum(row['volume_mm3'] for row in page['lesions']) / 1000
            )
            stem = image.name if desc == 'filled' else f'{image.name}_{desc}'
            for name, png in report.png_files(page['figures']).items():
                layout.write_bytes(options.output_dir / f'sub-{subject}' / 'figures' / f'{stem}_{name}.png', png)
        pages.append(page)
    statuses = [page['status'] for page in pages]
    done = ('failed', 'filled', 'synthesized', 'copied')
    nothing = layout.NO_MASK if results and options.mode == 'fill' else NO_IMAGE
    status = next((s for s in done if s in statuses), nothing)
    message = status_message(pages, set(options.modalities) - {image.modality for image, _, _ in results})
    report.write_participant(
        options.output_dir / f'sub-{subject}.html',
        {
            'label': f'sub-{subject}',
            'version': options.version,
            'command': options.command,
            'status': status,
            'message': message,
            'images': pages,
            'methods': methods_text(options),
        },
    )
    layout.write_status(
        options.output_dir,
        subject,
        run_id,
        {
            'status': status,
            'images': sum(s in done[1:] for s in statuses),
            'lesions': lesions,
            'volume_filled_ml': round(volumes_ml['filled'], 3),
            'volume_synthesized_ml': round(volumes_ml['synthesized'], 3),
            'message': message or None,
        },
    )
    logger.info('sub-%s: %s; report %s', subject, status, options.output_dir / f'sub-{subject}.html')
    return status


def status_message(pages, missing):
    """What went wrong with a participant's images, by name if there are several, and which modalities it lacks."""
    sentences = [
        f'{page["name"]}: {page["message"]}' if len(pages) > 1 else page['message']
        for page in pages
        if page.get('message')
    ]
    return '; '.join(sentences + [f'no {modality} image' for modality in sorted(missing)])


def describe_image(image, desc, output_dir, pictured=True):
    """What the report says of a filled image, or one with new lesions, read back from the files that were written."""
    is_fill = desc == 'filled'
    files = layout.output_files(output_dir, image) if is_fill else layout.synth_files(output_dir, image, desc)
    after_file, mask_file = (files[name] for name in (('filled', 'used_mask') if is_fill else ('synth', 'new_mask')))
    info = layout.read_sidecar(after_file)
    lesions = layout.read_tsv(files['lesions'])
    figures = draw_figures(image.image_file, after_file, mask_file, lesions) if pictured else []
    if is_fill:
        figures += draw_overlay(image, mask_file, output_dir)
    unchanged = is_fill and not lesions
    from .thickness import measure

    return {
        'output': after_file.name,
        'thickness': measure.describe_thickness(image, output_dir) if is_fill and image.modality == 'T1w' else [],
        'status': 'copied' if unchanged else 'filled' if is_fill else 'synthesized',
        'message': ' '.join(info.get('Warnings', [])) if unchanged else '',
        'lesions': lesions,
        'figures': figures,
        'summary': fill_summary(image, lesions, info) if is_fill else synth_summary(image, lesions, info),
        'warnings': info.get('Warnings', []),
        'provenance': info,
    }


def draw_figures(before_file, after_file, mask_file, lesions):
    """Pictures of an image before and after; see `report.fill_figures`."""
    paths = {'before': before_file, 'after': after_file, 'mask': mask_file}
    canonical = {name: nib.as_closest_canonical(nib.load(path)) for name, path in paths.items()}
    affine, volumes = canonical['before'].affine, {name: fill.one_volume(img) for name, img in canonical.items()}
    to_voxel = np.linalg.inv(affine)
    located = [
        row
        | {
            'label': int(row['label']),
            'centre_voxel': tuple(
                int(v) for v in np.rint(nib.affines.apply_affine(to_voxel, [row['x_mm'], row['y_mm'], row['z_mm']]))
            ),
        }
        for row in lesions
    ]
    return report.fill_figures(
        volumes['before'], volumes['mask'] > 0, volumes['after'], nib.affines.voxel_sizes(affine), located
    )


def draw_overlay(image, mask_file, output_dir):
    """Where FLAIR and T1w had to be registered, pictures of the image and of the other one laid over it; else none."""
    xfm_file, other_file = layout.xfm_file(output_dir, image), image.tissue_file or image.flair_file
    if not xfm_file.is_file() or other_file is None:
        return []
    to_t1w = registration.from_itk_text(xfm_file.read_text())
    to_image = np.linalg.inv(to_t1w) if image.tissue_file else to_t1w
    image_img, mask_img = (nib.as_closest_canonical(nib.load(path)) for path in (image.image_file, mask_file))
    return report.overlay_figures(
        fill.one_volume(image_img),
        inputs.laid_over(nib.load(other_file), to_image, image_img),
        fill.one_volume(mask_img) > 0,
        nib.affines.voxel_sizes(image_img.affine),
        (image.modality, 'T1w' if image.tissue_file else 'FLAIR'),
    )


def fill_summary(image, lesions, info):
    """What a report says of a filling at a glance."""
    return {
        'Modality': image.modality,
        'Lesions filled': len(lesions),
        'Volume filled (ml)': volume_ml(lesions),
        'Voxels changed': info.get('VoxelsChanged', 0),
        **({'Voxels of lesions kept': info['LesionVoxelsKept']} if info.get('LesionVoxelsKept') else {}),
        'Lesion mask': image.lesion_mask_file.name if image.lesion_mask_file else 'n/a',
        **tissue_summary(image, info),
        'Mask grown by (voxels)': info.get('Dilation', 'n/a'),
        'Then into missed rims by at most (voxels)': info.get('RimVoxels', 'n/a'),
        **sampling_summary(info),
    }


def synth_summary(image, lesions, info):
    """What a report says of a synthesis at a glance."""
    return {
        'Modality': image.modality,
        'New lesions': len(lesions),
        'Volume of new lesions (ml)': volume_ml(lesions),
        'Voxels of old lesions': info.get('LesionVoxelsOld', 0),
        'Voxels changed': info.get('VoxelsChanged', 0),
        'Lesions come from': info.get('LesionSource', 'n/a'),
        'Contrast is that of': info.get('ContrastReference', 'n/a'),
        **tissue_summary(image, info),
        **sampling_summary(info),
    }


def volume_ml(lesions):
    return round(sum(row['volume_mm3'] for row in lesions) / 1000, 2)


def tissue_summary(image, info):
    return {
        'Brain mask': info.get('BrainMaskSource', 'n/a'),
        'White matter': info.get('WhiteMatterSource', 'n/a'),
        'White matter found in': image.t1w_file.name,
    }


def sampling_summary(info):
    return {
        'Model': info.get('Model', 'n/a'),
        'Steps': info.get('NumInferenceSteps', 'n/a'),
        'Seed': info.get('RandomSeed', 'n/a'),
        'Device': info.get('Device', 'n/a'),
    }


# What a model starts from, in words: the base of its form, see `inpaint.Form`.
BASES = {
    'biharmonic': ', starting from biharmonic interpolation',
    'membrane': ', starting from harmonic interpolation',
    'local_white_matter': ', starting from the mean of the white matter around',
    'lesion': ', starting from lesions of even contrast',
}


def model_words(name_or_path):
    """A model and what it starts from."""
    form = weights.read_plan(name_or_path).get('form', {})
    base = form.get('base', 'biharmonic') if form.get('kind') == 'residual' else None
    return f'{name_or_path}{BASES.get(base, "")}'


def methods_text(options):
    """A paragraph to paste into a paper."""
    models = '; '.join(model_words(options.model_of(modality)) for modality in options.modalities)
    found = (
        'Brain masks were made with deepbet (Fisch et al., 2024) where images were not skull-stripped; where no '
        'segmentation by another tool was given, white matter was found on the T1w by a mixture of three normal '
        'distributions after N4 bias correction (Tustison et al., 2010).'
    )
    if options.mode == 'synth':
        return (
            f'New lesions were painted into {" and ".join(options.modalities)} images with bids_lesionfill '
            f'{options.version} by a pseudo-3D diffusion model (Uhr, 2024; {models}). {lesion_words(options)} Voxels '
            f'outside the new lesions were left as they were. {found}'
        )
    rims = {'T1w': 'dark', 'FLAIR': 'bright'}
    rims = ' or '.join(f'{rims[modality]} ({modality})' for modality in options.modalities)
    grown = f'grown by {options.dilate} voxel(s) within white matter'
    if options.rim_voxels:
        grown += (
            f' and by up to {options.rim_voxels} more where white matter was as {rims} as the rim of a lesion that the '
            'mask missed'
        )
    return (
        f'Lesions of {" and ".join(options.modalities)} images were filled with bids_lesionfill {options.version} '
        f'by a pseudo-3D conditional diffusion model (Uhr, 2024; {models}). '
        f'The lesion mask was {grown}; voxels outside the grown mask were left as they were. '
        f'{found}' + thickness.methods_text(options.thickness)
    )


def lesion_words(options):
    """Where new lesions come from and how bright they are, in sentences."""
    if options.new_mask_file:
        where = 'Their masks were given.'
    elif options.mask_from:
        where = (
            f'Their masks are those of sub-{options.mask_from}, by deformable registration (SyN; Avants et al., 2008).'
        )
    else:
        where = (
            'Their masks were drawn: shapes and places of the lesions of 30 patients (Lesjak et al., 2018), deformed, '
            'in white matter and apart from old lesions.'
        )
    quantile = 'a random quantile' if options.lesion_intensity == 'auto' else f'quantile {options.lesion_intensity:g}'
    return f'{where} Their contrast was {quantile} of that of real lesions of the same size.'


REFERENCES = {
    'uhr2024': (
        'thesis',
        'Uhr, V.',
        'Diffusion-Based Filling and Synthesis of Multiple Sclerosis Lesions',
        2024,
        'Master thesis, University of Bern',
    ),
    'song2021': (
        'inproceedings',
        'Song, J. and Meng, C. and Ermon, S.',
        'Denoising Diffusion Implicit Models',
        2021,
        'ICLR',
    ),
    'salimans2022': (
        'inproceedings',
        'Salimans, T. and Ho, J.',
        'Progressive Distillation for Fast Sampling of Diffusion Models',
        2022,
        'ICLR',
    ),
    'tustison2010': (
        'article',
        'Tustison, N. J. and others',
        'N4ITK: Improved N3 Bias Correction',
        2010,
        'IEEE Transactions on Medical Imaging 29(6)',
    ),
    'lesjak2018': (
        'article',
        'Lesjak, Z. and others',
        'A Novel Public MR Image Dataset of Multiple Sclerosis Patients With Lesion Segmentations Based on Multi-rater '
        'Consensus',
        2018,
        'Neuroinformatics 16(1)',
    ),
    'avants2008': (
        'article',
        'Avants, B. B. and others',
        'Symmetric diffeomorphic image registration with cross-correlation',
        2008,
        'Medical Image Analysis 12(1)',
    ),
    'fisch2024': (
        'article',
        'Fisch, L. and others',
        'deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks',
        2024,
        'Computers in Biology and Medicine 179',
    ),
}


def write_citation(options):
    """Write `logs/CITATION.md` and `.bib`."""
    for name, text in citation(options).items():
        layout.write_bytes(options.output_dir / 'logs' / f'CITATION.{name}', text.encode())


def citation(options):
    """Contents of `logs/CITATION.md` and `.bib`."""
    lines = [f'- {authors} ({year}). {title}. {where}.' for _, authors, title, year, where in REFERENCES.values()]
    entries = [
        f'@{kind}{{{key},\n  author = {{{authors}}},\n  title = {{{title}}},\n  year = {{{year}}},\n'
        f'  note = {{{where}}}\n}}'
        for key, (kind, authors, title, year, where) in REFERENCES.items()
    ]
    return {'md': f'{methods_text(options)}\n\n' + '\n'.join(lines) + '\n', 'bib': '\n\n'.join(entries) + '\n'}
