"""The tests' own house: what tests share lives in helper modules, and what those name exists."""

import ast
import importlib.util
import io
from pathlib import Path

import app_processes
import numpy as np
import pytest
import quick_pictures
from matplotlib import image

TESTS = Path(__file__).parent


@pytest.mark.parametrize('path', sorted(TESTS.glob('*.py')), ids=lambda path: path.name)
def test_nothing_is_imported_from_a_module_of_tests(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module or '')
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert not {name for name in imported if name.split('.')[0] in {file.stem for file in TESTS.glob('test_*.py')}}


def test_server_of_processes_imports_what_exists():
    """The server passes over a name that it cannot import, and each of its processes then imports for seconds."""
    assert all(importlib.util.find_spec(name) for name in app_processes.PRELOADED)


def test_quick_pictures_differ_where_drawn_ones_would():
    volume, mask = np.zeros((3, 4, 5)), np.ones((3, 4, 5), bool)
    outlines = [[], [(mask, 'red')], [(~mask, 'red')], [(mask, 'blue')]]
    contents = [*((volume, outline, 50) for outline in outlines), (volume + 1, [], 50), (volume, [], 60)]
    pngs = [quick_pictures.draw_panels(*content) for content in contents]
    assert len(set(pngs)) == len(contents)
    assert pngs[0] == quick_pictures.draw_panels(volume.copy(), [], 50)
    assert image.imread(io.BytesIO(pngs[0])).shape == (1, 8, 3)


def test_pictures_are_drawn_for_whom_they_matter(real_pictures):
    from bids_lesionfill.report import pictures

    assert pictures.draw_panels is not quick_pictures.draw_panels
    assert pictures.draw_panels.__module__ == pictures.__name__
