"""The documentation: what it names exists, and its commands are understood."""

import doctest
import importlib.util
import os
import re
import shlex
import subprocess
import sys

import pytest
from pages import DOCS, PAGES, ROOT, TEXTS, arguments_of

from bids_lesionfill.app import exit_codes, single_file, validation
from bids_lesionfill.app import options as app_options
from bids_lesionfill.app import parser as app_parser

RESEARCH = ('train', 'evaluate', 'readerstudy', 'score')  # python -m bids_lesionfill.NAME
BIDS_APP_HEADINGS = ('Description', 'Documentation', 'How to report errors', 'Acknowledgments', 'Usage')


@pytest.fixture(scope='module')
def hooks():
    spec = importlib.util.spec_from_file_location('hooks', DOCS / 'hooks.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# README


def test_readme_is_short_and_has_the_headings_of_a_bids_app():
    text = (ROOT / 'README.md').read_text()
    assert len(text.splitlines()) <= 150
    assert re.findall(r'^## (.+)$', text, re.M) == list(BIDS_APP_HEADINGS)


def test_version_is_said_alike_and_has_its_changes():
    version = (ROOT / 'version').read_text().strip()
    assert f'\nversion: {version}\n' in (ROOT / 'CITATION.cff').read_text()
    heading = rf'^## (Unreleased|{re.escape(version)} \(\d{{4}}-\d\d-\d\d\))$'
    assert re.search(heading, (ROOT / 'CHANGES.md').read_text(), re.MULTILINE)


def test_design_names_every_package_and_module():
    text = (DOCS / 'design.md').read_text()
    tree = text[text.index('```\nbids_lesionfill/') :].split('\n```')[0]
    for path in (ROOT / 'bids_lesionfill').rglob('*.py'):
        if not path.name.startswith('__') and path.parent.name != 'engines':
            assert re.search(rf'\b{path.stem}\b', tree), path


# Generated parts


def options_in(help_text):
    """Return the options that a help text lists."""
    return set(re.findall(r'(?<![\w-])--?[a-zA-Z][\w-]*', help_text))


def test_every_option_is_on_the_page_of_options(hooks):
    page = hooks.filled_in((DOCS / 'options.md').read_text())
    for name in {flag for flag in app_parser.all_flags() if '_' not in flag} - {'-h', '--help'}:
        assert f'`{name}`' in page, name
    for spec in app_options.all_specs().values():
        assert spec.help.replace('|', '\\|') in page, spec.name
    assert '%(default)' not in page
    assert 'usage: ' in page
    assert '<!--' not in page


def test_every_exit_code_is_on_its_page(hooks):
    page = hooks.filled_in((DOCS / 'exit_codes.md').read_text())
    for code in (value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)):
        assert f'| {code} |' in page


def test_columns_of_tables_are_those_of_the_sidecars(hooks):
    page = hooks.filled_in((DOCS / 'formats.md').read_text())
    assert '| `volume_mm3` |' in page
    assert '| `juxtacortical` |' in page
    assert '<!--' not in page


def test_links_of_imported_pages_lead_to_pages_of_the_site(hooks):
    card = '../bids_lesionfill/models/fill-T1w/README.md'
    link = f'[a](../docs/growth.md#choose) [b]({card}) [c](speed.py) ![d](../docs/x.png)'
    assert hooks.with_links(link, 'benchmarks/README.md', 'benchmarks/index.md', None) == (
        '[a](../growth.md#choose) [b](../models/fill-T1w.md) c ![d](../x.png)'
    )
    assert 'https://x/blob/main/benchmarks/speed.py' in hooks.with_links(
        link, 'benchmarks/README.md', 'benchmarks/index.md', 'https://x'
    )


# Links and navigation


def anchors_of(text):
    titles = re.findall(r'^#+ (.+)$', text, re.M)
    slugs = [re.sub(r'[^\w\s-]', '', title.lower()).strip() for title in titles]
    return {re.sub(r'\s', '-', slug) for slug in slugs} | {re.sub(r'[\s-]+', '-', slug) for slug in slugs}


@pytest.mark.parametrize('name', TEXTS)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target, anchor in re.findall(r'\]\((?!https?:|#)([^)#\s]+)#?([^)]*)\)', text):
        path = ROOT / name
        assert (path.parent / target).exists(), target
        assert not anchor or anchor in anchors_of((path.parent / target).read_text()), (target, anchor)


def test_every_page_is_in_the_navigation():
    text = (ROOT / 'mkdocs.yml').read_text()
    assert sorted(re.findall(r': (\w+\.md)$', text, re.M)) == sorted([*PAGES, 'changes.md', 'contributing.md'])
    benchmarks = [f'benchmarks/{path.name}' for path in (ROOT / 'benchmarks').glob('[a-z]*.md')]
    assert sorted(re.findall(r': (benchmarks/(?!index)\w+\.md)$', text, re.M)) == sorted(benchmarks)


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    for package in ('material', 'mkdocstrings_handlers'):
        pytest.importorskip(package, reason='the site needs the extra [docs]')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | {'PYTHONPATH': '.'}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'site' / 'api' / 'index.html').is_file()


# Commands


def commands_in(text):
    """Return the command lines of the bash blocks of a page, without comments."""
    blocks = re.findall(r'^```bash\n(.*?)^```', text, re.M | re.S)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def options_in_source(module):
    """Return the options that a package of research declares, without importing it, which takes seconds."""
    sources = (ROOT / 'bids_lesionfill' / module).glob('*.py')
    return {option for source in sources for option in re.findall(r"'(--[a-z0-9-]+)'", source.read_text())}


@pytest.mark.parametrize('name', TEXTS)
def test_commands_of_a_page_are_understood(name):
    parsers = {'bids_lesionfill': app_parser.build_parser(), 'bids_lesionfill-file': single_file.build_parser()}
    stops = {'--version', '--help', '--list-models', '--list-engines'}
    for words in commands_in((ROOT / name).read_text()):
        for program, parser in parsers.items():
            arguments = arguments_of(words, program)
            if arguments is not None and not stops & set(arguments):
                parsed = parser.parse_args(arguments)
                if program == 'bids_lesionfill':
                    validation.check_level(parsed)
                    validation.check_places(parsed)
        for module in RESEARCH:
            arguments = arguments_of(words, f'bids_lesionfill.{module}') or []
            assert set(re.findall(r'--[a-z0-9-]+', ' '.join(arguments))) <= options_in_source(module)


def test_pages_have_commands_to_be_understood():
    found = [words for name in TEXTS for words in commands_in((ROOT / name).read_text())]
    assert sum(arguments_of(words, 'bids_lesionfill') is not None for words in found) > 40
    assert sum(arguments_of(words, 'bids_lesionfill.train') is not None for words in found) > 3


FOREIGN = {  # options of other programs that the text names
    *('--array', '--cap-drop', '--cleanenv', '--containall', '--cpu', '--cpus', '--dependency', '--entrypoint'),
    '--fast-mode',  # of LST-AI
    *('--format', '--fsaparc', '--gpus', '--gres', '--index-url', '--lesion', '--lesion_mask'),
    *('--network', '--nv', '--read-only', '--rm', '--strict', '--time', '--user', '--userns'),
}


@pytest.mark.parametrize('name', TEXTS)
def test_options_in_the_text_exist(name):
    known = app_parser.all_flags() | options_in(single_file.build_parser().format_help()) | FOREIGN
    known = known.union(*map(options_in_source, RESEARCH))
    text = re.sub(r'^```.*?^```', '', (ROOT / name).read_text(), flags=re.M | re.S)
    for option in re.findall(r'(?<![\w-])--[a-z][a-z0-9_-]+', text):
        assert option in known, option


@pytest.mark.slow
def test_examples_in_python_run():
    result = doctest.testfile(str(DOCS / 'python.md'), module_relative=False)
    assert result.attempted > 8
    assert result.failed == 0


def test_docstrings_do_not_begin_like_questions():
    pattern = re.compile(r'"""(What|Whether|How|Where|Which|Who|When)\b.*')
    paths = sorted((ROOT / 'bids_lesionfill').rglob('*.py'))
    found = [f'{path.name}: {match[0]}' for path in paths for match in pattern.finditer(path.read_text())]
    assert not found
