"""The documentation: what it names is there."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

from bids_lesionfill.app import exit_codes, single_file
from bids_lesionfill.app import options as app_options
from bids_lesionfill.app import parser as app_parser
from bids_lesionfill.score.__main__ import build_parser as score_parser

DOCS = Path(__file__).parent.parent / 'docs'
PAGES = sorted(path.name for path in DOCS.glob('*.md'))
OTHER_PROGRAMS = ('reader_study.md', 'container.md')  # whose options they name


@pytest.fixture(scope='module')
def hooks():
    spec = importlib.util.spec_from_file_location('hooks', DOCS / 'hooks.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_version_is_said_alike_and_has_its_changes():
    root = DOCS.parent
    version = (root / 'version').read_text().strip()
    assert f'\nversion: {version}\n' in (root / 'CITATION.cff').read_text()
    heading = rf'^## (Unreleased|{re.escape(version)} \(\d{{4}}-\d\d-\d\d\))$'
    assert re.search(heading, (root / 'CHANGES.md').read_text(), re.MULTILINE)


def options_in(help_text):
    """Return the options that a help text lists."""
    return set(re.findall(r'(?<![\w-])--?[a-zA-Z][\w-]*', help_text))


def test_every_option_and_exit_code_is_on_the_page_of_options(hooks):
    page = hooks.on_page_markdown((DOCS / 'options.md').read_text())
    for name in {flag for flag in app_parser.all_flags() if '_' not in flag} - {'-h', '--help'}:
        assert f'`{name}`' in page, name
    for spec in app_options.all_specs().values():
        assert spec.help.replace('|', '\\|') in page, spec.name
    for code in (value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)):
        assert f'| {code} |' in page
    assert '%(default)' not in page


@pytest.mark.parametrize('name', [name for name in PAGES if name not in OTHER_PROGRAMS])
def test_options_that_a_page_names_exist(name):
    known = app_parser.all_flags()
    known = known.union(*(options_in(build().format_help()) for build in (single_file.build_parser, score_parser)))
    foreign = {'--array', '--cpus-per-task', '--time', '--output', '--cleanenv', '--containall', '--dependency', '--t1',
               '--sid', '--sd', '--lesion', '--lesion_mask', '--plan', '--fsaparc'}  # fmt: skip
    for option in re.findall(r'(?<![\w-])--[a-z][a-z0-9_-]+', (DOCS / name).read_text()):
        assert option in known | foreign, option


@pytest.mark.parametrize('name', PAGES)
def test_links_between_pages_lead_somewhere(name):
    for target, anchor in re.findall(r'\]\((?!http)([^)#]+)#?([^)]*)\)', (DOCS / name).read_text()):
        assert (DOCS / target).is_file(), target
        assert not target.startswith('..'), target  # the site holds docs/ alone
        titles = re.findall(r'^#+ (.+)$', (DOCS / target).read_text(), re.M) if anchor else []
        assert not anchor or anchor in {title.lower().replace(' ', '-') for title in titles}


def test_every_page_is_in_the_navigation():
    text = (DOCS.parent / 'mkdocs.yml').read_text()
    assert sorted(re.findall(r': (\w+\.md)$', text, re.M)) == PAGES


@pytest.mark.slow
def test_examples_in_python_run():
    result = doctest.testfile(str(DOCS / 'python.md'), module_relative=False)
    assert result.attempted > 8
    assert result.failed == 0
