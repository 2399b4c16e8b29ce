"""What a run did, for a paper: a paragraph of methods, and the works behind it. No files."""

from typing import NamedTuple

from . import inpaint, thickness

# What a model starts from, in words: the base of its form, see `inpaint.Form`.
BASES = {
    'biharmonic': ', starting from biharmonic interpolation',
    'membrane': ', starting from harmonic interpolation',
    'local_white_matter': ', starting from the mean of the white matter around',
    'lesion': ', starting from lesions of even contrast',
}

# Packages whose version is said, and the work that stands for them.
SOFTWARE = {
    'torch': 'Paszke et al., 2019',
    'diffusers': 'von Platen et al., 2022',
    'SimpleITK': 'Lowekamp et al., 2013',
    'deepbet': 'Fisch et al., 2024',
    'antspyx': 'Tustison et al., 2021',
}
# All of the app's own models saw the same people; their cards say how many.
BUNDLED = ('fill-T1w', 'fill-FLAIR', 'synth-T1w', 'synth-FLAIR')
TRAINED_ON = (
    'OASIS-1 (Marcus et al., 2007; tissue labels by Neuromorphometrics, Inc.), of the Ljubljana database (Lesjak et '
    'al., 2018) and of MSLesSeg (Guarnera et al., 2025)'
)
WITH_ANTS = ('pbt', 'ants', 'antspynet')  # engines of thickness that run antspyx

# Tools whose lesion masks or tissue labels are read under names of their own, see `tool_outputs`.
TOOLS = {
    'FastSurfer': 'Henschel et al., 2020',
    'FreeSurfer': 'Fischl, 2012',
    'SynthSeg': 'Billot et al., 2023',
    'DL+DiReCT': 'Rebsamen et al., 2020',
    'SAMSEG': 'Cerri et al., 2021',
    'LST-AI': 'Wiltgen et al., 2024',
}


def methods_text(options, plans, versions, tools=()):
    """A paragraph to paste into a paper.

    Parameters
    ----------
    options : cli.Options
    plans : dict of modality -> plan of its model
    versions : dict of package -> version, of `software_of`
    tools : list of str
        Of `TOOLS`: whose results lie beside the dataset.
    """
    words = synthesis_words if options.mode == 'synth' else filling_words
    sentences = [*words(options, plans), *training_words(options, plans), *tissue_words(tools)]
    return ' '.join(sentences) + thickness.methods_text(options.thickness) + ' ' + software_words(options, versions)


def filling_words(options, plans):
    """How lesions were filled, in sentences."""
    samples = [f'The mean of {options.n_samples} samples was filled in.'] if options.n_samples > 1 else []
    kept = []
    if options.lesion_labels:
        kept.append(f'without the label{plural(options.lesion_labels)} {", ".join(map(str, options.lesion_labels))}')
    if options.min_lesion_volume:
        kept.append(f'smaller than {options.min_lesion_volume:g} mm3')
    return [
        f'Lesions of {" and ".join(options.modalities)} images were filled with bids_lesionfill {options.version}, '
        f'a BIDS App (Gorgolewski et al., 2017), by a pseudo-3D {model_words(options, plans)}.',
        *samples,
        *([f'Lesions {" or ".join(kept)} were left as they were.'] if kept else []),
        growth_words(options),
    ]


def growth_words(options):
    """How far the mask grew, in a sentence."""
    steps = []
    if options.dilate:
        steps.append(f'by {options.dilate} voxel{plural(options.dilate)} within white matter')
    if options.rim_voxels:
        looks = {'T1w': 'dark', 'FLAIR': 'bright'}
        looks = ' or '.join(f'{looks[modality]} ({modality})' for modality in options.modalities)
        more = 'more ' if steps else f'voxel{plural(options.rim_voxels)} '
        steps.append(
            f'by up to {options.rim_voxels} {more}where white matter was as {looks} as the rim of a lesion that the '
            'mask missed'
        )
    if not steps:
        return 'The lesion mask was not grown; voxels outside it were left as they were.'
    return f'The lesion mask was grown {" and ".join(steps)}; voxels outside the grown mask were left as they were.'


def synthesis_words(options, plans):
    """How new lesions were painted, in sentences."""
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
    return [
        f'New lesions were painted into {" and ".join(options.modalities)} images with bids_lesionfill '
        f'{options.version}, a BIDS App (Gorgolewski et al., 2017), by a pseudo-3D {model_words(options, plans)}.',
        where,
        f'Their contrast was {quantile} of that of real lesions of the same size.',
        halo_words(options),
    ]


def halo_words(options):
    """How new lesions end, in a sentence."""
    if options.lesion_halo == 0:
        return 'Voxels outside the new lesions were left as they were.'
    share = 'as much of their contrast as around the real lesions'
    if options.lesion_halo != 'auto':
        share = f'{100 * options.lesion_halo:g} % of their contrast'
    return f'Outside the new lesions {share} was left in the nearest mm of white matter, fading out within 4 mm.'


def model_words(options, plans):
    """The models of a run, what they start from, and how they were trained and sampled."""
    names = '; '.join(f'{options.model_of(modality)}{base_words(plan)}' for modality, plan in plans.items())
    repaint = any(is_unconditional(plan) for plan in plans.values())
    trained = (
        ' trained by v-prediction (Salimans and Ho, 2022) and'
        if all(plan.get('prediction_type') == 'v_prediction' for plan in plans.values())
        else ''
    )
    sampled = 'RePaint (Lugmayr et al., 2022)' if repaint else 'DDIM (Song et al., 2021)'
    asked, n_samples = options.num_inference_steps, options.n_samples
    of_plans = {plan.get('num_inference_steps', 1) for plan in plans.values()}
    steps = sorted({inpaint.choose_steps(asked, of_plan, n_samples) for of_plan in of_plans})
    kind = 'diffusion model' if repaint else 'conditional diffusion model'
    counted = ' or '.join(map(str, steps))
    return f'{kind} (Uhr, 2024; {names}),{trained} sampled by {sampled} in {counted} step{plural(steps[-1])}'


def training_words(options, plans):
    """On whose images the app's own models were trained, in a sentence; none for other models."""
    bundled = [name for modality in plans if (name := options.model_of(modality)) in BUNDLED]
    named = f'model{plural(bundled)} {" and ".join(bundled)}'
    return [f'The {named} had been trained on images of {TRAINED_ON}.'] if bundled else []


def is_unconditional(plan):
    """True if a model knows no mask."""
    return plan.get('form', {}).get('kind') == 'unconditional'


def base_words(plan):
    """What a model starts from."""
    form = plan.get('form', {})
    return BASES.get(form.get('base', 'biharmonic'), '') if form.get('kind') == 'residual' else ''


def plural(number_or_items):
    """The ending of a word for several things."""
    number = number_or_items if isinstance(number_or_items, int) else len(number_or_items)
    return '' if number == 1 else 's'


def tissue_words(tools):
    """Where brain and white matter come from, in sentences."""
    sentences = []
    if tools:
        named = ' and '.join(f'{tool} ({TOOLS[tool]})' for tool in tools)
        sentences.append(f'Lesion masks and tissue labels by {named} were used where they were there.')
    return [
        *sentences,
        'Brain masks were made with deepbet (Fisch et al., 2024) where none was given and images were not '
        'skull-stripped.',
        'Where no segmentation by another tool was given, white matter was found on the T1w by a mixture of three '
        'normal distributions after N4 bias correction (Tustison et al., 2010).',
        'Where the headers of a T1w and a FLAIR did not agree, the FLAIR was registered rigidly by mutual '
        'information (Mattes et al., 2003).',
    ]


def software_of(options):
    """Packages whose version belongs into a paper."""
    with_ants = bool(options.mask_from) or any(engine in WITH_ANTS for engine in options.thickness)
    return [name for name in SOFTWARE if name != 'antspyx' or with_ants]


def software_words(options, versions):
    """The packages in a sentence."""
    named = [f'{name} {versions[name]} ({SOFTWARE[name]})' for name in software_of(options) if name in versions]
    return f'Software: {", ".join(named)}.'


class Reference(NamedTuple):
    """A work, and how the paragraph cites it."""

    cited: str
    kind: str  # of BibTeX
    authors: str
    title: str
    where: str

    @property
    def year(self):
        return self.cited[-4:]


WHERE = {'article': 'journal', 'inproceedings': 'booktitle', 'mastersthesis': 'school', 'misc': 'howpublished'}

REFERENCES = {
    'uhr2024': Reference(
        'Uhr, 2024',
        'mastersthesis',
        'Uhr, V.',
        'Diffusion-Based Filling and Synthesis of Multiple Sclerosis Lesions',
        'University of Bern',
    ),
    'gorgolewski2017': Reference(
        'Gorgolewski et al., 2017',
        'article',
        'Gorgolewski, K. J. and others',
        'BIDS Apps: Improving ease of use, accessibility, and reproducibility of neuroimaging data analysis methods',
        'PLOS Computational Biology 13(3)',
    ),
    'song2021': Reference(
        'Song et al., 2021',
        'inproceedings',
        'Song, J. and Meng, C. and Ermon, S.',
        'Denoising Diffusion Implicit Models',
        'ICLR',
    ),
    'salimans2022': Reference(
        'Salimans and Ho, 2022',
        'inproceedings',
        'Salimans, T. and Ho, J.',
        'Progressive Distillation for Fast Sampling of Diffusion Models',
        'ICLR',
    ),
    'lugmayr2022': Reference(
        'Lugmayr et al., 2022',
        'inproceedings',
        'Lugmayr, A. and others',
        'RePaint: Inpainting Using Denoising Diffusion Probabilistic Models',
        'CVPR',
    ),
    'lesjak2018': Reference(
        'Lesjak et al., 2018',
        'article',
        'Lesjak, Z. and others',
        'A Novel Public MR Image Dataset of Multiple Sclerosis Patients With Lesion Segmentations Based on Multi-rater '
        'Consensus',
        'Neuroinformatics 16(1)',
    ),
    'marcus2007': Reference(
        'Marcus et al., 2007',
        'article',
        'Marcus, D. S. and others',
        'Open Access Series of Imaging Studies (OASIS): Cross-sectional MRI Data in Young, Middle Aged, Nondemented, '
        'and Demented Older Adults',
        'Journal of Cognitive Neuroscience 19(9)',
    ),
    'guarnera2025': Reference(
        'Guarnera et al., 2025',
        'article',
        'Guarnera, F. and others',
        'MSLesSeg: baseline and benchmarking of a new Multiple Sclerosis Lesion Segmentation dataset',
        'Scientific Data 12',
    ),
    'avants2008': Reference(
        'Avants et al., 2008',
        'article',
        'Avants, B. B. and others',
        'Symmetric diffeomorphic image registration with cross-correlation',
        'Medical Image Analysis 12(1)',
    ),
    'fisch2024': Reference(
        'Fisch et al., 2024',
        'article',
        'Fisch, L. and others',
        'deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks',
        'Computers in Biology and Medicine 179',
    ),
    'tustison2010': Reference(
        'Tustison et al., 2010',
        'article',
        'Tustison, N. J. and others',
        'N4ITK: Improved N3 Bias Correction',
        'IEEE Transactions on Medical Imaging 29(6)',
    ),
    'mattes2003': Reference(
        'Mattes et al., 2003',
        'article',
        'Mattes, D. and others',
        'PET-CT image registration in the chest using free-form deformations',
        'IEEE Transactions on Medical Imaging 22(1)',
    ),
    'cerri2021': Reference(
        'Cerri et al., 2021',
        'article',
        'Cerri, S. and others',
        'A contrast-adaptive method for simultaneous whole-brain and lesion segmentation in multiple sclerosis',
        'NeuroImage 225',
    ),
    'wiltgen2024': Reference(
        'Wiltgen et al., 2024',
        'article',
        'Wiltgen, T. and others',
        'LST-AI: A deep learning ensemble for accurate MS lesion segmentation',
        'NeuroImage: Clinical 42',
    ),
    'billot2023': Reference(
        'Billot et al., 2023',
        'article',
        'Billot, B. and others',
        'SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without retraining',
        'Medical Image Analysis 86',
    ),
    'dahnke2013': Reference(
        'Dahnke et al., 2013',
        'article',
        'Dahnke, R. and Yotter, R. A. and Gaser, C.',
        'Cortical thickness and central surface estimation',
        'NeuroImage 65',
    ),
    'das2009': Reference(
        'Das et al., 2009',
        'article',
        'Das, S. R. and others',
        'Registration based cortical thickness measurement',
        'NeuroImage 45(3)',
    ),
    'rebsamen2020': Reference(
        'Rebsamen et al., 2020',
        'article',
        'Rebsamen, M. and others',
        'Direct cortical thickness estimation using deep learning-based anatomy segmentation and cortex parcellation',
        'Human Brain Mapping 41(17)',
    ),
    'fischl2012': Reference('Fischl, 2012', 'article', 'Fischl, B.', 'FreeSurfer', 'NeuroImage 62(2)'),
    'henschel2020': Reference(
        'Henschel et al., 2020',
        'article',
        'Henschel, L. and others',
        'FastSurfer - A fast and accurate deep learning based neuroimaging pipeline',
        'NeuroImage 219',
    ),
    'desikan2006': Reference(
        'Desikan et al., 2006',
        'article',
        'Desikan, R. S. and others',
        'An automated labeling system for subdividing the human cerebral cortex on MRI scans into gyral based regions '
        'of interest',
        'NeuroImage 31(3)',
    ),
    'fonov2011': Reference(
        'Fonov et al., 2011',
        'article',
        'Fonov, V. and others',
        'Unbiased average age-appropriate atlases for pediatric studies',
        'NeuroImage 54(1)',
    ),
    'tustison2021': Reference(
        'Tustison et al., 2021',
        'article',
        'Tustison, N. J. and others',
        'The ANTsX ecosystem for quantitative biological and medical imaging',
        'Scientific Reports 11',
    ),
    'tustison2014': Reference(
        'Tustison et al., 2014',
        'article',
        'Tustison, N. J. and others',
        'Large-scale evaluation of ANTs and FreeSurfer cortical thickness measurements',
        'NeuroImage 99',
    ),
    'paszke2019': Reference(
        'Paszke et al., 2019',
        'inproceedings',
        'Paszke, A. and others',
        'PyTorch: An Imperative Style, High-Performance Deep Learning Library',
        'NeurIPS',
    ),
    'vonplaten2022': Reference(
        'von Platen et al., 2022',
        'misc',
        'von Platen, P. and others',
        'Diffusers: State-of-the-art diffusion models',
        'GitHub, huggingface/diffusers',
    ),
    'lowekamp2013': Reference(
        'Lowekamp et al., 2013',
        'article',
        'Lowekamp, B. C. and others',
        'The Design of SimpleITK',
        'Frontiers in Neuroinformatics 7',
    ),
}


def citation(text):
    """Contents of `logs/CITATION.md` and `.bib`: a paragraph of methods and the works that it cites, no others."""
    cited = {key: reference for key, reference in REFERENCES.items() if reference.cited in text}
    lines = [f'- {r.authors} ({r.year}). {r.title}. {r.where}.' for r in cited.values()]
    entries = [
        f'@{r.kind}{{{key},\n  author = {{{r.authors}}},\n  title = {{{r.title}}},\n  year = {{{r.year}}},\n'
        f'  {WHERE[r.kind]} = {{{r.where}}}\n}}'
        for key, r in cited.items()
    ]
    return {'md': f'{text}\n\n' + '\n'.join(lines) + '\n', 'bib': '\n\n'.join(entries) + '\n'}
