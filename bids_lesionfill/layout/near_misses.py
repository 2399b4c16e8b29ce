"""Files that look like lesion masks but were not taken, and which name or option would take them."""

from collections.abc import Iterator
from pathlib import Path

from . import errors, indexing, naming

LIKE_MASKS = ('lesion', 'wmh', 'mask', 'roi', 'seg')
NO_LESIONS = ('brain', 'gm', 'wm', 'csf', 'aseg', 'aparc', 'aparcaseg', 'aparcdktaseg', 'synthseg', 'fast')
IMAGES = ('t1w', 't2w', 'pdw', 'flair', 't2star', 't2starw', 'dwi', 'bold')
N_SUBJECTS = 20  # that are searched: files of others are named alike
EXPECTED = 'derivatives/NAME/sub-XX/anat/*_label-lesion_mask.nii.gz'


def describe(
    bids_dir: Path,
    derivatives: dict[str, Path],
    subjects: list[str],
    mask_labels: tuple[str, ...] = naming.MASK_LABELS,
    mask_desc: str | None = None,
) -> str:
    """Return sentences on where masks were looked for, and on files that look like masks of some participants.

    Parameters
    ----------
    bids_dir : Path
    derivatives : dict of name -> path
        Folders that were searched.
    subjects : list of str
        Participants without a mask, without `sub-`.
    mask_labels, mask_desc
        As in `pairing.find_inputs`.
    """
    bids_dir = Path(bids_dir)
    labels = ' or label-'.join(mask_labels)
    where = f'looked for label-{labels}_mask in {", ".join(derivatives)}'
    if not derivatives:
        where = f'no derivatives folder found in {bids_dir}; expected {EXPECTED}'
    seen = {}
    for path, advice in candidates(bids_dir, derivatives, subjects, mask_labels, mask_desc):
        seen.setdefault(advice, []).append(path)
    sentences = [where]
    for advice, paths in seen.items():
        more = f' and {len(paths) - 1} more' if len(paths) > 1 else ''
        sentences.append(f'seen: {relative(paths[0], bids_dir)}{more}: {advice}')
    return '; '.join(sentences)


def candidates(
    bids_dir: Path,
    derivatives: dict[str, Path],
    subjects: list[str],
    mask_labels: tuple[str, ...],
    mask_desc: str | None,
) -> Iterator[tuple[Path, str]]:
    """Yield files that look like lesion masks, each with what would take it."""
    searched = {Path(path).resolve() for path in derivatives.values()}
    others = [path for path in sorted(bids_dir.glob('derivatives/*/')) if path.resolve() not in searched]
    for root in (bids_dir, *derivatives.values(), *(path for path in others if not is_own(path))):
        is_searched = root == bids_dir or Path(root).resolve() in searched
        for subject in subjects[:N_SUBJECTS]:
            for path in sorted(Path(root, f'sub-{subject}').rglob('*.nii*')):
                if looks_like_a_mask(path.name):
                    yield path, advice_on(path.name, Path(root), is_searched, mask_labels, mask_desc)


def is_own(folder: Path) -> bool:
    """Return True if a folder holds derivatives of this app, whose masks are results."""
    try:
        generated_by = indexing.read_description(folder).get('GeneratedBy', [])
    except errors.UsageError:
        return False
    return any(entry.get('Name') == naming.APP_NAME for entry in generated_by)


def looks_like_a_mask(filename: str) -> bool:
    """Return True if the name of a file speaks of a mask or of lesions, and not of the brain or its tissues."""
    entities = naming.name_entities(filename)
    if any(entities.get(key, '').casefold() in NO_LESIONS for key in ('label', 'desc', 'seg')):
        return False
    name = naming.strip_extension(filename).casefold()
    return name.rpartition('_')[2] not in IMAGES and any(word in name for word in LIKE_MASKS)


def advice_on(filename: str, root: Path, is_searched: bool, mask_labels: tuple[str, ...], mask_desc: str | None) -> str:
    """Return which name or option would take a file that looks like a lesion mask."""
    entities, suffix = naming.name_entities(filename), naming.strip_extension(filename).rpartition('_')[2]
    label = entities.get('label', entities.get('desc', entities.get('seg')))
    space = entities.get('space', 'orig').casefold()
    if not is_searched and not (root / 'dataset_description.json').is_file():
        return f'{root} is not searched, since it has no dataset_description.json'
    if not is_searched:
        return f'-d {root} takes its folder'
    if suffix not in naming.MASK_KINDS or label is None:
        return (
            f'its name is not recognized: rename it to sub-XX_label-{mask_labels[0]}_mask.nii.gz, with the ses-, acq- '
            'and run- of its image'
        )
    if naming.lesion_kind(filename, mask_labels) is None:
        return f'--mask-label {label} takes it'
    if mask_desc not in (None, entities.get('desc')):
        return f'--mask-desc {mask_desc} leaves it out'
    if space not in naming.SPACES and space not in naming.NATIVE_SPACES:
        return f'it is in the space of {entities["space"]}, not of the patient'
    return 'its ses-, acq-, ce-, rec- or run- are those of no image, or --bids-filter-file leaves it out'


def relative(path: Path, folder: Path) -> Path:
    """Return a path relative to a folder if it is in it."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path
