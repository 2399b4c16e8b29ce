"""Nothing in the input, the names or the environment makes the app run code, write elsewhere, or tell a secret."""

import ast
import gzip
import json
import os
import re
import sys
import tempfile
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import app_processes
import numpy as np
import pytest
from bids_examples import t1w_path

from bids_lesionfill.app import cli, exit_codes
from bids_lesionfill.layout import files as layout_files
from bids_lesionfill.report import group

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / 'run.py', *(path for folder in ('bids_lesionfill', 'benchmarks', 'container', 'docs')
                              for path in sorted((ROOT / folder).rglob('*.py')))]  # fmt: skip
HIDDEN = 'nobody-may-see-this-0123456789'
MALICE = '<script>alert("x")</script>\' onclick="y"'


# Code


def calls(tree):
    """All calls in a module: (name with dots, keywords as source text)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def modules(tree):
    """All modules that a module imports, by their first names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split('.')[0]


def dangers(source):
    """What in a module could run code that is in a file or a name: list of words. Ruff's `S` rules see more."""
    tree = ast.parse(source)
    found = [name for name in modules(tree) if name in ('pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal')]
    for name, keywords in calls(tree):
        wanted = {
            'torch.load': keywords.get('weights_only') == 'True',
            'np.load': keywords.get('allow_pickle', 'False') == 'False',
            'yaml.load': False,
            'os.system': False,
            'os.popen': False,
            'eval': False,
            'exec': False,
            'tempfile.mktemp': False,
        }
        if not wanted.get(name, True) or 'shell' in keywords:
            found.append(name)
        if name.endswith('.from_pretrained') and 'scheduler' not in name.lower() and 'use_safetensors' not in keywords:
            found.append(name)
    return found


@pytest.mark.parametrize(('source', 'danger'), [
    ('import pickle', 'pickle'),
    ('from joblib import load', 'joblib'),
    ('torch.load(file)', 'torch.load'),
    ('np.load(file, allow_pickle=True)', 'np.load'),
    ('eval(text)', 'eval'),
    ('subprocess.run(text, shell=True)', 'subprocess.run'),
    ('network.from_pretrained(folder)', 'network.from_pretrained'),
])  # fmt: skip
def test_dangers_are_found(source, danger):
    assert dangers(source) == [danger]


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_pickle_no_shell_and_no_code_from_text(path):
    assert dangers(path.read_text()) == []


def test_models_and_lesions_in_the_package_hold_no_pickle():
    """Except the networks of deepbet and NiiVue, of fixed SHA-256 (test_brain_extraction.py, test_report_viewer.py)."""
    package = ROOT / 'bids_lesionfill'
    fixed = {package / 'images' / 'deepbet' / name for name in ('LICENSE', 'box.pt', 'brain.pt')}
    fixed |= {package / 'report' / 'niivue' / name for name in ('LICENSE', 'niivue.umd.js.gz')}
    kinds = {path.suffix for path in package.rglob('*') if path.is_file() and path not in fixed}
    assert kinds <= {'.py', '.pyc', '.jinja', '.json', '.md', '.npz', '.safetensors', '.ipynb', '.bib', '.typed'}
    for path in (ROOT / 'bids_lesionfill').rglob('*.npz'):
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind != 'O' for name in arrays)


# A run that is watched


def watch(events_file, temporary_dir):
    """The process notes what it writes, starts, connects to and unpickles; it knows a secret."""
    os.environ['AWS_SECRET_ACCESS_KEY'] = HIDDEN
    tempfile.tempdir = str(temporary_dir)
    sys.dont_write_bytecode = True
    events = os.open(events_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event, arguments):
        paths = []
        if event == 'open' and not isinstance(arguments[0], int) and arguments[2] and arguments[2] & writing:
            paths = arguments[:1]
        elif event in ('os.mkdir', 'os.remove', 'os.rmdir', 'os.truncate', 'os.chmod', 'os.utime'):
            paths = arguments[:1]
        elif event == 'os.rename':
            paths = arguments[:2]
        elif event in ('os.symlink', 'os.link'):
            paths = arguments[1:2]
        for path in paths:
            os.write(events, f'{json.dumps(["write", os.path.abspath(os.fsdecode(path))])}\n'.encode())
        if event.split('.')[0] in ('socket', 'subprocess', 'pickle') or event in ('os.system', 'os.exec', 'os.fork'):
            os.write(events, f'{json.dumps([event, repr(arguments)])}\n'.encode())

    sys.addaudithook(hook)


@pytest.fixture(scope='module')
def watched(tmp_path_factory, make_phantom):
    """Folders of a run on a dataset that means ill, its events, and what was said on the screen."""
    from bids_examples import mask_path, write_bids

    root, head = tmp_path_factory.mktemp('watched'), make_phantom()
    t1w_img = head.t1w_img
    t1w_img.header['descrip'] = b'DOE^JANE'
    images = {t1w_path('01'): t1w_img, t1w_path('02'): b'no image', mask_path('01'): head.lesion_mask_img,
              mask_path('02'): head.lesion_mask_img}  # fmt: skip
    write_bids(root / 'data', images)
    table = f'participant_id\tname\nsub-01\tJane Doe\n../../evil\tJane Doe\nsub-../evil\t{MALICE}\n'
    (root / 'data/participants.tsv').write_text(table)
    (root / 'data/derivatives/lesions').rename(root / 'lesions')
    (root / 'tmp').mkdir()
    (root / 'filters.json').write_text('{"t1w": {"suffix": "T1w"}, "../evil": {"session": "../evil"}}')
    return root


@pytest.fixture(scope='module')
def events(watched, request):
    """What a run of both layouts did there: list of [event, path or arguments]."""
    model_dir = request.getfixturevalue('model_dirs')['T1w']
    arguments = [watched / 'data', watched / 'out', 'participant', '--model', model_dir, '--output-layout', 'raw',
                 '--bids-filter-file', watched / 'filters.json', '--mask-label', 'lesion', '../../evil',
                 '-d', f'../evil <script>alert(1)</script>={watched / "lesions"}']  # fmt: skip
    before = partial(watch, watched / 'events', watched / 'tmp')
    assert app_processes.run(arguments, watched / 'log.txt', before) == exit_codes.SOME_FAILED
    assert (watched / 'out/sub-01/anat/sub-01_T1w.nii.gz').is_file()
    return [json.loads(line) for line in (watched / 'events').read_text().splitlines()]


@pytest.mark.slow
def test_nothing_is_written_outside_the_output_folder(events, watched):
    written = [Path(path) for event, path in events if event == 'write']
    assert len(written) > 100  # the hook sees them
    allowed = (watched / 'out', watched / 'tmp', Path('/dev/null'))
    assert [path for path in written if not any(path.is_relative_to(folder) for folder in allowed)] == []
    assert not list((watched / 'tmp').iterdir())
    assert not [path for path in watched.rglob('*') if 'evil' in path.name]


@pytest.mark.slow
def test_nothing_is_connected_to_started_or_unpickled(events):
    cores = ['subprocess.Popen', "('lscpu', ['lscpu', '--parse=core'], None, None)"]  # scikit-learn, once in a process
    assert [event for event in events if event[0] != 'write' and event != cores] == []


def texts(folder):
    """All files of a folder by path, unzipped."""
    for path in folder.rglob('*'):
        if path.is_file():
            content = path.read_bytes()
            yield path, gzip.decompress(content) if content[:2] == b'\x1f\x8b' else content


@pytest.mark.slow
def test_no_secret_and_no_name_is_told(events, watched):
    files = dict(texts(watched / 'out'))
    assert any(path.name.startswith('crash-') for path in files)
    assert any(path.name == 'config.toml' for path in files)
    said = (watched / 'log.txt').read_bytes()
    for content in (said, *files.values()):
        assert HIDDEN.encode() not in content
        assert b'AWS_SECRET' not in content
    told = [path for path, content in files.items() if b'Jane' in content or b'DOE^JANE' in content]
    # The table of the raw layout is that of the dataset, and the header of a filled image that of the image.
    assert {path.name for path in told} <= {'participants.tsv', 'sub-01_T1w.nii.gz', 'sub-01_desc-filled_T1w.nii.gz'}
    assert all(path.parent == watched / 'out' for path in told if path.name == 'participants.tsv')
    assert b'Jane' not in said
    assert b'DOE' not in said


@pytest.mark.slow
def test_pages_of_a_run_hold_no_code_of_others(events, watched):
    pages = list((watched / 'out/derivatives').rglob('*.html'))
    assert len(pages) == 2
    for page in pages:
        assert '<script>alert' not in page.read_text()
    assert '&lt;script&gt;alert' in pages[0].read_text() + pages[1].read_text()  # escaped, and there


# Names


@pytest.mark.parametrize('more', [
    ['--participant-label', '../../evil'],
    ['--participant-label', '/evil'],
    ['--session-label', '../../evil'],
    ['--mode', 'synth', '--mask-from', '../../evil'],
    ['--bids-filter-file', '../evil'],
    ['--model', '../../evil'],
    ['-d', '../evil=nowhere'],
])  # fmt: skip
def test_a_name_that_is_a_path_elsewhere_is_refused_before_anything_is_written(dataset, tmp_path, more):
    root = dataset()
    before = sorted(tmp_path.rglob('*'))
    assert cli.main([str(root), str(tmp_path / 'out'), 'participant', '--modality', 'T1w', *more]) == exit_codes.USAGE
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('more', [
    ['--mask-label', '../../evil'],
    ['--mask-desc', '../../evil'],
])  # fmt: skip
def test_a_name_that_is_a_path_elsewhere_finds_nothing(dataset, model_dir, tmp_path, more):
    arguments = [str(dataset()), str(tmp_path / 'out'), 'participant', '--model', str(model_dir)]
    assert cli.main([*arguments, *more]) == exit_codes.NOTHING_TO_DO
    assert not [path for path in tmp_path.rglob('*') if 'evil' in path.name]
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'out'}


def test_entities_of_file_names_hold_no_path():
    """Folders of the output are named by entities; pybids reads letters and digits only."""
    from bids.layout import parse_file_entities

    for name in ('sub-..%2Fevil/anat/sub-..%2Fevil_T1w.nii.gz', 'sub-01/ses-.._/anat/sub-01_ses-..__T1w.nii.gz'):
        entities = parse_file_entities(f'/data/{name}')
        assert all(re.fullmatch(r'[\w+]*', str(entities.get(key, ''))) for key in ('subject', 'session'))


# Pages


class Tags(HTMLParser):
    """The tags of a page, and the names of their attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, sorted(name for name, _ in attrs)))


def test_words_in_the_group_page_are_escaped(tmp_path, monkeypatch):
    monkeypatch.setattr(group, 'draw_cortex', lambda *_: b'a picture')

    def page_of(words):
        engine = {'engine': words, 'region_errors': np.ones(68), 'participant_errors': [1.0],
                  'participant_noise': [0.5], 'juxtacortical_scans': [words]}  # fmt: skip
        row = {'engine': words, 'participants': words, 'n': words, 'n_noise': words}
        content = {'version': words, 'command': words, 'rows': [row], 'juxta_min_voxels': words, 'engines': [engine],
                   'juxta_rule': words, 'excluded': [dict.fromkeys(('participant', 'scan', 'engine', 'reason'), words)],
                   'n_participants': words, 'n_scans': words}  # fmt: skip
        group.write(tmp_path / 'group.html', content)
        return (tmp_path / 'group.html').read_text()

    evil, harmless = page_of(MALICE), page_of('x')
    assert MALICE not in evil
    assert evil.count('&lt;script&gt;') > 10
    assert Tags(evil).tags == Tags(harmless).tags


# Files


def test_files_get_the_rights_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        layout_files.write_bytes(tmp_path / 'sub-01/x.json', b'{}')
    finally:
        os.umask(before)
    assert (tmp_path / 'sub-01/x.json').stat().st_mode & 0o777 == 0o640
    assert (tmp_path / 'sub-01').stat().st_mode & 0o777 == 0o750


def test_a_temporary_file_is_not_written_through_a_link_that_lies_there(tmp_path, monkeypatch):
    monkeypatch.setattr(layout_files, 'temporary_name', lambda path: tmp_path / 'guessed')
    (tmp_path / 'victim').write_text('mine')
    (tmp_path / 'guessed').symlink_to('victim')
    with pytest.raises(FileExistsError):
        layout_files.write_bytes(tmp_path / 'x.json', b'{}')
    assert (tmp_path / 'victim').read_text() == 'mine'
