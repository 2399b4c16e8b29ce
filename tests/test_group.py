"""The group level on tables made by hand."""

import json
import time

import numpy as np
import pytest
from bids_examples import write_description

from bids_lesionfill import cli, layout
from bids_lesionfill.thickness import REGIONS, measure, table_of


@pytest.fixture
def bids_dir(tmp_path):
    write_description(tmp_path / 'data')
    return tmp_path / 'data'


@pytest.fixture
def write_tables(tmp_path):
    """Write the tables of a scan as the participant level does; `values` is desc -> mm of lh, rh and every region."""

    def write(scan, values, engine='pbt', juxtacortical=0, out='out'):
        entities = layout.name_entities(scan)
        session = [f'ses-{entities["ses"]}'] if 'ses' in entities else []
        folder = tmp_path.joinpath(out, f'sub-{entities["sub"]}', *session, 'anat')
        for desc, (lh, rh, regions) in values.items():
            regions = np.broadcast_to(regions, 68)
            table = table_of({n: (mm, 10) for n, mm in zip(REGIONS, regions)}, {'lh': lh, 'rh': rh})
            about = {'RunHash': 'x'}
            if juxtacortical is not None:
                about['LesionVoxels'] = {'outside_white_matter': juxtacortical}
            path = folder / f'{scan}_seg-DK_desc-{desc}_morph.tsv'
            layout.write_thickness(path, engine, measure.table_rows(table, engine), about, ['bids:raw:x'])

    return write


@pytest.fixture
def run_group(bids_dir, tmp_path):
    def run(*more):
        return cli.main([str(bids_dir), str(tmp_path / 'out'), 'group', *more])

    return run


def read(tmp_path, name):
    return layout.read_tsv(tmp_path / 'out' / name)


def test_tables_4_3_and_4_4_of_a_hand_made_study(write_tables, run_group, tmp_path):
    """Three participants: no change; 2.0 against 2.2 mm everywhere; a juxtacortical one with one region changed."""
    write_tables('sub-01', {'original': (2.5, 2.5, 2.5), 'filled': (2.5, 2.5, 2.5)})
    write_tables('sub-02', {'original': (2.0, 2.0, 2.0), 'filled': (2.2, 2.2, 2.2), 'rerun': (2.0, 2.1, 2.0)})
    one_region = np.where(np.arange(68) == 5, 3.0, 2.0)
    write_tables('sub-03', {'original': (2.0, 2.0, 2.0), 'filled': (2.0, 2.4, one_region)}, juxtacortical=70)
    assert run_group() == cli.OK
    everybody, without = read(tmp_path, 'group_reproducibility.tsv')
    a_fifth = 100 * 0.2 / 4.2
    assert (everybody['participants'], everybody['n'], everybody['n_noise']) == ('all', 3, 1)
    assert everybody['error_global_percent'] == pytest.approx((0 + a_fifth + a_fifth) / 3, abs=1e-9)
    assert everybody['error_roi_percent'] == pytest.approx((0 + a_fifth + 20 / 68) / 3, abs=1e-9)
    assert everybody['noise_global_percent'] == pytest.approx(100 * 0.05 / 4.05, abs=1e-9)
    assert everybody['noise_roi_percent'] == pytest.approx(0, abs=1e-9)
    assert everybody['error_global_low'] <= everybody['error_global_percent'] <= everybody['error_global_high']
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
    assert rows['sub-01']['rerun_mm'] is None
    page = (tmp_path / 'out/group.html').read_text()
    assert 'sub-03' in page
    assert '3.175' in page  # the global error of all


def test_juxta_min_voxels_is_a_threshold(write_tables, run_group, tmp_path):
    for subject, n_voxels in (('01', 0), ('02', 63), ('03', 64)):
        write_tables(f'sub-{subject}', {'original': (2, 2, 2), 'filled': (2, 2, 2)}, juxtacortical=n_voxels)
    for arguments, n_left in (([], 1), (['--juxta-min-voxels', '64'], 2), (['--juxta-min-voxels', '65'], 3)):
        assert run_group(*arguments) == cli.OK
        assert read(tmp_path, 'group_reproducibility.tsv')[1]['n'] == n_left


def test_who_is_missing_or_failed_is_left_out_and_the_page_says_why(write_tables, run_group, tmp_path, bids_dir):
    for subject in ('01', '02', '03', '04', '05'):
        (bids_dir / f'sub-{subject}').mkdir()
    write_tables('sub-01', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    write_tables('sub-02', {'original': (2, 2, 2)})
    write_tables('sub-03', {'original': (2, 2, 2), 'filled': (np.nan, 2, 2)})
    status = {'status': 'failed', 'message': 'the scanner was off'}
    layout.write_status(tmp_path / 'out', '04', 'run', status)
    assert run_group() == cli.OK
    assert read(tmp_path, 'group_reproducibility.tsv')[0]['n'] == 1
    page = (tmp_path / 'out/group.html').read_text()
    assert 'class="interval"' not in page  # of one participant
    for words in (
        'no table of the filled image', 'no mean thickness of both hemispheres in the filled image',
        'failed: the scanner was off', 'not run at participant level',
    ):  # fmt: skip
        assert words in page


def test_one_participant_has_an_error_and_no_interval(write_tables, run_group, tmp_path):
    write_tables('sub-01', {'original': (2, 2, 2), 'filled': (2.2, 2.2, 2.2)}, juxtacortical=5)
    assert run_group() == cli.OK
    everybody, without = read(tmp_path, 'group_reproducibility.tsv')
    assert everybody['error_global_percent'] == pytest.approx(4.761904761904762, abs=1e-9)
    assert everybody['error_global_low'] is None
    assert (without['n'], without['error_global_percent']) == (0, None)


def test_sessions_are_rows_of_their_own_and_one_participant(write_tables, run_group, tmp_path):
    for session, filled in (('a', 2.2), ('b', 2.0)):
        write_tables(f'sub-01_ses-{session}', {'original': (2, 2, 2), 'filled': (filled,) * 3})
    write_tables('sub-02_ses-a', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    assert run_group() == cli.OK
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
    assert run_group('--derivatives', str(tmp_path / 'elsewhere')) == cli.OK
    rows = {(row['engine'], row['participants']): row for row in read(tmp_path, 'group_reproducibility.tsv')}
    assert rows['ants', 'all']['n'] == 1
    assert rows['pbt', 'all']['n'] == 2
    assert rows['pbt', 'all']['error_roi_percent'] == pytest.approx(4.761904761904762 / 2, abs=1e-9)


def test_an_engine_measured_again_replaces_its_rows_and_leaves_those_of_others(write_tables, tmp_path):
    write_tables('sub-01', {'original': (2, 2, 2)})
    write_tables('sub-01', {'original': (3, 3, 3)}, engine='ants')
    write_tables('sub-01', {'original': (2.5, 2.5, 2.5)})
    path = tmp_path / 'out/sub-01/anat/sub-01_seg-DK_desc-original_morph.tsv'
    rows = layout.read_tsv(path)
    assert len(rows) == 2 * 70
    assert {(row['engine'], row['thickness_mm']) for row in rows} == {('ants', 3), ('pbt', 2.5)}
    assert set(json.loads(layout.sidecar(path).read_text())['Engines']) == {'ants', 'pbt'}
    by_name = {row['name']: row for row in rows}
    assert (by_name['lh_cuneus']['index'], by_name['rh_insula']['index']) == (1005, 2035)
    assert by_name['rh_insula']['hemisphere'] == 'R'


def test_rows_without_a_word_in_the_sidecar_are_not_read(write_tables, tmp_path, run_group):
    write_tables('sub-01', {'original': (2, 2, 2), 'filled': (2, 2, 2)})
    path = tmp_path / 'out/sub-01/anat/sub-01_seg-DK_desc-filled_morph.tsv'
    layout.write_json(layout.sidecar(path), {})  # as a killed run leaves it
    assert run_group() == cli.OK
    assert read(tmp_path, 'phenotype/thickness.tsv') == []


@pytest.mark.slow
def test_a_thousand_participants_take_seconds(write_tables, run_group, tmp_path):
    write_tables('sub-0000', {desc: (2, 2, 2) for desc in layout.THICKNESS_DESCS})
    source = tmp_path / 'out/sub-0000/anat'
    for number in range(1, 1000):
        folder = tmp_path / f'out/sub-{number:04}/anat'
        folder.mkdir(parents=True)
        for path in source.iterdir():
            (folder / path.name.replace('0000', f'{number:04}')).write_bytes(path.read_bytes())
    started = time.process_time()
    assert run_group() == cli.OK
    assert time.process_time() - started < 30
    assert read(tmp_path, 'group_reproducibility.tsv')[0]['n'] == 1000
