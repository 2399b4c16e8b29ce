"""The house (docs/design.md): which package may import which, what pure packages must not touch, lengths."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'bids_lesionfill'

# Each package may import those named, and itself. `app` may import all but the research tools; nothing imports `app`.
GROUND = {'modality', 'plugins', 'sidecars', 'statistics', 'text_files'}
RESEARCH = {*GROUND, 'layout', 'lesions', 'diffusion', 'images'}
MAY_IMPORT = {
    **{module: set() for module in GROUND},
    'modality': {'plugins'},
    'images': set(),
    'layout': GROUND,
    'diffusion': {*GROUND, 'images'},
    'lesions': {*GROUND, 'diffusion', 'images'},
    'thickness': {*GROUND, 'images'},
    'segmenters': GROUND,
    'report': {*GROUND, 'layout', 'lesions', 'thickness', 'segmenters', 'images', 'diffusion'},
    'train': RESEARCH,
    'evaluate': {*RESEARCH, 'train', 'report'},
    'readerstudy': RESEARCH,
    'score': {*RESEARCH, 'report'},
    'app': {*RESEARCH, 'interface', 'report', 'thickness', 'segmenters'},
    'interface': {*GROUND, 'layout', 'lesions', 'diffusion', 'images'},
    '__init__': {'interface'},
    '__main__': {'app'},
}
PURE = {'modality', 'statistics', 'images', 'diffusion', 'lesions', 'thickness'}
NOT_PURE = {
    'diffusion/models.py',
    'diffusion/registry.py',
    'lesions/library.py',
    'thickness/engines',
    'thickness/registry.py',
    'thickness/engine.py',
}
NOT_PURE |= {
    'diffusion/lpips.py',
    'images/brain_extraction.py',
    'images/syn.py',
    'thickness/anatomy.py',
}  # files of weights; ANTs' environment; caches
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
CALLS = {'open', 'print', 'manual_seed_all', 'write_text', 'read_text', 'set_num_threads', 'save', 'load'}
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
# What `--help`, `--version` and a usage error import before anything heavy may be.
LIGHT = [
    *('__init__.py', '__main__.py', 'app/cli.py', 'app/config.py', 'app/exit_codes.py', 'app/options.py'),
    *('app/parser.py', 'app/options_page.py', 'app/log.py', 'app/table.py', 'app/validation.py', 'app/values.py'),
    'app/single_file.py',
    *('diffusion/models.py', 'thickness/registry.py', 'thickness/engine.py'),
    *('diffusion/registry.py', 'diffusion/filler.py', 'modality.py', 'plugins.py', 'sidecars.py'),
    'layout',
    'segmenters',
]

MAX_LINES, MAX_BODY_LINES, MAX_ARGUMENTS = 500, 60, 7  # of a file, a function, a function
# Who may exceed a limit, and why. A new name here needs a better reason than length.
LONG_FILES = {'app/options.py': 'one table: all options, each declared once'}
LONG_FUNCTIONS = {
    'evaluate/cli.py:parse_options': 'a list of options',
    'score/__main__.py:build_parser': 'a list of options',
    'layout/pairing.py:pair': 'choices that depend on each other, in one order; one result of fifteen fields',
    'train/loop.py:train': 'one loop, and the state that it saves and resumes; in one place, as in EDM',
}
MANY_ARGUMENTS = {
    **dict.fromkeys(
        ['interface.py:fill_lesions', 'interface.py:synthesize_lesions'],
        'the Python interface: two images, and options by keyword',
    ),
    **dict.fromkeys(
        ['diffusion/process.py:diffusion_loss', 'diffusion/process.py:sample_repaint'],
        'the quantities of a loss or sampler, as its paper names them',
    ),
    'diffusion/tiles.py:sample_volume': 'the tiles of a volume, and how they are sampled',
    'diffusion/inpaint.py:fill_volume': 'a volume, its masks, a network, and how it is sampled, by keyword',
    **dict.fromkeys(
        ['evaluate/cases.py:draw_cases', 'evaluate/cases.py:patient_case', 'images/masks.py:sample_training_mask'],
        'arrays of a brain, a generator, and what to draw',
    ),
    'lesions/sampling.py:draw_lesion_mask': 'an atlas, a brain, a generator, and what to draw, by keyword',
    'layout/pairing.py:find_inputs': 'a dataset, and filters by keyword',
    'lesions/tables.py:describe_lesions': 'arrays of one image',
    'lesions/unmixing.py:unmix_box': 'arrays of one image',
    **dict.fromkeys(
        ['readerstudy/cases.py:draw_case', 'readerstudy/cases.py:replace_lesion'],
        'images of a visit, a model, and how it is sampled',
    ),
    **dict.fromkeys(
        ['report/pictures.py:draw_three', 'report/pictures.py:draw_panels'],
        'a picture: what is shown and how it looks, by keyword',
    ),
    'thickness/engines/direct.py:estimate': 'the parameters of DiReCT, as ANTs names them',
    'train/loop.py:train': 'data, a plan, and resources by keyword',
}


def modules():
    """Return all modules as paths relative to the package."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob('*.py'))


def package_of(module):
    """Return the first part of a module's path: its package, or its own name on the ground floor."""
    return module.partition('/')[0].removesuffix('.py')


def imports(module, top_level_only=False):
    """Return the names that a module imports: (own packages, foreign top-level packages).

    What is imported for types alone counts among the own packages, but brings no foreign one.
    """
    tree = ast.parse((PACKAGE / module).read_text(encoding='utf-8'))
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING']
    unread = {id(node) for block in for_types for node in ast.walk(block)}
    own, foreign = set(), set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= own_packages(module, node)
        elif id(node) in unread:
            continue
        elif isinstance(node, ast.ImportFrom):
            foreign.add(node.module.split('.')[0])
        elif isinstance(node, ast.Import):
            foreign |= {alias.name.split('.')[0] for alias in node.names}
    return own, foreign


def own_packages(module, node):
    """Return the packages that a relative import names, without the module's own."""
    parents = module.split('/')[:-1]
    if node.level > len(parents) + 1:
        raise ValueError(f'{module} imports from outside the package: {ast.unparse(node)}')
    base = parents[: len(parents) + 1 - node.level] + (node.module.split('.') if node.module else [])
    found = {base[0]} if base else {alias.name for alias in node.names}
    return found - {package_of(module)}


def is_in(module, paths):
    return any(module == path or module.startswith(f'{path}/') for path in paths)


def test_every_package_has_its_place():
    assert {package_of(module) for module in modules()} <= set(MAY_IMPORT)


def test_relative_imports_are_understood():
    (node,) = ast.parse('from ..images import masks, tissues').body
    assert own_packages('lesions/fill.py', node) == {'images'}
    (node,) = ast.parse('from .. import modality').body
    assert own_packages('lesions/fill.py', node) == {'modality'}
    (node,) = ast.parse('from ...images import masks').body
    assert own_packages('thickness/engines/ants.py', node) == {'images'}
    (node,) = ast.parse('from . import tables').body
    assert own_packages('lesions/fill.py', node) == set()
    (node,) = ast.parse('from .lesions.fill import fill_lesions').body
    assert own_packages('__init__.py', node) == {'lesions'}


@pytest.mark.parametrize('package', sorted(MAY_IMPORT))
def test_imports_of_a_package_point_down(package):
    own = {module: imports(module)[0] for module in modules() if package_of(module) == package}
    breaches = {module: names - MAY_IMPORT[package] for module, names in own.items() if names - MAY_IMPORT[package]}
    assert not breaches


def test_pure_packages_have_no_side_effects_at_hand():
    pure = [module for module in modules() if package_of(module) in PURE and not is_in(module, NOT_PURE)]
    assert len(pure) > 20
    for module in pure:
        assert not imports(module)[1] & EFFECTS, module
        tree = ast.parse((PACKAGE / module).read_text(encoding='utf-8'))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not {getattr(call, 'id', getattr(call, 'attr', '')) for call in calls} & CALLS, module


def test_help_and_version_wait_for_no_heavy_import():
    light = [module for module in modules() if is_in(module, LIGHT)]
    assert len(light) > 20
    assert not {module: found for module in light if (found := imports(module, top_level_only=True)[1] & HEAVY)}


def test_version_is_one_line_and_run_is_short():
    root = PACKAGE.parent
    assert len((root / 'version').read_text().splitlines()) == 1
    assert len((root / 'run.py').read_text().splitlines()) <= 12


def sizes():
    """Return the lines of each module, and the lines of the body and the arguments of each function."""
    lines, bodies, arguments = {}, {}, {}
    for module in modules():
        text = (PACKAGE / module).read_text(encoding='utf-8')
        lines[module] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f'{module}:{node.name}'
                bodies[name] = max(bodies.get(name, 0), body_lines(node))
                arguments[name] = max(arguments.get(name, 0), n_arguments(node))
    return lines, bodies, arguments


def body_lines(function):
    """Return the number of lines of the body of a function, without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def n_arguments(function):
    """Return the number of arguments of a function, without `self` or `cls`."""
    args = function.args
    found = (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg)
    names = [each.arg for each in found if each]
    return len(names) - (names[:1] in (['self'], ['cls']))


def test_sizes_of_a_function_are_understood():
    (function,) = ast.parse('def f(self, a, *b, c=1, **d):\n    """Do."""\n    x = 1\n\n    return x').body
    assert (n_arguments(function), body_lines(function)) == (4, 3)


def test_files_and_functions_are_short_or_have_a_reason():
    found = zip(sizes(), (MAX_LINES, MAX_BODY_LINES, MAX_ARGUMENTS), (LONG_FILES, LONG_FUNCTIONS, MANY_ARGUMENTS))
    for counts, limit, excused in found:
        exceeding = {name: n for name, n in counts.items() if n > limit}
        assert set(exceeding) == set(excused), exceeding  # nobody is excused who need not be
