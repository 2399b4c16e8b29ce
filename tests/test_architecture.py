"""The house (design, section 5): who may import whom, and what pure modules must not touch."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'bids_lesionfill'

EMBEDDED = {'thickness', 'thickness.anatomy'}  # what engines need that measure on our segmentation

# Each module may import those named; modules that are not named here are an error: give them a floor first.
MAY_IMPORT = {
    # top
    '__init__': {'fill', 'synth'},
    '__main__': {'cli'},
    'cli': {
        *('config', 'entry', 'group', 'layout', 'participant', 'raw_layout', 'thickness', 'tool_outputs', 'validation'),
        *('weights', 'workflow'),
    },
    'single_file': {'entry', 'fill', 'inputs', 'layout'},
    # stories
    'participant': {
        *('boilerplate', 'fill', 'inputs', 'layout', 'progress', 'raw_layout', 'registration', 'report'),
        *('thickness', 'thickness.measure', 'tool_outputs', 'verdict', 'visits'),
        'weights',
    },
    'group': {'group_page', 'layout', 'reproducibility', 'thickness'},
    'workflow': {'layout', 'participant', 'progress'},
    'inputs': {'fill', 'layout', 'masks', 'preprocess', 'registration', 'segmentations'},
    'fill': {'inpaint', 'masks', 'preprocess', 'tissues', 'verdict', 'weights'},
    'visits': {'fill', 'inputs', 'layout', 'progress', 'registration', 'synth', 'weights'},
    'synth': {
        *('baselines', 'deformable', 'fill', 'inpaint', 'lesion_masks', 'masks', 'preprocess', 'registration'),
        *('synthesis', 'tissues', 'verdict', 'weights'),
    },
    'train': {'dataset', 'diffusion', 'inpaint', 'layout', 'lpips', 'metrics', 'unet', 'weights'},
    'evaluate': {
        *('baselines', 'dataset', 'discriminability', 'evaluation_app', 'evaluation_cases', 'evaluation_page'),
        *('inpaint', 'layout', 'lpips', 'metrics', 'weights'),
    },
    'evaluation_app': {
        *('dataset', 'deformable', 'discriminability', 'evaluation_appeared', 'evaluation_cases'),
        *('evaluation_confluent', 'evaluation_real', 'fill', 'layout', 'masks', 'preprocess'),
        *('tissues', 'weights'),
    },
    'score': set(),
    'score.__main__': {'cli', 'layout', 'score.cases', 'score.outputs', 'score.page', 'score.tables'},
    'score.cases': {'fill', 'inputs', 'layout', 'preprocess', 'tool_outputs'},
    'score.outputs': {'layout'},
    'score.page': {'layout', 'report', 'score.matching', 'score.tables'},
    'score.tables': {'masks', 'metrics', 'score.contrast', 'score.matching'},
    'readerstudy': {'fill', 'layout', 'metrics', 'readerstudy_cases', 'weights'},
    'readerstudy_cases': {'dataset', 'fill', 'masks', 'preprocess', 'synth', 'synthesis'},
    # edge
    'layout': {'tool_outputs'},
    'tool_outputs': set(),
    'validation': {'layout'},
    'config': {'layout'},
    'raw_layout': {'layout'},
    'entry': set(),
    'progress': set(),
    'report': {'layout'},
    'evaluation_page': {'layout'},
    'group_page': {'layout', 'report', 'thickness', 'thickness.anatomy'},
    'thickness.measure': {
        *('fill', 'inputs', 'layout', 'preprocess', 'registration', 'reproducibility', 'thickness', 'tissues'),
    },
    'thickness.pbt': {'thickness', 'thickness.anatomy', 'thickness.cortex'},
    'thickness.ants': {
        *(*EMBEDDED, 'masks', 'progress', 'thickness.cortex', 'thickness.direct', 'thickness.tools'),
    },
    'thickness.direct': {'deformable'},
    'thickness.antspynet': {*EMBEDDED, 'deformable'},
    'thickness.dldirect': {'thickness', 'thickness.tools'},
    'thickness.freesurfer': {'thickness', 'thickness.tools'},
    'thickness.anatomy': {
        *('deformable', 'masks', 'preprocess', 'registration', 'thickness', 'thickness.cortex', 'tissues'),
        'thickness.segmentation',
    },
    'deformable': {'registration'},
    'thickness.tools': {'thickness'},
    'thickness': set(),  # its engines are imported by name
    'lpips': set(),
    'weights': {'inpaint', 'lesion_masks', 'unet'},
    'dataset': {'inpaint', 'masks', 'preprocess', 'randomisation', 'synthesis', 'tissues'},
    'randomisation': {'masks', 'tissues'},
    # pure
    'boilerplate': {'inpaint', 'thickness'},
    'inpaint': {'baselines', 'diffusion', 'masks'},
    'lesion_masks': {'masks', 'registration', 'tissues'},
    'tissues': {'masks', 'mixture'},
    'mixture': set(),
    'segmentations': {'tissues'},
    'registration': set(),
    'baselines': {'masks'},
    'diffusion': set(),
    'masks': set(),
    'metrics': set(),
    'preprocess': set(),
    'reproducibility': {'metrics'},
    'score.contrast': set(),
    'score.matching': {'masks'},
    'thickness.cortex': set(),
    'thickness.segmentation': set(),
    'evaluation_cases': {'inpaint', 'masks', 'synthesis', 'tissues'},
    'evaluation_confluent': {'evaluation_cases', 'masks', 'registration', 'synthesis', 'tissues'},
    'evaluation_real': {'masks', 'tissues'},
    'evaluation_appeared': {'masks'},
    'discriminability': set(),
    'synthesis': {'baselines', 'inpaint', 'masks'},
    'unet': set(),
    'verdict': set(),
}
PURE = [
    'boilerplate',
    'inpaint',
    'evaluation_cases',
    'evaluation_confluent',
    'evaluation_real',
    'evaluation_appeared',
    'discriminability',
    'lesion_masks',
    'mixture',
    'tissues',
    'segmentations',
    'registration',
    'baselines',
    'diffusion',
    'masks',
    'metrics',
    'preprocess',
    'randomisation',
    'reproducibility',
    'score.contrast',
    'score.matching',
    'score.tables',
    'thickness.cortex',
    'thickness.segmentation',
    'synthesis',
    'unet',
    'verdict',
]
EFFECTS = {
    'os',
    'sys',
    'pathlib',
    'shutil',
    'subprocess',
    'logging',
    'argparse',
    'bids',
    'nipype',
    'random',
    'tempfile',
}
HEAVY = {
    'torch',
    'diffusers',
    'bids',
    'nipype',
    'scipy',
    'skimage',
    'sklearn',
    'matplotlib',
    'nibabel',
    'numpy',
    'pandas',
}


def source_of(module):
    """The file of a module (`thickness.pbt`) or package (`thickness`)."""
    path = PACKAGE.joinpath(*module.split('.'))
    return (path / '__init__.py' if path.is_dir() else path.with_suffix('.py')).read_text()


def imports(module, top_level_only=False):
    """Names imported by a module: (own modules, foreign top-level packages)."""
    tree = ast.parse(source_of(module))
    own, foreign = set(), set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= own_modules(module, node)
        elif isinstance(node, ast.ImportFrom):
            foreign.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            foreign |= {alias.name.split('.')[0] for alias in node.names}
    return own, foreign


def own_modules(module, node):
    """Modules of the package that a relative import names; names from a package's `__init__` count as the package."""
    package = module if (PACKAGE / module).is_dir() else module.rpartition('.')[0]
    parents = package.split('.') if package else []
    parents = parents[: len(parents) + 1 - node.level]
    base = '.'.join(parents + ([node.module] if node.module else []))
    found = {f'{base}.{alias.name}'.lstrip('.') for alias in node.names}
    return {name if name in all_modules() else base for name in found}


def all_modules():
    """Names of all modules and packages, dotted."""
    paths = [path.relative_to(PACKAGE) for path in PACKAGE.rglob('*.py')]
    names = ['.'.join(path.with_suffix('').parts) for path in paths]
    return {name if name == '__init__' else name.removesuffix('.__init__') for name in names}


def test_every_module_has_its_place():
    assert all_modules() == set(MAY_IMPORT)


def test_relative_imports_of_a_subpackage_are_understood():
    (node,) = ast.parse('from .. import masks, tissues').body
    assert own_modules('thickness.pbt', node) == {'masks', 'tissues'}
    (node,) = ast.parse('from . import Scan, cortex').body
    assert own_modules('thickness.pbt', node) == {'thickness', 'thickness.cortex'}
    (node,) = ast.parse('from .thickness import measure, REGIONS').body
    assert own_modules('participant', node) == {'thickness', 'thickness.measure'}
    (node,) = ast.parse('from .layout import UsageError').body
    assert own_modules('cli', node) == {'layout'}


@pytest.mark.parametrize('module', MAY_IMPORT)
def test_imports_point_down(module):
    own, _ = imports(module)
    assert own <= MAY_IMPORT[module]


@pytest.mark.parametrize('module', PURE)
def test_pure_modules_have_no_side_effects_at_hand(module):
    _, foreign = imports(module)
    assert not foreign & EFFECTS
    calls = [node for node in ast.walk(ast.parse(source_of(module))) if isinstance(node, ast.Call)]
    names = {getattr(call.func, 'id', getattr(call.func, 'attr', '')) for call in calls}
    assert not names & {
        'open',
        'print',
        'manual_seed_all',
        'write_text',
        'read_text',
        'set_num_threads',
        'save',
        'load',
    }


@pytest.mark.parametrize(
    'module',
    [
        *('cli', '__init__', '__main__', 'config', 'layout', 'raw_layout', 'thickness', 'tool_outputs', 'validation'),
        *('score', 'score.__main__', 'score.cases', 'score.outputs', 'weights'),
    ],
)
def test_help_and_version_wait_for_no_heavy_import(module):
    _, foreign = imports(module, top_level_only=True)
    assert not foreign & HEAVY


def test_version_is_one_line_and_run_is_short():
    root = PACKAGE.parent
    assert len((root / 'version').read_text().splitlines()) == 1
    assert len((root / 'run.py').read_text().splitlines()) <= 12
