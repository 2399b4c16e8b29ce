"""Tables of thickness and of the group level: write, read, remove."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import text_files
from ..modality import get
from ..text_files import read_tsv
from . import derivatives, naming
from . import files as layout_files

if TYPE_CHECKING:
    import nibabel as nib

    from .inputs import Inputs

logger = logging.getLogger('bids_lesionfill')

LESION_STATES = {
    'lesion': {
        'Description': 'what filling did to the cortex of the region; n/a in the original image, and where the engine '
        'has no regions as voxels',
        'Levels': {
            'replaced': 'all of it was filled',
            'reduced': 'part of it was filled',
            'adjacent': 'filled voxels touch it',
            'none': 'neither',
        },
    },
    'lesion_mm3': {'Description': 'filled volume in the cortex of the region', 'Units': 'mm^3'},
    'lesion_beside_mm3': {
        'Description': 'volume of filled voxels outside the region that share a face with its cortex',
        'Units': 'mm^3',
    },
}
MORPH_COLUMNS = {
    'engine': {'Description': 'what measured it'},
    'index': {'Description': 'FreeSurfer number of the region; n/a for a hemisphere'},
    'name': {'Description': 'region of the Desikan-Killiany atlas, or MeanThickness of a hemisphere'},
    'hemisphere': {'Description': 'side', 'Levels': {'L': 'left', 'R': 'right'}},
    'thickness_mm': {'Description': 'mean cortical thickness', 'Units': 'mm'},
    'n_voxels': {'Description': 'voxels (vertices, for surfaces) that were averaged; 0 where the engine does not say'},
    **LESION_STATES,
}
REGION_LESION_COLUMNS = {
    'index': {'Description': 'FreeSurfer number of the region; n/a for a lobe or hemisphere'},
    'level': {'Description': 'row of', 'Levels': {'region': 'one of 68', 'lobe': 'one of 12', 'hemisphere': 'all'}},
    'name': {'Description': 'region of the Desikan-Killiany atlas; ..._lobe; ..._cortex of a hemisphere'},
    'hemisphere': MORPH_COLUMNS['hemisphere'],
    'lobe': {'Description': 'lobe of the region, as FreeSurfer has them (lobesStrict)'},
    'region_mm3': {'Description': 'cortex of the region in the filled image, filled voxels included', 'Units': 'mm^3'},
    **LESION_STATES,
}


def write_thickness(
    path: Path, engine: str, rows: list[dict[str, Any]], info: dict[str, Any], sources: Sequence[str]
) -> None:
    """Write an engine's rows to a thickness table, alongside other engines', and `info` to its sidecar.

    The sidecar is written last: it says, by `Engines`, which rows are whole.
    """
    about, kept = drop_thickness(path, engine)
    layout_files.write_tsv(path, kept + rows, MORPH_COLUMNS)
    description = {'Description': 'cortical thickness', 'Sources': list(sources), **MORPH_COLUMNS}
    layout_files.write_json(naming.sidecar(path), about | description | {'Engines': about['Engines'] | {engine: info}})


def whole_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read the complete rows of a thickness table, and the engines in its sidecar."""
    engines = derivatives.read_sidecar(path).get('Engines')
    engines = engines if isinstance(engines, dict) else {}
    try:
        rows = read_tsv(path) if path.is_file() else []
    except text_files.UnreadableError as error:
        logger.warning('%s; the file is ignored', error)
        rows = []
    rows = [row for row in rows if isinstance(engines.get(row.get('engine')), dict)]
    if not all(isinstance(row.get('thickness_mm'), float | None) and isinstance(row.get('name'), str) for row in rows):
        logger.warning('%s has values that are not numbers (saved by a spreadsheet?): the file is ignored', path)
        rows = []
    return rows, engines


def drop_thickness(path: Path, engine: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Remove an engine from a table's sidecar; return the sidecar and the other engines' rows."""
    kept = [row for row in read_tsv(path) if row['engine'] != engine] if path.is_file() else []
    kept = [row | {name: int(row[name]) for name in ('index', 'n_voxels') if row[name] is not None} for row in kept]
    about = derivatives.read_sidecar(path)
    about['Engines'] = {name: value for name, value in about.get('Engines', {}).items() if name != engine}
    layout_files.write_json(naming.sidecar(path), about)
    return about, kept


def remove_thickness(output_dir: Path, inputs: Inputs) -> None:
    """Remove what was measured on a filled T1w that is about to be filled anew."""
    if not get(inputs.modality).needs_t1w:
        files = naming.thickness_files(output_dir, inputs)
        for path in (files['morph_filled'], files['dseg_filled'], files['lesions_filled']):
            naming.sidecar(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def write_dseg(path: Path, seg_img: nib.Nifti1Image, sources: Sequence[str], source: str) -> None:
    """Write tissue classes, in the common labels of BIDS."""
    layout_files.write_image(path, seg_img)
    labels = 'tissue classes (dseg.tsv: common image-derived labels of BIDS)'
    layout_files.write_json(
        naming.sidecar(path), {'Description': f'{labels}, {source}', 'Sources': list(sources)}
    )


def write_region_lesions(path: Path, rows: list[dict[str, Any]], sources: Sequence[str], source: str) -> None:
    """Write the filled volume in and beside each region and lobe."""
    layout_files.write_tsv(path, rows, REGION_LESION_COLUMNS)
    about = {'Description': f'filled lesions in and beside regions of the cortex, {source}', 'Sources': list(sources)}
    layout_files.write_json(naming.sidecar(path), about | REGION_LESION_COLUMNS)


def thickness_done(path: Path, engine: str) -> dict[str, Any]:
    """Return an engine's entry in a thickness table's sidecar; empty if it has none or no table."""
    return derivatives.read_sidecar(path).get('Engines', {}).get(engine, {}) if path.is_file() else {}


def read_thickness(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Read all thickness tables below folders, of this and of other runs.

    What an engine measured on a scan comes from one folder: the first that has both the original and the filled image,
    else the first that has any.

    Returns
    -------
    list of dict
        `participant` and `session` (with prefix; session is None without), `scan`, `desc`, `engine`,
        `thickness_mm` (dict of lh_MeanThickness, lh_bankssts, ... -> mm or None) and `about`, the engine's entry in the
        sidecar.
    """
    found = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        for key, entries in thickness_in(folder).items():
            found.setdefault(key, {})[folder] = entries
    chosen, passed_over = [], {}
    for (scan, engine), places in found.items():
        whole = [folder for folder, entries in places.items() if {'original', 'filled'} <= set(entries)]
        used = (whole or list(places))[0]
        chosen += places[used].values()
        for unused in set(places) - {used}:
            passed_over.setdefault((engine, used, unused), []).append(scan)
    for (engine, used, unused), scans in passed_over.items():
        words = '%d scan(s) measured by %s are in two folders, such as %s: those in %s count, not those in %s'
        logger.warning(words, len(scans), engine, scans[0], used, unused)
    return chosen


def thickness_in(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Read thickness tables below a folder: dict of (scan, engine) -> dict of desc -> dict."""
    found = {}
    for path in sorted(Path(folder).glob('sub-*/**/anat/*_seg-DK_desc-*_morph.tsv')):
        entities = naming.name_entities(path.name.removesuffix('.tsv'))
        scan = path.name.partition('_seg-DK')[0]
        rows, engines = whole_rows(path)  # others are half written, or not by this app
        for row in rows:
            entry = found.setdefault((scan, row['engine']), {}).setdefault(
                entities['desc'],
                {
                    'participant': f'sub-{entities["sub"]}',
                    'session': f'ses-{entities["ses"]}' if 'ses' in entities else None,
                    'scan': scan,
                    'desc': entities['desc'],
                    'engine': row['engine'],
                    'thickness_mm': {},
                    'about': engines[row['engine']],
                    'file': path,
                },
            )
            if entry['file'] == path:
                entry['thickness_mm'][row['name']] = row['thickness_mm']
    return found


PHENOTYPE_COLUMNS = {
    'participant_id': {'Description': 'participant'},
    'session_id': {'Description': 'session'},
    'scan': {'Description': 'what the names of the files of the image begin with'},
    'engine': {'Description': 'what measured the thickness'},
    'original_mm': {'Description': 'global mean thickness (mean of both hemispheres), original image', 'Units': 'mm'},
    'filled_mm': {'Description': 'the same, filled image', 'Units': 'mm'},
    'rerun_mm': {'Description': 'the same, original image once more with another seed', 'Units': 'mm'},
    'error_global_percent': {
        'Description': 'error of the global mean, filled against original; n/a where nothing was filled',
        'Units': '%',
    },
    'error_roi_percent': {
        'Description': 'mean error of the 68 regions, filled against original; n/a where nothing was filled',
        'Units': '%',
    },
    'change_global_percent': {
        'Description': 'change of the global mean, 100 (filled - original) / original; n/a where nothing was filled',
        'Units': '%',
    },
    'noise_global_percent': {'Description': 'error of the global mean, rerun against original', 'Units': '%'},
    'noise_roi_percent': {'Description': 'mean error of the 68 regions, rerun against original', 'Units': '%'},
    'juxtacortical_voxels': {'Description': 'voxels of the lesion mask, dilated by one, that count by --juxta-rule'},
    'juxtacortical': {'Description': 'whether those are at least --juxta-min-voxels'},
}


def with_interval(name: str, description: str) -> dict[str, dict[str, str]]:
    """Return the columns of a mean over participants, in percent, and of the ends of its interval."""
    low, high = 'lower end of its 95 % bootstrap interval over participants', 'upper end of it; n/a for fewer than four'
    words = {'percent': description, 'low': low, 'high': high}
    return {f'{name}_{end}': {'Description': text, 'Units': '%'} for end, text in words.items()}


ERROR_COLUMNS = {
    'engine': {'Description': 'what measured the thickness'},
    'participants': {'Description': 'all, or without those with juxtacortical lesions (--juxta-rule)'},
    'n': {'Description': 'participants of whom something was filled'},
    'n_scans': {'Description': 'their scans'},
    **with_interval(
        'error_global', 'mean over participants of 100 |m1 - m2| / (m1 + m2), global mean, original against filled'
    ),
    'noise_global_percent': {'Description': 'the same error between two runs on the original image', 'Units': '%'},
    **with_interval('change_global', 'mean over participants of 100 (filled - original) / original, global mean'),
    **with_interval('error_roi', 'as error_global_percent, averaged over the 68 regions'),
    'noise_roi_percent': {'Description': 'as noise_global_percent, averaged over the 68 regions', 'Units': '%'},
    'n_noise': {'Description': 'participants with a rerun, also those of whom nothing was filled'},
}
REGION_ERROR_COLUMNS = {
    **{name: ERROR_COLUMNS[name] for name in ('engine', 'participants')},
    'region': {'Description': 'region of the Desikan-Killiany atlas'},
    'n': ERROR_COLUMNS['n'],
    **with_interval('error', 'as error_global_percent, of one region'),
    'noise_percent': {'Description': 'as noise_global_percent, of one region', 'Units': '%'},
}


def write_group(
    output_dir: Path,
    scan_rows: list[dict[str, Any]],
    error_rows: list[dict[str, Any]],
    region_rows: list[dict[str, Any]],
) -> None:
    """Write the tables of the group level."""
    output_dir = Path(output_dir)
    layout_files.write_tsv(output_dir / 'phenotype' / 'thickness.tsv', scan_rows, PHENOTYPE_COLUMNS)
    layout_files.write_json(output_dir / 'phenotype' / 'thickness.json', PHENOTYPE_COLUMNS)
    layout_files.write_tsv(output_dir / 'group_reproducibility.tsv', error_rows, ERROR_COLUMNS)
    layout_files.write_json(output_dir / 'group_reproducibility.json', ERROR_COLUMNS | REGION_ERROR_COLUMNS)
    layout_files.write_tsv(output_dir / 'group_reproducibility_roi.tsv', region_rows, REGION_ERROR_COLUMNS)
