"""The tests' own house: what tests share lives in helper modules, and what those name exists."""

import ast
import importlib.util
from pathlib import Path

import app_processes
import pytest

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
