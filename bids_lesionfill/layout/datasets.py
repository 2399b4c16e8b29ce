"""Files of training datasets: healthy brains, patients, lesion masks."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ..modality import T1W
from ..text_files import read_tsv
from . import indexing, naming

logger = logging.getLogger('bids_lesionfill')


def find_training(bids_dir: Path, split: str) -> list[tuple[Path, Path]]:
    """Find the T1w images of a dataset's split with their tissue segmentations.

    Parameters
    ----------
    bids_dir : path
        With `participants.tsv` (column `split`) and a derivative that has `dseg` files.
    split : str
        For example `train`.

    Returns
    -------
    list of (T1w file, dseg file)

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    table = Path(bids_dir) / 'participants.tsv'
    rows = read_tsv(table) if table.is_file() else []
    if not any('split' in row for row in rows):
        columns = ', '.join(rows[0]) if rows else 'it is not there or empty'
        raise FileNotFoundError(f'{table} has no column split (train, validation): {columns}')
    layout = indexing.open_layout(bids_dir, indexing.find_derivatives(bids_dir).values())
    chosen = [row['participant_id'].removeprefix('sub-') for row in rows if row.get('split') == split]
    pairs = []
    for subject in chosen:
        t1w_files = layout.get(subject=subject, suffix=T1W.suffix, extension=naming.NIFTI, scope='raw')
        dseg_files = layout.get(subject=subject, suffix='dseg', extension=naming.NIFTI, scope='derivatives')
        if len(t1w_files) != len(dseg_files):
            raise FileNotFoundError(
                f'sub-{subject} has {len(t1w_files)} T1w and {len(dseg_files)} dseg, expected as many'
            )
        pairs += [(t1w.path, dseg.path) for t1w, dseg in zip(t1w_files, dseg_files)]
    if not pairs:
        raise FileNotFoundError(f'no T1w with dseg for split {split!r} in {bids_dir}; its table names {chosen}')
    return pairs


def find_people(bids_dir: Path) -> dict[str, str]:
    """Map every participant to a person by `rescan_of` in `participants.tsv`: dict of str."""
    rows = read_tsv(Path(bids_dir) / 'participants.tsv')
    return {row['participant_id']: row.get('rescan_of') or row['participant_id'] for row in rows}


def find_lesion_masks(folder: Path) -> list[Path]:
    """Find the lesion masks below a folder, sorted by name, to take shapes from.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    mask_files = sorted(Path(folder).rglob('*label-lesion*_mask.nii.gz'))
    if not mask_files:
        raise FileNotFoundError(f'no lesion masks (*label-lesion*_mask.nii.gz) below {folder}; give --lesion-masks')
    return mask_files


def split_lesion_masks(mask_files: Sequence[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Split masks into those for training and the last fifth, held out for validation."""
    held_out = max(1, len(mask_files) // 5)
    return mask_files[:-held_out], mask_files[-held_out:]


def find_patients(bids_dir: Path, modality: str) -> list[tuple[str, Path, Path, Path]]:
    """Find images of patients with their T1w and lesion mask, to learn synthesis from.

    Parameters
    ----------
    bids_dir : path
    modality : str
        Suffix of the images.

    Returns
    -------
    list of (participant label, image file, T1w file, lesion mask file)

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    layout = indexing.open_layout(bids_dir, indexing.find_derivatives(bids_dir).values())
    found = []
    for t1w in layout.get(suffix=T1W.suffix, extension=naming.NIFTI, scope='raw'):
        where = {key: t1w.get_entities().get(key) for key in ('subject', 'session')}
        where = {key: value for key, value in where.items() if value is not None}
        images = layout.get(**where, suffix=modality, extension=naming.NIFTI, scope='raw')
        mask_files = [
            mask
            for mask in layout.get(**where, suffix='mask', extension=naming.NIFTI, scope='derivatives')
            if mask.get_entities().get('label') in naming.MASK_LABELS
        ]
        if len(images) == len(mask_files) == 1:
            found.append((where['subject'], images[0].path, t1w.path, mask_files[0].path))
        else:
            logger.warning(
                '%s has %d %s and %d lesion masks, expected one of each: left out',
                t1w.filename,
                len(images),
                modality,
                len(mask_files),
            )
    if not found:
        raise FileNotFoundError(f'no {modality} with T1w and lesion mask in {bids_dir}')
    return found
