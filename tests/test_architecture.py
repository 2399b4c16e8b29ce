"""The house (design, section 5): who may import whom, and what pure modules must not touch."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'bids_lesionfill'

# Each module may import those named; modules that are not named here are an error: give them a floor first.
MAY_IMPORT = {
    # top
    '__init__': {'fill', 'synth'},
    '__main__': {'cli'},
    'cli': {'participant', 'weights', 'layout'},
    # stories
    'participant': {'fill', 'layout', 'report', 'visits', 'weights'},
    'fill': {'inpaint', 'masks', 'preprocess', 'tissues', 'weights'},
    'visits': {'fill', 'layout', 'synth', 'weights'},
    'synth': {
        *('baselines', 'fill', 'inpaint', 'lesion_masks', 'masks', 'preprocess', 'registration', 'synthesis'),
        *('tissues', 'weights'),
    },
    'train': {'dataset', 'diffusion', 'inpaint', 'layout', 'lpips', 'metrics', 'unet', 'weights'},
    'evaluate': {
        *('baselines', 'dataset', 'evaluation_cases', 'evaluation_page', 'inpaint', 'layout', 'lpips', 'metrics'),
        'weights',
    },
    'readerstudy': {'fill', 'layout', 'metrics', 'readerstudy_cases', 'weights'},
    'readerstudy_cases': {'dataset', 'fill', 'inpaint', 'masks', 'preprocess', 'synth', 'synthesis'},
    # edge
    'layout': set(),
    'report': set(),
    'evaluation_page': {'layout'},
    'lpips': set(),
    'weights': {'inpaint', 'lesion_masks', 'unet'},
    'dataset': {'inpaint', 'masks', 'preprocess', 'synthesis', 'tissues'},
    # pure
    'inpaint': {'baselines', 'diffusion', 'masks'},
    'lesion_masks': {'masks', 'registration', 'tissues'},
    'tissues': {'masks'},
    'registration': set(),
    'baselines': {'masks'},
    'diffusion': set(),
    'masks': set(),
    'metrics': set(),
    'preprocess': set(),
    'evaluation_cases': {'inpaint', 'masks', 'synthesis', 'tissues'},
    'synthesis': {'inpaint', 'masks'},
    'unet': set(),
}
PURE = [
    'inpaint',
    'evaluation_cases',
    'lesion_masks',
    'tissues',
    'registration',
    'baselines',
    'diffusion',
    'masks',
    'metrics',
    'preprocess',
    'synthesis',
    'unet',
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


def imports(module, top_level_only=False):
    """Names imported by a module: (own modules, foreign top-level packages)."""
    tree = ast.parse((PACKAGE / f'{module}.py').read_text())
    own, foreign = set(), set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            foreign.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            foreign |= {alias.name.split('.')[0] for alias in node.names}
    return own, foreign


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob('*.py')} == set(MAY_IMPORT)


@pytest.mark.parametrize('module', MAY_IMPORT)
def test_imports_point_down(module):
    own, _ = imports(module)
    assert own <= MAY_IMPORT[module]


@pytest.mark.parametrize('module', PURE)
def test_pure_modules_have_no_side_effects_at_hand(module):
    _, foreign = imports(module)
    assert not foreign & EFFECTS
    calls = [node for node in ast.walk(ast.parse((PACKAGE / f'{module}.py').read_text())) if isinstance(node, ast.Call)]
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


@pytest.mark.parametrize('module', ['cli', '__init__', '__main__', 'layout', 'weights'])
def test_help_and_version_wait_for_no_heavy_import(module):
    _, foreign = imports(module, top_level_only=True)
    assert not foreign & HEAVY


def test_no_pickle():
    for path in PACKAGE.glob('*.py'):
        text = path.read_text()
        assert 'import pickle' not in text
        assert text.count('torch.load(') == text.count('weights_only=True')


def test_version_is_one_line_and_run_is_short():
    root = PACKAGE.parent
    assert len((root / 'version').read_text().splitlines()) == 1
    assert len((root / 'run.py').read_text().splitlines()) <= 12
