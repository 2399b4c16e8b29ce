"""The only module that knows BIDS file names: what is found in a dataset, and what is written where."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import sidecars, text_files
from . import files as layout_files
from . import indexing, naming

if TYPE_CHECKING:
    import nibabel as nib

    from .inputs import Inputs

logger = logging.getLogger('bids_lesionfill')

BIDS_VERSION = '1.10.0'
CITATION_FILE = Path(__file__).resolve().parents[2] / 'CITATION.cff'

# Lines have no trailing slash: with one, the validator does not match nested folders.
BIDSIGNORE = (
    '*.html\nfigures\nlog\n*_morph.tsv\n*_morph.json\n*_qc.tsv\n*_qc.json\ngroup_*\n*_xfm.txt\n*_xfm.json\n'
    '*desc-qc_ratings*\nimages.*\n'
)
DESCRIPTIONS = {
    'desc-filled': 'lesions filled with healthy tissue by a diffusion model',
    'desc-filledsd': 'standard deviation over several fillings of the same lesions',
    'desc-used': 'voxels that were filled: the given lesions that touch white matter and their rims, without fluid; '
    'outside it the image is as before',
    'desc-synth': 'new lesions painted by a diffusion model; of a mask: all lesions, old and new. A number after synth '
    'tells variants apart',
    'desc-synthnew': 'the new lesions alone',
    'desc-synthchanged': 'the new lesions and the halo around them: what differs from the original image',
    'desc-original': 'measured on the original image',
    'desc-rerun': 'measured on the original image once more, with another seed',
}


def write_xfm(output_dir: Path, inputs: Inputs, text: str | None, about: dict[str, Any]) -> None:
    """Write the transform from FLAIR to T1w, or see that none of an earlier run is left (`text` is None)."""
    path = naming.xfm_file(output_dir, inputs)
    if text is None:
        path.unlink(missing_ok=True)
        naming.sidecar(path).unlink(missing_ok=True)
        return
    layout_files.write_bytes(path, text.encode())
    layout_files.write_json(
        naming.sidecar(path),
        {'Description': f'{naming.xfm_source(inputs)} to T1w (ITK)', 'Sources': list(inputs.sources), **about},
    )


LESION_COLUMNS = {
    'label': {'Description': 'number of the lesion, by falling volume'},
    'volume_mm3': {'Description': 'volume of the lesion in the mask that was used', 'Units': 'mm^3'},
    'given_volume_mm3': {
        'Description': 'its volume in the mask that was given, of filled lesions alone; what was changed around it '
        'counts to the nearest lesion',
        'Units': 'mm^3',
    },
    'x_mm': {'Description': 'centre of mass, to the right, in the world space of the image', 'Units': 'mm'},
    'y_mm': {'Description': 'centre of mass, to the front, in the world space of the image', 'Units': 'mm'},
    'z_mm': {'Description': 'centre of mass, upwards, in the world space of the image', 'Units': 'mm'},
    'mean_before': {'Description': 'mean intensity of the lesion in the original image', 'Units': 'arbitrary'},
    'mean_after': {'Description': 'mean intensity of the lesion in the filled image', 'Units': 'arbitrary'},
    'mean_surrounding': {
        'Description': 'mean intensity of white matter within three voxels of the lesion, original image',
        'Units': 'arbitrary',
    },
    'mean_touching': {
        'Description': 'mean intensity of white matter that touches the mask that was used, original image',
        'Units': 'arbitrary',
    },
    'mean_beyond': {
        'Description': 'mean intensity of white matter two to four voxels from the mask that was used, original image',
        'Units': 'arbitrary',
    },
    'faint_percent': {
        'Description': 'share of the voxels of the given mask (of new lesions: of their mask) that are hardly darker '
        '(FLAIR: brighter) than the white matter within three voxels',
        'Units': '%',
    },
    'grain': {
        'Description': 'standard deviation of what local smoothing leaves of the filled tissue away from fluid, '
        'relative to untouched white matter of the image (1: alike); of filled lesions of 0.5 ml and more'
    },
    'glow_percent': {
        'Description': 'share of the filled voxels away from fluid that are brighter than 99.5 % of the white matter '
        'around (0.5: alike); of filled lesions of 0.5 ml and more',
        'Units': '%',
    },
    'wall_steepness': {
        'Description': 'median step over the walls of fluid at the filling, relative to walls elsewhere (1: alike); of '
        'filled lesions of 0.5 ml and more, T1w alone'
    },
}
FILLING_COLUMNS = {'given_volume_mm3', 'grain', 'glow_percent', 'wall_steepness'}  # not of new lesions
PLACE_COLUMN = {
    'place': {
        'Description': 'where a lesion that was drawn lies',
        'Levels': {
            'infratentorial': 'mostly in brain stem or cerebellum',
            'periventricular': 'touches the lateral ventricles (3 mm)',
            'juxtacortical': 'touches the cortex',
            'deep': 'none of these',
        },
    }
}


def provenance_of(options: dict[str, Any], run_hash: str, version: str) -> dict[str, Any]:
    """Return the provenance of a result for its sidecar: options, hash of the run, app and version."""
    return {'Options': options, 'RunHash': run_hash, 'GeneratedBy': [{'Name': naming.APP_NAME, 'Version': version}]}


def write_filling(output_dir: Path, inputs: Inputs, filling: Any, provenance: dict[str, Any]) -> None:
    """Write the derivatives of an image; the sidecar of the filled image comes last and says that all is there.

    Parameters
    ----------
    filling : fill.Filling
    provenance : dict
        Goes into the sidecar of the filled image, with `filling.record`.
    """
    files = naming.output_files(output_dir, inputs, n_samples=2 if filling.sd_img is not None else 1)
    naming.sidecar(files['filled']).unlink(
        missing_ok=True
    )  # of an earlier run with other options: from here on it is undone
    if filling.sd_img is None:
        for path in (sd := naming.output_files(output_dir, inputs, n_samples=2)['sd'], naming.sidecar(sd)):
            path.unlink(missing_ok=True)
    record = sidecars.spell(filling.record)
    skull_stripped = record.get('SkullStripped', False)
    common = {'Sources': list(inputs.sources), 'SpatialReference': inputs.sources[0]}
    layout_files.write_image(files['used_mask'], filling.used_mask_img)
    layout_files.write_json(
        naming.sidecar(files['used_mask']),
        {
            'Type': 'Lesion',
            'Description': DESCRIPTIONS['desc-used'],
            **common,
            **{key: record[key] for key in ('Dilation', 'RimVoxels') if key in record},
        },
    )
    if filling.sd_img is not None:
        layout_files.write_image(files['sd'], filling.sd_img)
        layout_files.write_json(
            naming.sidecar(files['sd']),
            {'Description': DESCRIPTIONS['desc-filledsd'], **common, 'SkullStripped': skull_stripped},
        )
    description = DESCRIPTIONS['desc-filled'] if filling.lesions else 'copy of the input: there was no lesion to fill'
    about = {'Description': description, **common, 'SkullStripped': skull_stripped}
    write_result(files['filled'], filling.filled_img, files['lesions'], filling, LESION_COLUMNS, about, provenance)


def write_result(
    image_file: Path,
    img: nib.Nifti1Image,
    table_file: Path,
    result: Any,
    columns: dict[str, Any],
    about: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Write the table of lesions and the image of a `fill.Filling` or `synth.Synthesis`; its sidecar comes last."""
    layout_files.write_tsv(table_file, result.lesions, columns)
    layout_files.write_json(naming.sidecar(table_file), columns)
    layout_files.write_image(image_file, img)
    layout_files.write_json(
        naming.sidecar(image_file),
        {**about, **sidecars.spell(result.record), 'Warnings': list(result.warnings), **provenance},
    )


def write_synthesis(output_dir: Path, inputs: Inputs, desc: str, synthesis: Any, provenance: dict[str, Any]) -> None:
    """Write the derivatives of an image with new lesions; the sidecar of the image comes last.

    Parameters
    ----------
    desc : str
        `synth`, or `synth1` and so on.
    synthesis : synth.Synthesis
    provenance : dict
        Goes into the sidecar of the image, with `synthesis.record`.
    """
    files = naming.synth_files(output_dir, inputs, desc)
    naming.sidecar(files['synth']).unlink(
        missing_ok=True
    )  # of an earlier run with other options: from here on it is undone
    common = {'Sources': list(inputs.sources), 'SpatialReference': inputs.sources[0]}
    masks = {
        'mask': (synthesis.mask_img, 'desc-synth'),
        'new_mask': (synthesis.new_mask_img, 'desc-synthnew'),
        'changed_mask': (synthesis.changed_mask_img, 'desc-synthchanged'),
    }
    for name, (img, description) in masks.items():
        layout_files.write_image(files[name], img)
        description = {'Type': 'Lesion', 'Description': DESCRIPTIONS[description]}
        layout_files.write_json(naming.sidecar(files[name]), description | common)
    about = {'Description': DESCRIPTIONS['desc-synth'], **common}
    columns: dict[str, Any] = {name: text for name, text in LESION_COLUMNS.items() if name not in FILLING_COLUMNS}
    columns |= PLACE_COLUMN if any('place' in row for row in synthesis.lesions) else {}
    write_result(files['synth'], synthesis.synth_img, files['lesions'], synthesis, columns, about, provenance)


def write_segmentation(mask_file: Path, mask_img: nib.Nifti1Image, about: dict[str, Any]) -> None:
    """Write a lesion mask of a segmenter after its sidecar, so that an existing mask always has one."""
    layout_files.write_json(naming.sidecar(mask_file), {'Type': 'Lesion', **about})
    layout_files.write_image(mask_file, mask_img)


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read the sidecar of an output; an empty dict (output incomplete) if it is missing or damaged."""
    try:
        return text_files.read_json(naming.sidecar(path))
    except FileNotFoundError:
        return {}
    except text_files.UnreadableError as error:
        logger.warning('%s; what it describes counts as not done', error)
        return {}


def is_finished(output_dir: Path, inputs: Inputs, run_hash: str, n_samples: int) -> bool:
    """Return True if all outputs of an image exist, from the same input, options and weights."""
    files = naming.output_files(output_dir, inputs, n_samples)
    wanted = [path for name, path in files.items() if name != 'sd']  # an empty mask has no deviation map
    return are_written(files['filled'], wanted, run_hash)


def are_written(main_file: Path, files: Iterable[Path], run_hash: str) -> bool:
    """Return True if files and sidecars exist, and the main file's sidecar has the hash of this run."""
    finished = read_sidecar(main_file).get('RunHash') == run_hash
    return finished and all(path.is_file() and naming.sidecar(path).is_file() for path in files)


def hash_run(inputs: Inputs, options: dict[str, Any], weights_sha256: str, version: str) -> str:
    """Return the SHA-256 of all that a result depends on: inputs, options, weights and version."""
    digest = hashlib.sha256(
        json.dumps([options, weights_sha256, version, inputs.relative_path], sort_keys=True).encode()
    )
    for path in input_files(inputs):
        digest.update(path.read_bytes() if path else b'none')
    return digest.hexdigest()


def input_files(inputs: Inputs) -> list[Path | None]:
    """List the files that a result depends on: paths, with None for a missing one of the first four."""
    segmentation = inputs.segmentation.files if inputs.segmentation else ()
    optional = [path for path in (inputs.flair_file, *segmentation, inputs.fluid_file) if path]
    return [inputs.image_file, inputs.lesion_mask_file, inputs.tissue_file, inputs.brain_mask_file, *optional]


def check_files(inputs: Inputs) -> None:
    """Raise ValueError if a file of an image cannot be read; see `check_content`."""
    for path in filter(None, input_files(inputs)):
        layout_files.check_content(path)


def seed_of(inputs: Inputs, random_seed: int) -> int:
    """Return the seed of an image, which depends only on its BIDS path and `--random-seed`."""
    return seed_of_path(inputs.relative_path, random_seed)


def seed_of_path(relative_path: str, random_seed: int) -> int:
    """Return the seed of a path in the dataset; see `seed_of`."""
    return int(hashlib.sha256(f'{random_seed}:{relative_path}'.encode()).hexdigest()[:15], 16)


def write_description(
    output_dir: Path, bids_dir: str | Path, derivatives: dict[str, Path], version: str, source_images: Any = None
) -> None:
    """Write `dataset_description.json` of the derivatives: by whom, and from which dataset (see `ownership`)."""
    raw = Path(bids_dir, 'dataset_description.json')
    raw = indexing.read_description(bids_dir, is_derivative=False) if raw.is_file() else {}
    description = {
        'Name': f'{naming.APP_NAME}: lesions filled or synthesized' + (f' in {raw["Name"]}' if raw.get('Name') else ''),
        'BIDSVersion': BIDS_VERSION,
        'DatasetType': 'derivative',
        'GeneratedBy': [{'Name': naming.APP_NAME, 'Version': version, **code_url(), **container()}],
        'HowToAcknowledge': 'Please cite the works in logs/CITATION.md.',
        'DatasetLinks': {name: Path(path).resolve().as_uri() for name, path in derivatives.items()}
        | {'raw': Path(bids_dir).resolve().as_uri()},
        **({'SourceImages': source_images} if source_images else {}),
    }
    if raw.get('License'):
        description['License'] = raw['License']
    if raw.get('DatasetDOI'):
        description['SourceDatasets'] = [{'DOI': raw['DatasetDOI']}]
    layout_files.write_json(Path(output_dir, 'dataset_description.json'), description)


def write_dataset_files(
    output_dir: Path,
    bids_dir: str | Path,
    derivatives: dict[str, Path],
    version: str,
    citation: dict[str, str],
    source_images: Any = None,
    descriptions: dict[str, str] | None = None,
) -> None:
    """Write what describes the derivative dataset as a whole. Every run writes the same.

    `descriptions` are added to `DESCRIPTIONS`.
    """
    output_dir = Path(output_dir)
    write_description(output_dir, bids_dir, derivatives, version, source_images)
    layout_files.write_bytes(output_dir / '.bidsignore', BIDSIGNORE.encode())
    layout_files.write_bytes(
        output_dir / 'README.md',
        (
            f'# {naming.APP_NAME} {version}\n\n`desc-filled`: MR images whose multiple-sclerosis lesions were '
            'filled with '
            'healthy tissue; outside the `desc-used` mask every voxel is that of the input. `desc-synth`: images with '
            'new lesions; outside the `desc-synthchanged` mask every voxel is that of the input, and the `desc-synth` '
            'mask holds all lesions, old and new.\nOpen `sub-*.html` to see it. '
            '`logs/CITATION.md` says how to cite; `participants.tsv` says what was done for whom, `images.tsv` of '
            'each image.\n'
        ).encode(),
    )
    layout_files.write_tsv(
        output_dir / 'descriptions.tsv',
        [{'desc_id': name, 'description': text} for name, text in (DESCRIPTIONS | (descriptions or {})).items()],
        ['desc_id', 'description'],
    )
    layout_files.write_json(
        output_dir / 'descriptions.json',
        {'desc_id': {'Description': 'value of the desc entity'}, 'description': {'Description': 'what it stands for'}},
    )
    layout_files.write_tsv(
        output_dir / 'dseg.tsv',
        [
            {'index': 1, 'name': 'Cerebrospinal fluid', 'abbreviation': 'CSF'},
            {'index': 2, 'name': 'Grey matter', 'abbreviation': 'GM'},
            {'index': 3, 'name': 'White matter', 'abbreviation': 'WM'},
        ],
        ['index', 'name', 'abbreviation'],
    )
    for name, text in citation.items():
        layout_files.write_bytes(output_dir / 'logs' / f'CITATION.{name}', text.encode())


def code_url(citation_file: Path = CITATION_FILE) -> dict[str, str]:
    """Return the address of the code (`CodeURL`), if it is set in CITATION.cff beside the package; else nothing."""
    text = text_files.read_text(citation_file) if citation_file.is_file() else ''
    address = re.search(r'^repository-code: *(\S+)', text, re.MULTILINE)
    return {'CodeURL': address[1]} if address else {}


def container() -> dict[str, dict[str, str]]:
    """Return the type and tag of the container that the app runs in (set in the image), if any."""
    for kind, variable in (
        ('docker', 'BIDS_LESIONFILL_DOCKER_TAG'),
        ('singularity', 'BIDS_LESIONFILL_SINGULARITY_URL'),
    ):
        if os.environ.get(variable):
            return {'Container': {'Type': kind, 'Tag': os.environ[variable]}}
    return {}
