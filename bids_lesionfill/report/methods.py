"""Methods paragraph of a run for a paper, and the works that it cites. No files."""

from collections.abc import Sequence
from typing import Any

from ..diffusion.models import choose_steps, describe_models
from ..modality import FLAIR, get
from ..segmenters import registry as segmenters
from ..thickness import registry

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

# Tools whose lesion masks or tissue labels are read under names of their own, see `tool_outputs`.
TOOLS = {
    'FastSurfer': 'Henschel et al., 2020',
    'FreeSurfer': 'Fischl, 2012',
    'SynthSeg': 'Billot et al., 2023',
    'DL+DiReCT': 'Rebsamen et al., 2020',
    'SAMSEG': 'Cerri et al., 2021',
    'LST-AI': 'Wiltgen et al., 2024',
}


def methods_text(
    options: Any, plans: dict[str, dict[str, Any]], versions: dict[str, str], tools: Sequence[str] = ()
) -> str:
    """Return a methods paragraph to paste into a paper.

    Parameters
    ----------
    options : cli.Options
    plans : dict of modality -> plan of its model
    versions : dict of package -> version, of `software_of`
    tools : list of str
        Of `TOOLS`: whose results lie beside the dataset.
    """
    words = synthesis_words if options.mode == 'synth' else filling_words
    sentences = [*words(options, plans), *training_words(options, plans), *tissue_words(options, tools)]
    return ' '.join(sentences) + registry.methods_text(options.thickness) + ' ' + software_words(options, versions)


def filling_words(options: Any, plans: dict[str, dict[str, Any]]) -> list[str]:
    """Return sentences that describe how lesions were filled."""
    samples = [f'The mean of {options.n_samples} samples was filled in.'] if options.n_samples > 1 else []
    kept = []
    if options.lesion_labels:
        kept.append(f'without the label{plural(options.lesion_labels)} {", ".join(map(str, options.lesion_labels))}')
    if options.min_lesion_volume:
        kept.append(f'smaller than {options.min_lesion_volume:g} mm3')
    return [
        f'Lesions of {" and ".join(options.modalities)} images were filled with bids_lesionfill {options.version}, '
        f'a BIDS App (Gorgolewski et al., 2017), by {model_words(options, plans)}.',
        *([segmenters.methods_text(options.segmenter)] if options.segmenter else []),
        *samples,
        *([f'Lesions {" or ".join(kept)} were left as they were.'] if kept else []),
        growth_words(options),
    ]


def growth_words(options: Any) -> str:
    """Return how far the mask grew, or what was done with the rims of lesions instead, in a sentence."""
    if options.rims == 'unmixed':
        return (
            'At the rims of lesions, which masks miss, the share of lesion in each voxel was estimated and removed '
            'and fluid was kept; voxels without a share of lesion were left as they were.'
        )
    steps = []
    if options.dilate:
        steps.append(f'by {options.dilate} voxel{plural(options.dilate)} within white matter')
    if options.rim_voxels:
        looks = {1: 'bright', -1: 'dark', None: 'dark or bright'}
        looks = ' or '.join(f'{looks[get(modality).lesion_sign]} ({modality})' for modality in options.modalities)
        more = 'more ' if steps else f'voxel{plural(options.rim_voxels)} '
        steps.append(
            f'by up to {options.rim_voxels} {more}where white matter was as {looks} as the rim of a lesion that the '
            'mask missed'
        )
    if not steps:
        return 'The lesion mask was not grown; voxels outside it were left as they were.'
    return f'The lesion mask was grown {" and ".join(steps)}; voxels outside the grown mask were left as they were.'


def synthesis_words(options: Any, plans: dict[str, dict[str, Any]]) -> list[str]:
    """Return sentences that describe how new lesions were synthesized."""
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
        f'{options.version}, a BIDS App (Gorgolewski et al., 2017), by {model_words(options, plans)}.',
        where,
        f'Their contrast was {quantile} of that of real lesions of the same size.',
        *texture_words(options, plans),
        halo_words(options),
    ]


def texture_words(options: Any, plans: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence that describes the texture of new lesions; none if it is the network's own."""
    asked = options.num_inference_steps
    steps = [choose_steps(asked, plan.get('num_inference_steps', 1)) for plan in plans.values()]
    bases = {plan.get('form', {}).get('base') for plan in plans.values()}
    if options.texture != 'sampled' or set(steps) != {1} or bases != {'lesion'}:
        return []
    return [
        'The noise of the tissue in their place was kept, and patches in proportion to their contrast were added, since '
        'one step gives the mean of lesions.'
    ]


def halo_words(options: Any) -> str:
    """Return a sentence that describes the border of new lesions."""
    if options.lesion_halo == 0:
        return 'Voxels outside the new lesions were left as they were.'
    share = 'as much of their contrast as around the real lesions'
    if options.lesion_halo != 'auto':
        share = f'{100 * options.lesion_halo:g} % of their contrast'
    return f'Outside the new lesions {share} was left in the nearest mm of white matter, fading out within 4 mm.'


def model_words(options: Any, plans: dict[str, dict[str, Any]]) -> str:
    """Return how the fillers of a run work: diffusion models in one phrase, others in the words that they bring."""
    models = {options.model_of(modality): plan for modality, plan in plans.items() if 'methods' not in plan}
    others = dict.fromkeys(plan['methods'] for plan in plans.values() if 'methods' in plan)
    words = [describe_models(models, options.num_inference_steps, options.n_samples)[0]] if models else []
    return '; and by '.join([*words, *others])


def brought(options: Any, plans: dict[str, dict[str, Any]]) -> list:
    """Return the BibTeX entries that parts of other packages bring, for `references.citation`."""
    named = [reference for plan in plans.values() for reference in plan.get('references', ())]
    named += segmenters.SEGMENTERS[options.segmenter].references if options.segmenter else ()
    for name in options.thickness:
        named += registry.make_engine(name).references
    return [reference for reference in named if reference.lstrip().startswith('@')]


def training_words(options: Any, plans: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence on the training images of the app's own models; empty for other models."""
    bundled = list(dict.fromkeys(name for modality in plans if (name := options.model_of(modality)) in BUNDLED))
    named = f'model{plural(bundled)} {" and ".join(bundled)}'
    return [f'The {named} had been trained on images of {TRAINED_ON}.'] if bundled else []


def plural(number_or_items: Sequence[str] | tuple[int, int] | int) -> str:
    """Return the plural ending of a word."""
    number = number_or_items if isinstance(number_or_items, int) else len(number_or_items)
    return '' if number == 1 else 's'


def tissue_words(options: Any, tools: Sequence[str]) -> list[str]:
    """Return sentences on the sources of brain and white-matter masks."""
    sentences = []
    if tools:
        named = ' and '.join(f'{tool} ({TOOLS[tool]})' for tool in tools)
        sentences.append(f'Lesion masks and tissue labels by {named} were used where they were there.')
    others = ' or '.join(name for name in options.modalities if get(name).needs_t1w) or FLAIR.name
    return [
        *sentences,
        'Brain masks were made with deepbet (Fisch et al., 2024) where none was given and images were not '
        'skull-stripped.',
        'Where no segmentation by another tool was given, white matter was found on the T1w by a mixture of three '
        'normal distributions after N4 bias correction (Tustison et al., 2010).',
        f'Where the headers of a T1w and a {others} did not agree, the {others} was registered rigidly by mutual '
        'information (Mattes et al., 2003).',
    ]


def software_of(options: Any) -> list[str]:
    """List the packages to cite with their version in a paper."""
    of_engines = [name for engine in options.thickness for name in registry.ENGINES[engine].packages]
    with_ants = bool(options.mask_from) or 'antspyx' in of_engines
    always = [name for name in SOFTWARE if name != 'antspyx' or with_ants]
    return list(dict.fromkeys([*always, *of_engines]))


def software_words(options: Any, versions: dict[str, str]) -> str:
    """Return a sentence that lists the packages."""
    named = [
        f'{name} {versions[name]}' + (f' ({SOFTWARE[name]})' if name in SOFTWARE else '')
        for name in software_of(options)
        if name in versions
    ]
    return f'Software: {", ".join(named)}.'
