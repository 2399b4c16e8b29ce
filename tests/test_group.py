"""The group level on tables made by hand."""

import json
import re
import time

import numpy as np
import pytest
from bids_examples import write_description

from bids_lesionfill import text_files
from bids_lesionfill.app import cli, exit_codes
from bids_lesionfill.layout import derivatives, files, naming
from bids_lesionfill.layout import status as layout_status
from bids_lesionfill.layout import tables as layout_tables
from bids_lesionfill.report import group
from bids_lesionfill.thickness import tables as thickness_tables
from bids_lesionfill.thickness.tables import REGIONS, table_of


@pytest.fixture
def bids_dir(tmp_path):
    write_description(tmp_path / 'data')
    return tmp_path / 'data'


@pytest.fixture
def write_tables(tmp_path):
    """Write the tables of a scan as the participant level does; `values` is desc -> mm of lh, rh and every region.

    `about_desc` is desc -> what its sidecar says besides.
    """

    def write(scan, values, engine='pbt', juxtacortical=0, out='out', about_desc=None):
        entities = naming.name_entities(scan)
        session = [f'ses-{entities["ses"]}'] if 'ses' in entities else []
        folder = tmp_path.joinpath(out, f'sub-{entities["sub"]}', *session, 'anat')
        maker = {'DatasetType': 'derivative', 'GeneratedBy': [{'Name': naming.APP_NAME}]}
        write_description(tmp_path / out, **maker)
        for desc, (lh, rh, regions) in values.items():
            regions = np.broadcast_to(regions, 68)
            table = table_of({n: (mm, 10) for n, mm in zip(REGIONS, regions)}, {'lh': lh, 'rh': rh})
            about = {'RunHash': 'x'} | (about_desc or {}).get(desc, {})
            if juxtacortical is not None:
                counts = juxtacortical if isinstance(juxtacortical, dict) else {'cortex': juxtacortical}
                about['LesionVoxels'] = counts
            path = folder / f'{scan}_seg-DK_desc-{desc}_morph.tsv'
            layout_tables.write_thickness(
                path, engine, thickness_tables.table_rows(table, engine), about, ['bids:raw:x']
            )

    return write


@pytest.fixture
def run_group(bids_dir, tmp_path):
    def run(*more):
        return cli.main([str(bids_dir), str(tmp_path / 'out'), 'group', *more])

    return run


@pytest.fixture
def quick_group(run_group, monkeypatch):
    """The same without the pictures of the cortex."""
    monkeypatch.setattr(group, 'draw_cortex', lambda *_: b'a picture')
    return run_group


def read(tmp_path, name):
    return text_files.read_tsv(tmp_path / 'out' / name)


def test_tables_4_3_and_4_4_of_a_hand_made_study(write_tables, run_group, tmp_path):
    """Three participants: no change; 2.0 against 2.2 mm everywhere; a juxtacortical one with one region changed."""
    write_tables('sub-01', {'original': (2.5, 2.5, 2.5), 'filled': (2.5, 2.5, 2.5)})
    write_tables('sub-02', {'original': (2.0, 2.0, 2.0), 'filled': (2.2, 2.2, 2.2), 'rerun': (2.0, 2.1, 2.0)})
    one_region = np.where(np.arange(68) == 5, 3.0, 2.0)
    write_tables('sub-03', {'original': (2.0, 2.0, 2.0), 'filled': (2.0, 2.4, one_region)}, juxtacortical=70)
    assert run_group() == exit_codes.OK
    everybody, without = read(tmp_path, 'group_reproducibility.tsv')
    a_fifth = 100 * 0.2 / 4.2
    assert (everybody['participants'], everybody['n'], everybody['n_noise']) == ('all', 3, 1)
    assert everybody['error_global_percent'] == pytest.approx((0 + a_fifth + a_fifth) / 3, abs=1e-9)
    assert everybody['error_roi_percent'] == pytest.approx((0 + a_fifth + 20 / 68) / 3, abs=1e-9)
    assert everybody['noise_global_percent'] == pytest.approx(100 * 0.05 / 4.05, abs=1e-9)
    assert everybody['noise_roi_percent'] == pytest.approx(0, abs=1e-9)
    assert everybody['change_global_percent'] == pytest.approx((0 + 10 + 10) / 3, abs=1e-9)
    assert everybody['error_global_low'] is everybody['change_global_high'] is None  # of three participants
    assert (without['participants'], without['n']) == ('without juxtacortical', 2)
    assert without['error_global_percent'] == pytest.approx(a_fifth / 2, abs=1e-9)
    assert without['error_roi_percent'] == pytest.approx(a_fifth / 2, abs=1e-9)
    regions = {(row['participants'], row['region']): row for row in read(tmp_path, 'group_reproducibility_roi.tsv')}
    assert len(regions) == 2 * 68
    assert regions['all', REGIONS[5]]['error_percent'] == pytest.approx((0 + a_fifth + 20) / 3, abs=1e-9)
    assert regions['without juxtacortical', REGIONS[5]]['error_percent'] == pytest.approx(a_fifth / 2, abs=1e-9)
    rows = {row['participant_id']: row for row in read(tmp_path, 'phenotype/thickness.tsv')}
    assert rows['sub-02']['filled_mm'] == 2.2
    assert rows['sub-02']['error_roi_percent'] == pytest.approx(4.761904761904762, abs=1e-9)
    assert rows['sub-02']['change_global_percent'] == pytest.approx(10, abs=1e-9)
    assert rows['sub-01']['rerun_mm'] is None
    page = (tmp_path / 'out/group.html').read_text()
    assert 'sub-03' in page
    assert '3.175' in page  # the global error of all
    assert '+6.667' in page  # and its signed change
    assert 'class="interval"' not in page


def test_errors_that_look_alike_are_a_shift_or_none(write_tables, quick_group, tmp_path):
    """Four brains that all become thicker, and four of which two do: the signed change tells them apart."""
    for number, mm in enumerate((2.02, 2.02, 1.98, 1.98), start=1):
        write_tables(f'sub-{number:02}', {'original': (2, 2, 2), 'filled': (2.02, 2.02, 2.02)})
        write_tables(f'sub-{number:02}', {'original': (2, 2, 2), 'filled': (mm, mm, mm)}, engine='ants')
    assert quick_group() == exit_codes.OK
    rows = {row['engine']: row for row in read(tmp_path, 'group_reproducibility.tsv') if row['participants'] == 'all'}
    assert rows['pbt']['error_global_percent'] == pytest.approx(rows['ants']['error_global_percent'], rel=0.02)
    assert rows['pbt']['change_global_percent'] == pytest.approx(1, abs=1e-9)
    assert rows['pbt']['change_global_low'] > 0
    assert rows['ants']['change_global_percent'] == pytest.approx(0, abs=1e-9)
    assert rows['ants']['change_global_low'] < 0 < rows['ants']['change_global_high']
    words = derivatives.read_sidecar(tmp_path / 'out/group_reproducibility.tsv')
    assert set(words) == {*layout_tables.ERROR_COLUMNS, *layout_tables.REGION_ERROR_COLUMNS}
    page = (tmp_path / 'out/group.html').read_text()
    assert '(+1.000 to +1.000)' in page
    assert 'says nothing about filling' not in page


def test_juxta_min_voxels_is_a_threshold(write_tables, run_group, tmp_path):
    for subject, n_voxels in (('01', 0), ('02', 63), ('03', 64)):
        write_tables(f'sub-{subject}', {'original': (2, 2, 2), 'filled': (2, 2, 2)}, juxtacortical=n_voxels)
    for arguments, n_left in (([], 1), (['--juxta-min-voxels', '64'], 2), (['--juxta-min-voxels', '65'], 3)):
        assert run_group(*arguments) == exit_codes.OK
        assert read(tmp_path, 'group_reproducibility.tsv')[1]['n'] == n_left


def test_a_lesion_at_the_ventricles_is_juxtacortical_by_the_rule_of_the_thesis_alone(
    write_tables, quick_group, tmp_path
):
    """Sub-01: 64 voxels outside white matter, all of them at the ventricles; sub-02: an engine without a ribbon."""
    both = {'original': (2, 2, 2), 'filled': (2, 2, 2)}
    for subject, counts in (('01', {'outside_white_matter': 64, 'grey_matter': 40, 'cortex': 0}),
                            ('02', {'outside_white_matter': 64, 'grey_matter': 0}),
                            ('03', {'outside_white_matter': 64, 'grey_matter': 40, 'cortex': 9})):  # fmt: skip
        write_tables(f'sub-{subject}', both, juxtacortical=counts)
    pages = {}
    for arguments, n_left, voxels in (([], 2, [0, 0, 9]), (['--juxta-rule', 'thesis'], 0, [64, 64, 64])):
        quick_group(*arguments)
        _, without = text_files.read_tsv(tmp_path / 'out/group_reproducibility.tsv')
        assert without['n'] == n_left
        rows = text_files.read_tsv(tmp_path / 'out/phenotype/thickness.tsv')
        assert [row['juxtacortical_voxels'] for row in rows] == voxels
        pages[n_left] = (tmp_path / 'out/group.html').read_text()
    assert 'Lesions at the ventricles do not count' in pages[2]
    assert 'Lesions that touch the ventricles count too' in pages[0]


def test_who_is_missing_or_failed_is_left_out_and_the_page_says_why(write_tables, run_group, tmp_path, bids_dir):
    for subject in ('01', '02', '03', '04', '05'):
        (bids_dir / f'sub-{subject}').mkdir()
    write_tables('sub-01', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    write_tables('sub-02', {'original': (2, 2, 2)})
    write_tables('sub-03', {'original': (2, 2, 2), 'filled': (np.nan, 2, 2)})
    status = {'status': 'failed', 'message': 'the scanner was off'}
    layout_status.write_status(tmp_path / 'out', '04', 'run', status)
    assert run_group() == exit_codes.OK
    assert read(tmp_path, 'group_reproducibility.tsv')[0]['n'] == 1
    page = (tmp_path / 'out/group.html').read_text()
    assert 'class="interval"' not in page  # of one participant
    for words in (
        'no table of the filled image', 'no mean thickness of both hemispheres in the filled image',
        'failed: the scanner was off', 'not run at participant level',
    ):  # fmt: skip
        assert words in page


def test_a_scan_that_one_engine_failed_on_is_left_out_for_that_engine(write_tables, quick_group, tmp_path, bids_dir):
    """Nobody else's list has it: it has tables, of the other engine."""
    same = {'original': (2, 2, 2), 'filled': (2, 2, 2)}
    for subject in ('01', '02', '03'):
        (bids_dir / f'sub-{subject}').mkdir()
        write_tables(f'sub-{subject}', same)
    write_tables('sub-01', same, engine='ants')
    status = {'status': 'failed', 'message': 'thickness by ants (original): the scanner was off'}
    layout_status.write_status(tmp_path / 'out', '02', 'run', status)
    layout_status.write_status(tmp_path / 'out', '03', 'run', {'status': 'filled', 'message': 'no FLAIR image'})
    assert quick_group() == exit_codes.OK
    left_out = rows_of_the_left_out(tmp_path)
    assert left_out == [
        ['sub-02', 'sub-02', 'ants', f'no table of this engine (failed: {status["message"]})'],
        ['sub-03', 'sub-03', 'ants', 'no table of this engine'],
    ]


def test_only_the_sessions_asked_for_count(write_tables, quick_group, tmp_path, bids_dir, caplog):
    for subject in ('01', '02'):
        (bids_dir / f'sub-{subject}').mkdir()
    write_tables('sub-01_ses-a', {'original': (2, 2, 2), 'filled': (2.2, 2.2, 2.2)})
    write_tables('sub-01_ses-b', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    write_tables('sub-02_ses-b', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    assert quick_group('--session-label', 'ses-a') == exit_codes.OK
    assert [row['scan'] for row in read(tmp_path, 'phenotype/thickness.tsv')] == ['sub-01_ses-a']
    assert rows_of_the_left_out(tmp_path) == [['sub-02', 'all', 'all', 'no table of the sessions asked for']]
    assert quick_group('--session-label', 'c') == 66
    assert 'of the participants and sessions asked for' in caplog.text


def test_original_and_filled_of_two_seeds_are_no_pair(write_tables, quick_group, tmp_path):
    values = {'original': (2, 2, 2), 'filled': (2.2, 2.2, 2.2)}
    for subject, seeds in (('01', (4, 5)), ('02', (4, 4)), ('03', (4, None))):
        about = {desc: {'RandomSeed': seed} for desc, seed in zip(values, seeds) if seed is not None}
        write_tables(f'sub-{subject}', values, about_desc=about)
    assert quick_group() == exit_codes.OK
    assert [row['scan'] for row in read(tmp_path, 'phenotype/thickness.tsv')] == ['sub-02', 'sub-03']
    reason = 'original and filled were measured with different seeds'
    assert rows_of_the_left_out(tmp_path) == [['sub-01', 'sub-01', 'pbt', reason]]


def test_who_has_nothing_filled_counts_for_the_noise_and_not_for_the_errors(write_tables, quick_group, tmp_path):
    values = {'original': (2, 2, 2), 'filled': (2.2, 2.2, 2.2)}
    copy = {'original': (2, 2, 2), 'filled': (2, 2, 2), 'rerun': (2.2, 2.2, 2.2)}
    write_tables('sub-01', values, about_desc={'filled': {'FilledVoxels': 7}})
    write_tables('sub-02', values)  # an older output, which does not say it
    write_tables('sub-03', copy, about_desc={'filled': {'FilledVoxels': 0}})
    write_tables('sub-03', copy, about_desc={'filled': {'FilledVoxels': 0}}, engine='ants')
    assert quick_group() == exit_codes.OK
    rows = {row['engine']: row for row in read(tmp_path, 'group_reproducibility.tsv') if row['participants'] == 'all'}
    everybody, of_ants = rows['pbt'], rows['ants']
    assert (everybody['n'], everybody['n_scans'], everybody['n_noise']) == (2, 2, 1)
    for name in ('error_global_percent', 'error_roi_percent', 'noise_global_percent', 'noise_roi_percent'):
        assert everybody[name] == pytest.approx(100 / 21, abs=1e-9)
    assert (of_ants['n'], of_ants['error_global_percent'], of_ants['n_noise']) == (0, None, 1)
    assert ['sub-03', 'sub-03', 'pbt', 'nothing was filled'] in rows_of_the_left_out(tmp_path)
    row = next(row for row in read(tmp_path, 'phenotype/thickness.tsv') if row['scan'] == 'sub-03')
    assert (row['filled_mm'], row['error_global_percent'], row['change_global_percent']) == (2, None, None)


def rows_of_the_left_out(tmp_path):
    """Cells of the table under `Left out` of the page, a list per row."""
    page = (tmp_path / 'out/group.html').read_text().partition('<h2>Left out</h2>')[2].partition('</section>')[0]
    return [re.findall(r'<td[^>]*>([^<]*)</td>', row) for row in page.split('<tr>') if '<td' in row]


def test_one_participant_has_an_error_and_no_interval(write_tables, run_group, tmp_path):
    write_tables('sub-01', {'original': (2, 2, 2), 'filled': (2.2, 2.2, 2.2)}, juxtacortical=5)
    assert run_group() == exit_codes.OK
    everybody, without = read(tmp_path, 'group_reproducibility.tsv')
    assert everybody['error_global_percent'] == pytest.approx(4.761904761904762, abs=1e-9)
    assert everybody['error_global_low'] is None
    assert (without['n'], without['error_global_percent']) == (0, None)


def test_sessions_are_rows_of_their_own_and_one_participant(write_tables, run_group, tmp_path):
    for session, filled in (('a', 2.2), ('b', 2.0)):
        write_tables(f'sub-01_ses-{session}', {'original': (2, 2, 2), 'filled': (filled,) * 3})
    write_tables('sub-02_ses-a', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    assert run_group() == exit_codes.OK
    everybody = read(tmp_path, 'group_reproducibility.tsv')[0]
    assert (everybody['n'], everybody['n_scans']) == (2, 3)
    assert everybody['error_global_percent'] == pytest.approx(4.761904761904762 / 4, abs=1e-9)
    assert [row['session_id'] for row in read(tmp_path, 'phenotype/thickness.tsv')] == ['ses-a', 'ses-b', 'ses-a']


def test_engines_share_a_file_and_tables_of_other_runs_are_read(write_tables, run_group, tmp_path):
    same, changed = {'original': (2, 2, 2), 'filled': (2, 2, 2)}, {'original': (2, 2, 2), 'filled': (2.2, 2.2, 2.2)}
    write_tables('sub-01', same)
    write_tables('sub-01', changed, engine='ants')
    write_description(tmp_path / 'elsewhere')
    write_tables('sub-02', changed, out='elsewhere')
    write_tables('sub-01', changed, out='elsewhere')  # the output folder counts first
    assert run_group('--derivatives', str(tmp_path / 'elsewhere')) == exit_codes.OK
    rows = {(row['engine'], row['participants']): row for row in read(tmp_path, 'group_reproducibility.tsv')}
    assert rows['ants', 'all']['n'] == 1
    assert rows['pbt', 'all']['n'] == 2
    assert rows['pbt', 'all']['error_roi_percent'] == pytest.approx(4.761904761904762 / 2, abs=1e-9)


def test_both_images_of_a_scan_come_from_one_folder(write_tables, quick_group, tmp_path, caplog):
    """The first that has both; else the filled image of one run would be held against the original of another."""
    same = {'original': (2, 2, 2), 'filled': (2, 2, 2)}
    write_tables('sub-01', {'original': (3, 3, 3), 'rerun': (3, 3, 3)})
    write_tables('sub-02', {'original': (3, 3, 3)})
    write_tables('sub-03', same)
    write_description(tmp_path / 'elsewhere')
    write_tables('sub-01', same, out='elsewhere')
    write_tables('sub-02', {'filled': (2, 2, 2)}, out='elsewhere')
    write_tables('sub-04', same, out='elsewhere')
    assert quick_group('--derivatives', str(tmp_path / 'elsewhere')) == exit_codes.OK
    rows = {row['scan']: row for row in read(tmp_path, 'phenotype/thickness.tsv')}
    assert set(rows) == {'sub-01', 'sub-03', 'sub-04'}
    assert (rows['sub-01']['original_mm'], rows['sub-01']['rerun_mm']) == (2, None)
    assert ['sub-02', 'sub-02', 'pbt', 'no table of the filled image'] in rows_of_the_left_out(tmp_path)
    out, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
    warnings = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert sorted(warnings) == [
        f'1 scan(s) measured by pbt are in two folders, such as sub-01: those in {elsewhere} count, not those in {out}',
        f'1 scan(s) measured by pbt are in two folders, such as sub-02: those in {out} count, not those in {elsewhere}',
    ]


def test_the_output_folder_given_once_more_is_no_second_folder(write_tables, quick_group, tmp_path, caplog):
    write_tables('sub-01', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    write_description(tmp_path / 'out', DatasetType='derivative', GeneratedBy=[{'Name': naming.APP_NAME}])
    assert quick_group('--derivatives', str(tmp_path / 'out')) == exit_codes.OK
    assert 'two folders' not in caplog.text


@pytest.mark.parametrize(('engines', 'labels'), [(('freesurfer', 'pbt'), 2), (('freesurfer',), 1), ((), 0)])
def test_every_colour_of_the_distribution_is_explained(monkeypatch, engines, labels):
    """Also where the first engine has no noise."""
    monkeypatch.setattr(group, 'png_of', lambda figure: figure)
    noise = {'pbt': [0.1, 0.2], 'freesurfer': [np.nan]}
    drawn = group.draw_distribution(
        [{'engine': name, 'participant_errors': [0.2, 0.3], 'participant_noise': noise[name]} for name in engines]
    )
    legend = drawn.axes[0].get_legend()
    texts = [text.get_text() for text in legend.get_texts()] if legend else []
    assert texts == ['filled against original', 'rerun against original (noise)'][:labels]


def test_an_engine_measured_again_replaces_its_rows_and_leaves_those_of_others(write_tables, tmp_path):
    write_tables('sub-01', {'original': (2, 2, 2)})
    write_tables('sub-01', {'original': (3, 3, 3)}, engine='ants')
    write_tables('sub-01', {'original': (2.5, 2.5, 2.5)})
    path = tmp_path / 'out/sub-01/anat/sub-01_seg-DK_desc-original_morph.tsv'
    rows = text_files.read_tsv(path)
    assert len(rows) == 2 * 70
    assert {(row['engine'], row['thickness_mm']) for row in rows} == {('ants', 3), ('pbt', 2.5)}
    assert set(json.loads(naming.sidecar(path).read_text())['Engines']) == {'ants', 'pbt'}
    by_name = {row['name']: row for row in rows}
    assert (by_name['lh_cuneus']['index'], by_name['rh_insula']['index']) == (1005, 2035)
    assert by_name['rh_insula']['hemisphere'] == 'R'


def test_rows_without_a_word_in_the_sidecar_are_not_read(write_tables, tmp_path, run_group):
    write_tables('sub-01', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    path = tmp_path / 'out/sub-01/anat/sub-01_seg-DK_desc-filled_morph.tsv'
    files.write_json(naming.sidecar(path), {})  # as a killed run leaves it
    assert run_group() == exit_codes.OK
    assert read(tmp_path, 'phenotype/thickness.tsv') == []


@pytest.mark.slow
def test_a_thousand_participants_take_seconds(write_tables, run_group, tmp_path):
    write_tables('sub-0000', {desc: (2, 2, 2) for desc in naming.THICKNESS_DESCS})
    source = tmp_path / 'out/sub-0000/anat'
    for number in range(1, 1000):
        folder = tmp_path / f'out/sub-{number:04}/anat'
        folder.mkdir(parents=True)
        for path in source.iterdir():
            (folder / path.name.replace('0000', f'{number:04}')).write_bytes(path.read_bytes())
    started = time.process_time()
    assert run_group() == exit_codes.OK
    assert time.process_time() - started < 30
    assert read(tmp_path, 'group_reproducibility.tsv')[0]['n'] == 1000


DAMAGED = {
    'json cut': ('json', lambda data: data[:50]),
    'json list': ('json', lambda data: b'[]'),
    'json of others': ('json', lambda data: b'{"Engines": ["pbt"]}'),
    'table cut': ('tsv', lambda data: data[:900]),
    'decimal commas': ('tsv', lambda data: data.replace(b'.', b',')),
    'no table': ('tsv', lambda data: b'x' * 200_000),
}


@pytest.mark.parametrize('damage', DAMAGED)
def test_a_damaged_table_is_left_out_and_listed_and_the_rest_is_aggregated(
    write_tables, quick_group, tmp_path, caplog, damage
):
    for name in ('sub-01', 'sub-02'):
        write_tables(name, {'original': (2.5, 2.5, 2.5), 'filled': (2.5, 2.6, 2.7)})
    end, change = DAMAGED[damage]
    (path,) = tmp_path.glob(f'out/sub-02/anat/*desc-filled_morph.{end}')
    path.write_bytes(change(path.read_bytes()))
    assert quick_group() == exit_codes.OK
    assert [row['scan'] for row in read(tmp_path, 'phenotype/thickness.tsv')] == ['sub-01']
    page = (tmp_path / 'out/group.html').read_text(encoding='utf-8')
    assert 'sub-02' in page
    assert 'table of the filled image' in page or 'mean thickness of both hemispheres' in page
    if damage not in ('table cut', 'json of others'):
        assert str(path) in caplog.text


@pytest.mark.parametrize('text', ['participant_id\tx\nsub-01\tschubförmig\n'.encode('latin-1'), b'', b'x' * 200_000])
def test_a_damaged_table_of_participants_does_not_stop_the_group(write_tables, quick_group, tmp_path, text):
    write_tables('sub-01', {'original': (2.5, 2.5, 2.5), 'filled': (2.5, 2.6, 2.7)})
    (tmp_path / 'out/participants.tsv').write_bytes(text)
    assert quick_group() == exit_codes.OK
