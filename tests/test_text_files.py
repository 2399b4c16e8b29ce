"""Text of others: encodings, damaged JSON and tables. One reader reads them all, and what it cannot read it names."""

import ast
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bids_examples import mask_path, t1w_path

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes
from bids_lesionfill.layout import files, raw

PACKAGE = Path(text_files.__file__).parent
UMLAUT = '{"InstitutionName": "Universitätsklinik", "BIDSVersion": "1.8.0", "Name": "Läsionen"}'
READABLE = {
    'plain': UMLAUT.encode(),
    'BOM': UMLAUT.encode('utf-8-sig'),
    'latin-1': UMLAUT.encode('latin-1'),
    'UTF-16': UMLAUT.encode('utf-16'),
    'CRLF': UMLAUT.replace(', ', ',\r\n').encode(),
}
DAMAGED = {
    'comma': b'{"Name": "x",}',
    'empty': b'',
    'list': b'["x"]',
    'cut': b'{"Name": "x", "BIDSV',
    'binary': bytes(range(256)),
    'number': b'1',
    'deep': b'[' * 100_000,
}


@pytest.fixture
def call(model_dir):
    def run(root, out, *more, level='participant'):
        return cli.main([str(root), str(out), level, '--model', str(model_dir), *more])

    return run


@pytest.mark.parametrize('name', READABLE)
def test_json_in_every_encoding_is_read(tmp_path, caplog, name):
    (tmp_path / 'a.json').write_bytes(READABLE[name])
    assert text_files.read_json(tmp_path / 'a.json') == json.loads(UMLAUT)
    assert text_files.read_json(tmp_path / 'a.json')['Name'] == 'Läsionen'
    assert caplog.text.count('a.json is not UTF-8') == (name == 'latin-1')  # said once


@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_json_is_named(tmp_path, name):
    (tmp_path / 'a.json').write_bytes(DAMAGED[name])
    with pytest.raises(text_files.UnreadableError, match=r'a\.json (cannot be read as JSON|holds)'):
        text_files.read_json(tmp_path / 'a.json')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'latin-1', 'utf-16'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_tables_in_every_encoding_are_read(tmp_path, encoding, end):
    text = end.join(['participant_id\tage\tnote', 'sub-01\t40\tMüller\x85', 'sub-02\tn/a\t', ''])
    (tmp_path / 'a.tsv').write_bytes(text.encode(encoding))
    assert text_files.read_tsv(tmp_path / 'a.tsv') == [
        {'participant_id': 'sub-01', 'age': 40.0, 'note': 'Müller\x85'},
        {'participant_id': 'sub-02', 'age': None, 'note': ''},
    ]


def test_a_table_that_is_none_is_named(tmp_path):
    (tmp_path / 'a.tsv').write_bytes(b'a\tb\n' + b'x' * 200_000 + b'\t1\n')
    with pytest.raises(text_files.UnreadableError, match=r'a\.tsv cannot be read as a table'):
        text_files.read_tsv(tmp_path / 'a.tsv')


@pytest.mark.parametrize('level', ['participant', 'group'])
@pytest.mark.parametrize('name', DAMAGED)
def test_a_description_of_the_dataset_that_is_damaged_is_2_and_named(dataset, tmp_path, call, caplog, name, level):
    root = dataset(['01'])
    (root / 'dataset_description.json').write_bytes(DAMAGED[name])
    assert call(root, tmp_path / 'out', level=level) == exit_codes.USAGE
    assert f'{root / "dataset_description.json"}' in caplog.text
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('name', 'place'), [('BOM', ''), ('latin-1', ''), ('BOM', 'derivatives/lesions'),
                                           ('latin-1', 'derivatives/lesions')])  # fmt: skip
def test_descriptions_in_every_encoding_are_read_and_written_as_utf_8(dataset, tmp_path, call, name, place):
    root = dataset(['01'])
    (root / place / 'dataset_description.json').write_bytes(READABLE[name])
    out = tmp_path / 'out'
    assert call(root, out, '--output-layout', 'raw') == exit_codes.OK
    description = json.loads((out / 'dataset_description.json').read_bytes())
    assert description['Name'] == ('test, lesions filled' if place else 'Läsionen, lesions filled')


@pytest.mark.parametrize('name', ['comma', 'list'])
def test_a_sidecar_that_is_damaged_is_named_and_nothing_stays_in_the_raw_layout(dataset, tmp_path, call, caplog, name):
    root, out = dataset(), tmp_path / 'out'
    sidecar = root / t1w_path('01').replace('.nii.gz', '.json')
    (root / 'participants.tsv').write_text('participant_id\tage\nsub-01\t40\nsub-02\t50\n')
    whole = sidecar.read_bytes()
    assert call(root, out, '--output-layout', 'raw') == exit_codes.OK  # what an earlier run wrote does not stay either
    (out / 'sub-01/anat/sub-01_notes.txt').write_text('of the user')
    sidecar.write_bytes(DAMAGED[name])
    assert call(root, out, '--output-layout', 'raw') == exit_codes.SOME_FAILED
    assert [path.name for path in (out / 'sub-01').rglob('*') if not path.is_dir()] == ['sub-01_notes.txt']
    (out / 'sub-01/anat/sub-01_notes.txt').unlink()
    rows = {row['participant_id']: row for row in text_files.read_tsv(out / raw.DERIVATIVES / 'participants.tsv')}
    assert rows['sub-01']['status'] == 'failed'
    assert f'{sidecar}' in rows['sub-01']['message']
    assert nib.load(out / t1w_path('02')).shape
    sidecar.write_bytes(whole)
    assert call(root, out, '--output-layout', 'raw') == exit_codes.OK
    assert nib.load(out / t1w_path('01')).shape


def test_a_participant_whose_filling_fails_leaves_nothing_in_the_raw_layout(dataset, tmp_path, call):
    root, out = dataset(), tmp_path / 'out'
    (root / 'participants.tsv').write_text('participant_id\tage\nsub-01\t40\nsub-02\t50\n')
    (root / mask_path('01')).write_bytes(b'no image')
    assert call(root, out, '--output-layout', 'raw') == exit_codes.SOME_FAILED
    assert not (out / 'sub-01').exists()
    assert (out / 'participants.tsv').read_text() == 'participant_id\tage\nsub-02\t50\n'


@pytest.mark.parametrize('name', ['BOM', 'latin-1'])
def test_a_sidecar_in_another_encoding_is_kept_as_utf_8(dataset, tmp_path, call, name):
    root = dataset(['01'])
    (root / t1w_path('01').replace('.nii.gz', '.json')).write_bytes(READABLE[name])
    (root / 'participants.tsv').write_bytes('participant_id\tnote\nsub-01\tschubförmig\n'.encode('latin-1'))
    assert call(root, tmp_path / 'out', '--output-layout', 'raw') == exit_codes.OK
    written = (tmp_path / 'out' / t1w_path('01').replace('.nii.gz', '.json')).read_bytes()
    assert json.loads(written)['InstitutionName'] == 'Universitätsklinik'
    assert 'schubförmig' in (tmp_path / 'out/participants.tsv').read_text(encoding='utf-8')


def test_an_output_whose_sidecar_is_damaged_is_done_again(dataset, tmp_path, call):
    root, out = dataset(['01']), tmp_path / 'out'
    assert call(root, out) == exit_codes.OK
    (sidecar,) = out.glob('sub-01/anat/*desc-filled_T1w.json')
    whole = sidecar.read_bytes()
    for damage in (whole[:40], b'[]'):
        sidecar.write_bytes(damage)
        assert call(root, out) == exit_codes.OK
        assert sidecar.read_bytes() == whole


def test_a_status_that_is_damaged_fails_its_own_participant_alone(dataset, tmp_path, call):
    root, out = dataset(), tmp_path / 'out'
    assert call(root, out) == exit_codes.OK
    (status,) = out.glob('sub-01/log/*/status.json')
    status.write_text('{')
    assert call(root, out, '--participant-label', '02') == exit_codes.OK
    rows = text_files.read_tsv(out / 'participants.tsv')
    assert [row['status'] for row in rows] == ['failed', 'filled']
    assert f'{status}' in rows[0]['message']


# Whatever the locale


def text_without_encoding(tree):
    """Calls that read or write text in the encoding of the locale: list of line numbers."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
        owner = getattr(getattr(node.func, 'value', None), 'id', '')
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        mode = node.args[1] if len(node.args) > 1 else keywords.get('mode', ast.Constant('r'))
        is_open = name == 'open' and owner not in ('os', 'Image') and 'b' not in getattr(mode, 'value', 'r')
        is_text = name in ('read_text', 'write_text') and owner != 'text_files'
        is_process = any(isinstance(keywords.get(word), ast.Constant) for word in ('text', 'universal_newlines'))
        if (is_open or is_text or is_process) and 'encoding' not in keywords:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(('source', 'is_found'), [
    ('path.read_text()', True), ("path.read_text(encoding='utf-8')", False), ('text_files.read_text(path)', False),
    ('path.write_text(x)', True), ('open(path)', True), ("open(path, 'w')", True), ("open(path, 'rb')", False),
    ("open(path, 'w', encoding='utf-8')", False), ('subprocess.run(x, text=True)', True), ('os.open(path, 1)', False),
    ('Image.open(path)', False),
])  # fmt: skip
def test_calls_without_encoding_are_found(source, is_found):
    assert bool(text_without_encoding(ast.parse(source))) == is_found


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_text_is_read_and_written_as_utf_8(path):
    lines = text_without_encoding(ast.parse(path.read_text(encoding='utf-8')))
    if path.name == 'text_files.py':
        lines = []  # the reader itself, which calls its own read_text
    assert lines == []


def test_what_is_no_number_is_null_in_json(tmp_path):
    files.write_json(tmp_path / 'a.json', {'rows': [{'wall': float('nan'), 'grain': np.float64('inf'), 'glow': 0.5}]})
    found = json.loads((tmp_path / 'a.json').read_text(encoding='utf-8'), parse_constant=pytest.fail)
    assert found == {'rows': [{'wall': None, 'grain': None, 'glow': 0.5}]}
