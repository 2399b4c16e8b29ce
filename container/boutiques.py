"""Descriptor of the app for Boutiques (CBRAIN), made from the table of options, and the bundle for Nipoppy with it.

python container/boutiques.py           (writes container/boutiques.json and container/nipoppy/)
bosh validate container/boutiques.json
nipoppy pipeline validate container/nipoppy
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


def nipoppy_bundle() -> dict[str, dict]:
    """Return the files of the app's bundle for Nipoppy (0.4.8; its data/template_pipeline): dict of name -> content.

    A visit is one run. The lesion masks are in a folder of derivatives that the study names (`LESION_MASKS`): a Nipoppy
    study keeps the results of other pipelines outside of its BIDS folder.
    """
    version = options.version()
    masks = '[[LESION_MASKS]]'
    visit = '[[NIPOPPY_BIDS_PARTICIPANT_ID]]/[[NIPOPPY_BIDS_SESSION_ID]]'
    config = {
        'NAME': 'bids_lesionfill',
        'VERSION': version,
        'VARIABLES': {'LESION_MASKS': 'folder of lesion masks: BIDS derivatives, or the output of LST-AI or SAMSEG'},
        'CONTAINER_INFO': {'FILE': '[[NIPOPPY_DPATH_CONTAINERS]]/[[PIPELINE_NAME]]_[[PIPELINE_VERSION]].sif'},
        'CONTAINER_CONFIG': {'ARGS': ['--cleanenv', '--bind', masks]},
        'STEPS': [
            {
                'INVOCATION_FILE': 'invocation.json',
                'DESCRIPTOR_FILE': 'descriptor.json',
                'TRACKER_CONFIG_FILE': 'tracker.json',
                'HPC_CONFIG_FILE': 'hpc.json',
                'ANALYSIS_LEVEL': 'participant_session',
                'GENERATE_PYBIDS_DATABASE': False,
            }
        ],
        'PIPELINE_TYPE': 'processing',
        'SCHEMA_VERSION': '1.0',
    }
    invocation = {
        'bids_dir': '[[NIPOPPY_DPATH_BIDS]]',
        'output_dir': '[[NIPOPPY_DPATH_PIPELINE_OUTPUT]]',
        'analysis_level': 'participant',
        'participant_label': ['[[NIPOPPY_PARTICIPANT_ID]]'],
        'session_label': ['[[NIPOPPY_SESSION_ID]]'],
        'derivatives': [f'lesions={masks}'],
        'work_dir': '[[NIPOPPY_DPATH_PIPELINE_WORK]]',
        'skip_bids_validation': True,
        'omp_nthreads': 2,
    }
    scan = '[[NIPOPPY_BIDS_PARTICIPANT_ID]]_[[NIPOPPY_BIDS_SESSION_ID]]'
    # The sidecar is written last.
    tracker = {'PATHS': [f'{visit}/anat/{scan}*_desc-filled_T1w.json'], 'PARTICIPANT_SESSION_DIR': visit}
    hpc = {'ACCOUNT': '[[HPC_ACCOUNT_NAME]]', 'TIME': '0:30:00', 'CORES': '2', 'MEMORY': '6G'}  # as docs/slurm_array.sh
    return {
        'config.json': config,
        'descriptor.json': descriptor(),
        'invocation.json': invocation,
        'tracker.json': tracker | {'SCHEMA_VERSION': '1.0'},
        'hpc.json': hpc | {'ARRAY_CONCURRENCY_LIMIT': ''},
    }


if __name__ == '__main__':
    folder = ROOT / 'container'
    made = {f'nipoppy/{name}': content for name, content in nipoppy_bundle().items()}
    for name, content in {'boutiques.json': descriptor(), **made}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
