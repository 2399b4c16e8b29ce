"""Content of an output folder for a participant: images, read from their sidecars, and the table of all images.

A run that does some images of a participant tells of the others, too, in its report and in `images.tsv`.
"""

import re
from pathlib import Path

from ..modality import T1W
from . import derivatives, files, inputs, naming
from . import status as layout_status

IMAGE_COLUMNS = {
    'participant_id': {'Description': 'participant'},
    'session_id': {'Description': 'session'},
    'filename': {'Description': 'the image that was worked on, in the raw dataset'},
    'modality': {'Description': 'its suffix'},
    'desc': {'Description': 'desc entity of what was made of it (descriptions.tsv)'},
    'status': {'Description': 'what became of it; as in participants.tsv'},
    'lesions': {'Description': 'number of connected lesions that were filled, or painted'},
    'given_volume_ml': {'Description': 'volume of the given lesion mask, on the grid of the image', 'Units': 'mL'},
    'filled_volume_ml': {'Description': 'volume that was filled: the mask in white matter, grown', 'Units': 'mL'},
    'synthesized_volume_ml': {'Description': 'volume of new lesions, without their halo', 'Units': 'mL'},
    'changed_voxels': {'Description': 'voxels that differ from the input'},
    'warnings': {'Description': 'number of things to look at before the image is used; the report names them'},
    'message': {'Description': 'why, if it was not done'},
}
SIDECAR = re.compile(r'(?P<stem>sub-.+)_desc-(?P<desc>filled|synth\d*)_(?P<modality>[A-Za-z0-9]+)\.json')


def find_images(output_dir: Path, bids_dir: Path, subject: str) -> list[tuple[inputs.Inputs, str]]:
    """Return the images of a participant that are whole in an output folder, with their `desc-`, by name."""
    found = []
    for path in sorted(Path(output_dir, f'sub-{subject}').glob('**/anat/*.json')):
        parts = SIDECAR.fullmatch(path.name)
        if parts is None or not path.with_suffix('.nii.gz').is_file():
            continue
        about = derivatives.read_sidecar(path.with_suffix('.nii.gz'))
        sources = about.get('Sources') or ['']
        if about.get('RunHash') and f'{sources[0]}'.startswith('bids:raw:'):  # masks and tissue classes have no hash
            name = f'{parts["stem"]}_{parts["modality"]}'
            found.append((inputs_of(name, [f'{source}' for source in sources], bids_dir), parts['desc']))
    return found


def inputs_of(name: str, sources: list[str], bids_dir: Path) -> inputs.Inputs:
    """Return the inputs of an image that was done, as far as its sources say (BIDS URIs, its own first)."""
    entities, modality = naming.name_entities(name), naming.suffix_of(name)
    relative_path, *others = (source.removeprefix('bids:raw:') for source in sources)
    names = {path: path.rpartition('/')[2] for path in others}
    masks = [path for path in others if is_lesion_mask(names[path])]
    raw = [path for path in others if path not in masks and f'bids:raw:{path}' in sources]
    t1w = [Path(bids_dir, path) for path in raw if naming.suffix_of(names[path]) == T1W.suffix]
    drawn_on = [Path(bids_dir, path) for path in raw if path not in masks]
    return inputs.Inputs(
        entities['sub'],
        entities.get('ses'),
        name,
        Path(bids_dir, relative_path),
        relative_path,
        lesion_mask_file=Path(masks[0]) if masks else None,
        tissue_file=next(iter(t1w), None) if modality != T1W.suffix else None,
        flair_file=next(iter(drawn_on), None) if modality == T1W.suffix else None,
        sources=tuple(sources),
    )


def is_lesion_mask(filename: str) -> bool:
    """Return True if a source is a lesion mask by name, or SAMSEG's labels, which hold lesions too."""
    kind, desc = naming.suffix_of(filename), naming.name_entities(filename).get('desc')
    is_known = naming.lesion_kind(filename) is not None or filename == 'seg.mgz'
    return is_known or (kind in ('mask', 'roi') and desc != 'brain')


def write_table(output_dir: Path) -> None:
    """Write `images.tsv`, a row for each image of every participant, from what the latest run of each knew."""
    latest = {path.parts[-4]: path for path in layout_status.find_statuses(output_dir)}
    statuses = layout_status.read_statuses([latest[name] for name in sorted(latest)])
    rows = [row for status in statuses for row in status.get('images_done') or []]
    files.write_tsv(Path(output_dir, 'images.tsv'), rows, IMAGE_COLUMNS)
    files.write_json(Path(output_dir, 'images.json'), IMAGE_COLUMNS)
