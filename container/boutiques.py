"""Descriptor of the app for Boutiques (Nipoppy, CBRAIN), made from the table of options: `boutiques.json`.

python container/boutiques.py           (writes container/boutiques.json)
bosh validate container/boutiques.json
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bids_lesionfill.app import exit_codes, options, values  # noqa: E402
from bids_lesionfill.app.table import Spec, specs_of  # noqa: E402

WHOLE = (values.positive, values.whole_number, int)
PROGRAM = '/opt/bids_lesionfill/run.py'  # in the image; Boutiques starts a shell instead of the entry point
REAL = (values.probability, values.zero_or_more, values.above_zero, float)


def type_of(spec: Spec) -> dict:
    """Return the Boutiques type of an option."""
    if spec.kind in ('switch', 'count'):
        return {'type': 'Flag'}
    if spec.name in ('bids_dir', 'output_dir') or spec.parse is Path:
        return {'type': 'File' if spec.name == 'bids_dir' else 'String'}  # a File must be there before the run
    return {'type': 'Number', 'integer': spec.parse in WHOLE} if spec.parse in (*WHOLE, *REAL) else {'type': 'String'}


def describe(spec: Spec) -> dict:
    """Return an option as an input of Boutiques."""
    entry = {'id': spec.key, 'name': spec.key.replace('_', ' '), 'description': spec.text, **type_of(spec)}
    entry |= {'value-key': f'[{spec.key.upper()}]', 'optional': not spec.is_positional}
    if not spec.is_positional:
        entry['command-line-flag'] = spec.name
    if spec.kind == 'list':
        entry |= {'list': True, 'min-list-entries': 1}
    if spec.choice_names:
        entry['value-choices'] = list(spec.choice_names)
    return entry


def descriptor() -> dict:
    """Return the descriptor; positional arguments come first, as a list of values would take them in."""
    specs = [spec for group in options.GROUPS for spec in specs_of(group).values()]
    places = [spec for spec in specs if spec.is_positional]
    keys = ' '.join(f'[{spec.key.upper()}]' for spec in [*places, *(spec for spec in specs if not spec.is_positional)])
    version = options.version()
    return {
        'name': 'bids_lesionfill',
        'description': 'Fill lesions of multiple sclerosis in MR images with healthy tissue, or synthesize new ones.',
        'tool-version': version,
        'schema-version': '0.5',
        'command-line': f'{PROGRAM} {keys}',
        'container-image': {'type': 'docker', 'image': f'bids_lesionfill:{version}'},
        'inputs': [describe(spec) for spec in specs],
        'output-files': [
            {
                'id': 'outputs',
                'name': 'outputs',
                'description': 'BIDS derivatives with reports',
                'path-template': '[OUTPUT_DIR]',
            }
        ],
        'error-codes': [
            {'code': code, 'description': words} for code, words in exit_codes.MEANINGS.items() if code != exit_codes.OK
        ],
        'tags': {'domain': ['neuroinformatics', 'bids', 'mri', 'multiple sclerosis']},
    }


if __name__ == '__main__':
    file = ROOT / 'container' / 'boutiques.json'
    file.write_text(json.dumps(descriptor(), indent=2) + '\n', encoding='utf-8')
