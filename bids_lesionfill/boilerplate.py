"""What a run did, for a paper: a paragraph of methods, and the works behind it. No files."""

from . import thickness

# What a model starts from, in words: the base of its form, see `inpaint.Form`.
BASES = {
    'biharmonic': ', starting from biharmonic interpolation',
    'membrane': ', starting from harmonic interpolation',
    'local_white_matter': ', starting from the mean of the white matter around',
    'lesion': ', starting from lesions of even contrast',
}


def model_words(name, plan):
    """A model and what it starts from."""
    form = plan.get('form', {})
    base = form.get('base', 'biharmonic') if form.get('kind') == 'residual' else None
    return f'{name}{BASES.get(base, "")}'


def methods_text(options, plans):
    """A paragraph to paste into a paper.

    Parameters
    ----------
    options : cli.Options
    plans : dict of modality -> plan of its model
    """
    models = '; '.join(model_words(options.model_of(modality), plan) for modality, plan in plans.items())
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


def citation(options, plans):
    """Contents of `logs/CITATION.md` and `.bib`; see `methods_text`."""
    lines = [f'- {authors} ({year}). {title}. {where}.' for _, authors, title, year, where in REFERENCES.values()]
    entries = [
        f'@{kind}{{{key},\n  author = {{{authors}}},\n  title = {{{title}}},\n  year = {{{year}}},\n'
        f'  note = {{{where}}}\n}}'
        for key, (kind, authors, title, year, where) in REFERENCES.items()
    ]
    return {'md': f'{methods_text(options, plans)}\n\n' + '\n'.join(lines) + '\n', 'bib': '\n\n'.join(entries) + '\n'}
