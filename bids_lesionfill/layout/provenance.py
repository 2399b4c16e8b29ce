"""Provenance in the form of BIDS extension proposal 28: activities and software in `prov/`, named by sidecars.

A draft: it is in no BIDS release (1.11.2 is the newest that was seen). This follows
`modality-agnostic-files/provenance` of bids-specification, pull request 2099, commit fd17184. Today's validators do not
know `prov/`, so that `.bidsignore` lists it. All is read off the sidecars of results, so that the same results give the
same files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from . import derivatives, files, naming

FOLDER = 'prov'
HERE = f'bids::{FOLDER}#'
UID_DIGITS = 12
COLUMNS = {
    'provenance_id': {'Description': 'prov entity of files in this folder'},
    'description': {'Description': 'what they describe'},
}


def of_result(options: dict[str, Any], run_hash: str, version: str, mode: str, command: str) -> dict[str, Any]:
    """Return the provenance of a result for its sidecar: options, hash of the run, version, and who made it.

    Parameters
    ----------
    options : dict
        All that change the result.
    run_hash : str
        See `derivatives.hash_run`.
    version : str
        Of the app.
    mode : str
        `fill`, `synth` or `copy`.
    command : str
        Command that makes the result.
    """
    return {
        'Options': options,
        'RunHash': run_hash,
        'Version': version,
        'Command': command,
        'GeneratedBy': [f'{HERE}{mode}-{run_hash[:UID_DIGITS]}'],
    }


def write_participant(output_dir: Path, subject: str) -> None:
    """Write activities, software and models behind the results of a participant; nothing if there are none."""
    found = results_of(output_dir, subject)
    activities, software, models = [], {}, {}
    for image, about in found.items():
        maker, model = software_of(about['Version']), model_of(about)
        software[maker['Id']] = maker
        models |= {model['Id']: model} if model else {}
        activities.append(
            {
                'Id': about['GeneratedBy'][0],
                'Label': image,
                'Command': about['Command'],
                'AssociatedWith': [maker['Id']],
                'Used': [*about['Sources'], *([model['Id']] if model else [])],
            }
        )
    stem = Path(output_dir, FOLDER, f'prov-sub{subject}')
    kinds = {
        'act': {'Activities': activities},
        'soft': {'Software': list(software.values())},
        'ent': {'Files': list(models.values())},
    }
    for suffix, content in kinds.items():
        path = stem.with_name(f'{stem.name}_{suffix}.json')
        if next(iter(content.values())):
            write_if_new(path, (json.dumps(content, indent=2) + '\n').encode())
        else:
            path.unlink(missing_ok=True)


def results_of(output_dir: Path, subject: str) -> dict[str, dict[str, Any]]:
    """Return the sidecars of a participant's results by the names of their images; not those of older versions."""
    found = {}
    for path in sorted(Path(output_dir, f'sub-{subject}').glob('**/anat/*.json')):
        about = derivatives.read_sidecar(path.with_suffix('.nii.gz'))
        is_known = {'RunHash', 'Version', 'Command', 'GeneratedBy', 'Sources'} <= set(about)
        if is_known and f'{about["GeneratedBy"][0]}'.startswith(HERE):  # masks of segmenters name programs
            found[path.name.removesuffix('.json')] = about
    return found


def software_of(version: str) -> dict[str, Any]:
    """Return the app as an object of `Software`."""
    about = {'Label': naming.APP_NAME, 'Version': version, **derivatives.code_url()}
    address = about.pop('CodeURL', None)
    uid = hashlib.sha256(version.encode()).hexdigest()[:UID_DIGITS]
    elsewhere = {'AlternativeIdentifier': [address]} if address else {}
    return {'Id': f'{HERE}{naming.APP_NAME}-{uid}', **about, **elsewhere}


def model_of(about: dict[str, Any]) -> dict[str, Any] | None:
    """Return the weights behind a result as an object of `Files`; None for a filler without weights."""
    sha256 = about.get('WeightsSHA256')
    if not sha256:
        return None
    digest = {'Digest': {'SHA-256': sha256}}
    return {'Id': f'{HERE}entity-{sha256[:UID_DIGITS]}', 'Label': f'{about.get("Model")}', **digest}


def write_table(output_dir: Path) -> None:
    """Write `provenance.tsv`, one row per participant with provenance; nothing if there is none."""
    folder = Path(output_dir, FOLDER)
    names = sorted(path.name.partition('_')[0] for path in folder.glob('prov-sub*_act.json'))
    if not names:
        return
    rows = [{'provenance_id': name, 'description': f'results of sub-{name.removeprefix("prov-sub")}'} for name in names]
    files.write_tsv(folder / 'provenance.tsv', rows, COLUMNS)
    files.write_json(folder / 'provenance.json', COLUMNS)


def write_if_new(path: Path, content: bytes) -> None:
    """Write a file unless it is there with this content."""
    if not (path.is_file() and path.read_bytes() == content):
        files.write_bytes(path, content)
