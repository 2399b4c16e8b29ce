"""Engines that read or call other programs: their files, and what they say if something is missing."""

import dataclasses
import signal
import stat
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from freesurfer_examples import stats_text, write_stats

from bids_lesionfill.thickness import anatomy, cortex, registry, tables
from bids_lesionfill.thickness import engine as thickness_engine
from bids_lesionfill.thickness.engines import ants, antspynet, direct, dldirect, freesurfer, tools


def scan_of(desc, name='sub-01', tmp_path=Path('.'), visit=''):
    img = nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4))
    return thickness_engine.Scan(img, tmp_path / 't1w.nii.gz', name, desc, visit)


def result_text(regions=tables.REGIONS):
    names = [name.replace('_', '-', 1) for name in regions] + ['lh-MeanThickness', 'rh-MeanThickness']
    values = [f'{2 + n / 100:.2f}' for n in range(len(regions))] + ['2.4', '2.6']
    return ','.join(['SUBJECT', *names]) + '\n' + ','.join(['sub-01', *values]) + '\n'


# ----------------------------------------------------------------------------------------------------------- FreeSurfer


def test_stats_file_gives_thickness_vertices_and_mean():
    regions, mean_mm = freesurfer.read_stats(stats_text().splitlines())
    assert mean_mm == 2.46
    assert regions['bankssts'] == (2.5, 100)
    assert regions['insula'] == (2.83, 133)
    assert len(regions) == 34


def test_stats_of_another_atlas_are_refused():
    with pytest.raises(ValueError, match='G_cuneus'):
        freesurfer.read_stats(stats_text(regions=['G_cuneus']).splitlines())
    with pytest.raises(ValueError, match='0 regions'):
        freesurfer.read_stats(['# nothing'])


@pytest.mark.parametrize(('original', 'filled'), [
    ('original/sub-01', 'filled/sub-01'),
    ('subjects/sub-01', 'subjects/sub-01_desc-filled'),
    ('raw/sub-01', 'filled/sub-01'),
])  # fmt: skip
@pytest.mark.parametrize('name', ['freesurfer', 'fastsurfer'])
def test_stats_of_the_original_and_the_filled_image_are_told_apart(tmp_path, name, original, filled):
    write_stats(tmp_path / original, thick=2.0)
    write_stats(tmp_path / filled, thick=2.2)
    roots = {Path(path).parts[0]: tmp_path / Path(path).parts[0] for path in (original, filled)}
    engine = registry.make_engine(name, thickness_engine.Settings(roots))
    assert engine.check().ok
    found = {desc: engine.run(scan_of(desc)).table.thickness_mm['lh_bankssts'] for desc in ('original', 'filled')}
    assert found == {'original': 2.0, 'filled': 2.2}


def test_regions_of_freesurfer_are_read_as_voxels_where_they_are_there(tmp_path):
    write_stats(tmp_path / 'filled/sub-01')
    engine = registry.make_engine('freesurfer', thickness_engine.Settings({'filled': tmp_path / 'filled'}))
    assert engine.run(scan_of('filled')).regions_img is None
    labels = np.zeros((4, 4, 4), np.int32)
    labels[0, 0, :3] = 1001, 2035, 1004  # bankssts, right insula, corpus callosum
    turned = nib.as_closest_canonical(nib.Nifti1Image(labels, np.eye(4))).as_reoriented([[0, -1], [1, 1], [2, 1]])
    (tmp_path / 'filled/sub-01/mri').mkdir()
    label_file = tmp_path / 'filled/sub-01' / freesurfer.REGIONS
    nib.save(nib.MGHImage(np.asarray(turned.dataobj), turned.affine), label_file)
    regions = np.asarray(engine.run(scan_of('filled')).regions_img.dataobj)
    assert regions[0, 0].tolist() == [1, 68, 0, 0]
    assert regions.sum() == 69


def test_missing_stats_are_named_with_where_they_were_looked_for(tmp_path):
    write_stats(tmp_path / 'subjects/sub-01')
    engine = registry.make_engine('freesurfer', thickness_engine.Settings({'subjects': tmp_path / 'subjects'}))
    with pytest.raises(FileNotFoundError, match='sub-01_desc-filled/stats/lh.aparc.stats'):
        engine.run(scan_of('filled'))


def test_dkt_stats_say_what_fastsurfer_needs(tmp_path):
    write_stats(tmp_path / 'subjects/sub-01', regions=['somewhere'])
    engine = registry.make_engine('fastsurfer', thickness_engine.Settings({'subjects': tmp_path / 'subjects'}))
    with pytest.raises(ValueError, match='--fsaparc'):
        engine.run(scan_of('original'))


def test_the_same_scan_in_two_folders_is_an_error(tmp_path):
    for folder in ('a', 'b'):
        write_stats(tmp_path / folder / 'sub-01')
    with pytest.raises(ValueError, match='2 files for sub-01'):
        tools.find_results({'a': tmp_path / 'a', 'b': tmp_path / 'b'}, scan_of('original'), 'stats/lh.aparc.stats')


def test_the_given_names_say_which_folder_is_which_whatever_they_are_called_on_disk(tmp_path):
    write_stats(tmp_path / 'fs_raw/sub-01', thick=2.0)
    write_stats(tmp_path / 'original_of_mine/sub-01', thick=2.2)
    roots = {'Unfilled': tmp_path / 'fs_raw', 'Filled': tmp_path / 'original_of_mine'}
    engine = registry.make_engine('freesurfer', thickness_engine.Settings(roots))
    found = {desc: engine.run(scan_of(desc)).table.thickness_mm['lh_bankssts'] for desc in ('original', 'filled')}
    assert found == {'original': 2.0, 'filled': 2.2}


def test_other_tools_call_the_only_t1w_of_a_visit_by_the_visit(tmp_path):
    write_stats(tmp_path / 'subjects/sub-01_ses-2')
    engine = registry.make_engine('freesurfer', thickness_engine.Settings({'subjects': tmp_path / 'subjects'}))
    name = 'sub-01_ses-2_acq-mprage_run-1'
    assert engine.run(scan_of('original', name, visit='sub-01_ses-2')).table.thickness_mm['lh_bankssts'] == 2.5
    with pytest.raises(FileNotFoundError, match='is not there'):  # one of two T1w
        engine.run(scan_of('original', name))


def test_freesurfer_and_fastsurfer_are_told_apart_by_the_segmentation(tmp_path):
    for folder, file, thick in (('fs', 'aseg.mgz', 2.0), ('fast', 'aparc.DKTatlas+aseg.deep.mgz', 2.3)):
        write_stats(tmp_path / folder / 'sub-01', thick=thick)
        (tmp_path / folder / 'sub-01/mri').mkdir()
        (tmp_path / folder / 'sub-01/mri/aseg.mgz').write_text('')
        (tmp_path / folder / 'sub-01/mri' / file).write_text('')
    settings = thickness_engine.Settings({'fs': tmp_path / 'fs', 'fast': tmp_path / 'fast'})
    measured = {
        name: registry.make_engine(name, settings).run(scan_of('original')).table.thickness_mm['lh_bankssts']
        for name in ('freesurfer', 'fastsurfer')
    }
    assert measured == {'freesurfer': 2.0, 'fastsurfer': 2.3}
    only_fast = thickness_engine.Settings({'fast': tmp_path / 'fast'})
    assert not registry.make_engine('freesurfer', only_fast).check().ok


@pytest.mark.parametrize('has_work_dir', [True, False])
def test_recon_all_is_begun_anew_for_another_image(tmp_path, monkeypatch, has_work_dir):
    pytest.importorskip('nipype')
    program = tmp_path / 'bin/recon-all'
    program.parent.mkdir()
    stats = tmp_path / 'text'
    stats.write_text(stats_text())
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nwhile [ $# -gt 0 ]; do\n'
        '  case "$1" in -subjid) subject=$2 ;; -sd) folder=$2 ;; esac\n  shift\ndone\n'
        'mkdir -p "$folder/$subject/stats" "$folder/$subject/mri/orig"\n'
        f'for side in lh rh; do cp {tmp_path}/text "$folder/$subject/stats/$side.aparc.stats"; done\n'
    )  # fmt: skip
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent), prepend=':')
    monkeypatch.setenv('FS_LICENSE', str(program))
    monkeypatch.setenv('FREESURFER_HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    engine = registry.make_engine(
        'freesurfer', thickness_engine.Settings(work_dir=tmp_path / 'w' if has_work_dir else None)
    )
    scan = scan_of('filled', tmp_path=tmp_path)
    for text in ('one image', 'another'):
        scan.t1w_file.write_text(text)
        assert engine.run(scan).table.hemisphere_mm == {'lh': 2.46, 'rh': 2.46}
    calls = (tmp_path / 'calls').read_text().splitlines()
    subjects = [call.split('-subjid ')[1].split()[0] for call in calls]
    assert len(set(subjects)) == 2
    assert all(subject.startswith('sub-01_desc-filled_') for subject in subjects)
    assert all(f'-i {scan.t1w_file}' in call for call in calls)
    left = {path.name for path in tmp_path.iterdir()} - {'bin', 'text', 'calls', 't1w.nii.gz'}
    assert left == ({'w'} if has_work_dir else set())


def test_recon_all_needs_its_licence(tmp_path, monkeypatch):
    pytest.importorskip('nipype')
    program = tmp_path / 'recon-all'
    program.write_text('#!/bin/sh\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('FREESURFER_HOME', raising=False)
    monkeypatch.delenv('FS_LICENSE', raising=False)
    assert not registry.make_engine('freesurfer').check().ok
    monkeypatch.setenv('FS_LICENSE', str(program))
    assert registry.make_engine('freesurfer').check().version == 'recon-all by nipype'


# ------------------------------------------------------------------------------------------------------------ DL+DiReCT


def test_result_of_dldirect_is_read(tmp_path):
    for root, text in (('original', result_text()), ('filled', result_text().replace('2.4,', '2.5,'))):
        (tmp_path / root / 'sub-01').mkdir(parents=True)
        (tmp_path / root / 'sub-01' / 'result-thick.csv').write_text(text)
    roots = {name: tmp_path / name for name in ('original', 'filled')}
    engine = registry.make_engine('dldirect', thickness_engine.Settings(roots))
    assert engine.check().ok
    table = engine.run(scan_of('original')).table
    assert table.thickness_mm['lh_bankssts'] == 2.0
    assert table.thickness_mm['rh_insula'] == 2.67
    assert table.global_mm == 2.5
    assert engine.run(scan_of('filled')).table.hemisphere_mm == {'lh': 2.5, 'rh': 2.6}


def test_result_of_another_model_is_refused():
    with pytest.raises(ValueError, match='model v0 or v6'):
        dldirect.read_result(['SUBJECT,lh-G_cuneus', 'sub-01,2.0'])
    with pytest.raises(ValueError, match='0 rows'):
        dldirect.read_result(result_text().splitlines()[:1])


def test_direct_that_fails_says_why_and_leaves_nothing(tmp_path):
    nothing = np.zeros((12, 12, 12))
    with pytest.raises(RuntimeError, match='(?s)DiReCT ended with 1: .*failed to compute thickness'):
        direct.estimate(nothing, nothing, nothing, 2, 0.1, 5, 1.5, tmp_path)
    assert not list(tmp_path.iterdir())


def test_direct_ends_when_its_parent_does(tmp_path):
    labels = np.zeros((24, 24, 24))
    labels[6:18, 6:18, 6:18] = 2
    labels[9:15, 9:15, 9:15] = 3
    options = np.array([200, 0.2, 5, 1.5])
    np.savez(tmp_path / 'in.npz', labels=labels, grey=labels == 2, white=labels == 3, options=options)
    process = direct.start(tmp_path)
    process.stdout.close()  # as the system does for a parent that is killed
    assert process.wait(60) == -signal.SIGPIPE
    assert not (tmp_path / 'out.npy').exists()


def test_dldirect_is_called_with_files_of_its_own_and_its_failure_is_told(tmp_path, monkeypatch):
    program = tmp_path / 'bin' / 'dl+direct'
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nfor last; do :; done\n/bin/mkdir -p "$last"\n'
        f'/bin/cat > "$last/result-thick.csv" <<\'END\'\n{result_text()}END\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent))
    engine = registry.make_engine('dldirect', thickness_engine.Settings(work_dir=tmp_path))
    assert engine.check().ok
    assert engine.run(scan_of('original')).table.global_mm == 2.5
    assert [path.name for path in tmp_path.iterdir()] == ['bin']
    program.write_text('#!/bin/sh\necho no weights >&2\nexit 3\n')
    with pytest.raises(RuntimeError, match='ended with 3: no weights'):
        engine.run(scan_of('original'))


# ----------------------------------------------------------------------------------------------- ANTsPyNet, ANTs script


def test_antspynet_names_the_files_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv('ANTSXNET_CACHE_DIRECTORY', str(tmp_path))
    monkeypatch.setattr(antspynet.importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(antspynet.importlib.metadata, 'version', lambda name: '0')
    (tmp_path / antspynet.FILES[0]).write_text('')
    check = registry.make_engine('antspynet').check()
    assert not check.ok
    assert check.reason.startswith(f'4 of 5 files are missing in {tmp_path}')
    assert antspynet.FILES[0] not in check.reason
    assert antspynet.FILES[4] in check.reason
    assert '--allow-download' in check.how_to_get
    assert registry.make_engine('antspynet', thickness_engine.Settings(allow_download=True)).check().ok


def test_ants_program_is_used_only_with_a_template_and_its_command_is_nipypes(tmp_path, monkeypatch):
    pytest.importorskip('nipype')
    assert registry.make_engine('ants').template_dir is None
    program = tmp_path / ants.SCRIPT
    program.write_text('#!/bin/sh\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    monkeypatch.setenv(ants.TEMPLATE_VARIABLE, str(tmp_path))
    check = registry.make_engine('ants').check()
    assert not check.ok
    assert 'T_template0.nii.gz' in check.reason
    (tmp_path / 'Priors2').mkdir()
    for name in ('T_template0', 'T_template0_BrainCerebellumProbabilityMask', 'T_template0_BrainCerebellum',
                 'Priors2/priors1', 'Priors2/priors2'):  # fmt: skip
        (tmp_path / f'{name}.nii.gz').write_text('')
    assert registry.make_engine('ants').check().version.startswith(ants.SCRIPT)
    interface = tools.nipype_interface('ants', 'CorticalThickness')(
        anatomical_image=str(program), out_prefix='out/', **ants.script_arguments(tmp_path)
    )
    words = interface.cmdline.split()
    assert words[0] == ants.SCRIPT
    assert words[words.index('-e') + 1] == str(tmp_path / 'T_template0.nii.gz')
    assert words[words.index('-m') + 1].endswith('ProbabilityMask.nii.gz')


@pytest.fixture
def found(monkeypatch):
    """An anatomy of 1 mm without any registration: cortex of 3 voxels, all of it one region; a scan of 0.7 mm."""
    ribbon = np.zeros((20, 20, 20), np.uint8)
    ribbon[4:7], ribbon[7:] = cortex.CORTEX, cortex.INSIDE
    seg = np.choose(ribbon, [1, 2, 3]).astype(np.uint8)
    fractions = np.stack([seg == tissue for tissue in (1, 2, 3)]).astype(np.float32)
    regions = (ribbon == cortex.CORTEX).astype(np.int16)
    found = anatomy.Anatomy(fractions, seg, ribbon, regions, np.eye(4), {'Parcellation': 'one'})
    monkeypatch.setattr(anatomy, 'anatomy_of', lambda scan: found)
    return found


@pytest.fixture
def fine_scan(tmp_path):
    """A T1w of 0.7 mm of the same place."""
    affine = nib.affines.from_matvec(np.diag([0.7, 0.7, 0.7]), (-0.15, -0.15, -0.15))
    img = nib.Nifti1Image(np.ones((28, 28, 28), np.float32), affine)
    return dataclasses.replace(scan_of('original', tmp_path=tmp_path), t1w_img=img)


def fine_maps(found, scan, label):
    """What a program makes of it: 2.5 mm everywhere in the cortex, and classes with a block of another label."""
    here = anatomy.Anatomy(*(getattr(found, f.name) for f in dataclasses.fields(found)))
    seg = np.asarray(here.seg_img(scan.t1w_img).dataobj).copy()
    thickness_mm = np.where(seg == 2, 2.5, 0).astype(np.float32)
    seg[20:24, 20:24, 20:24] = label
    return thickness_mm, seg


def test_thickness_of_other_voxels_is_not_mixed_with_the_zeros_beside_the_cortex(found, fine_scan):
    thickness_mm, _ = fine_maps(found, fine_scan, 3)
    values = anatomy.sample_thickness(nib.Nifti1Image(thickness_mm, fine_scan.t1w_img.affine), found)
    assert values[4:7, 1:18, 1:18].min() == pytest.approx(2.5)  # the T1w ends at 18.75 mm
    assert values.max() == pytest.approx(2.5)
    assert values[9:].max() == 0


@pytest.mark.parametrize(('label', 'tissue'), [(4, 2), (5, 3), (6, 3)])  # the cerebellum: as the anatomy has it
def test_six_classes_of_ants_become_three(found, fine_scan, label, tissue):
    _, seg = fine_maps(found, fine_scan, label)
    classes_img = anatomy.classes_of_six(nib.Nifti1Image(seg, fine_scan.t1w_img.affine), fine_scan, found)
    classes = np.asarray(classes_img.dataobj)
    assert set(classes[20:24, 20:24, 20:24].ravel()) == {tissue}
    assert set(np.unique(classes)) <= {0, 1, 2, 3}


def test_antspynet_is_told_where_its_weights_are_and_its_maps_are_averaged(tmp_path, monkeypatch, found, fine_scan):
    import ants as antspyx

    thickness_mm, seg = fine_maps(found, fine_scan, 5)
    nib.save(nib.Nifti1Image(thickness_mm, fine_scan.t1w_img.affine), tmp_path / 'thickness.nii.gz')
    nib.save(nib.Nifti1Image(seg, fine_scan.t1w_img.affine), tmp_path / 'seg.nii.gz')
    told = []
    module = types.SimpleNamespace(
        set_antsxnet_cache_directory=told.append,
        cortical_thickness=lambda img: {
            'thickness_image': antspyx.image_read(str(tmp_path / 'thickness.nii.gz')),
            'segmentation_image': antspyx.image_read(str(tmp_path / 'seg.nii.gz')),
        },
    )
    monkeypatch.setitem(sys.modules, 'antspynet', module)
    monkeypatch.setenv('ANTSXNET_CACHE_DIRECTORY', str(tmp_path))
    measurement = registry.make_engine('antspynet').run(fine_scan)
    assert told == [str(tmp_path)]
    assert measurement.table.thickness_mm[tables.REGIONS[0]] == pytest.approx(2.5)
    assert measurement.tissue_seg_img.shape == fine_scan.t1w_img.shape


OTHER_FILES_OF_ANTS = (  # that nipype's interface waits for
    *('BrainSegmentationPosteriors01.nii.gz', 'BrainSegmentationPosteriors02.nii.gz', 'BrainExtractionMask.nii.gz'),
    *('ExtractedBrain0N4.nii.gz', 'BrainSegmentation0N4.nii.gz', 'brainvols.csv'),
    *('TemplateToSubject1GenericAffine.mat', 'TemplateToSubject0Warp.nii.gz', 'SubjectToTemplate1Warp.nii.gz'),
    *('SubjectToTemplate0GenericAffine.mat', 'SubjectToTemplateLogJacobian.nii.gz'),
)


def test_ants_program_is_run_without_the_clock_for_a_seed_and_its_maps_are_averaged(
    tmp_path, monkeypatch, found, fine_scan
):
    pytest.importorskip('nipype')
    thickness_mm, seg = fine_maps(found, fine_scan, 6)
    nib.save(nib.Nifti1Image(thickness_mm, fine_scan.t1w_img.affine), tmp_path / 'thickness.nii.gz')
    nib.save(nib.Nifti1Image(seg, fine_scan.t1w_img.affine), tmp_path / 'seg.nii.gz')
    program = tmp_path / ants.SCRIPT
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nwhile [ $# -gt 0 ]; do\n'
        '  case "$1" in -o) prefix=$2 ;; esac\n  shift\ndone\n'
        f'cp {tmp_path}/thickness.nii.gz "${{prefix}}CorticalThickness.nii.gz"\n'
        f'cp {tmp_path}/seg.nii.gz "${{prefix}}BrainSegmentation.nii.gz"\n'
        f'for name in {" ".join(OTHER_FILES_OF_ANTS)}; do touch "$prefix$name"; done\n'
    )  # fmt: skip
    program.chmod(0o755)
    (tmp_path / 'Priors2').mkdir()
    for name in ('T_template0', 'T_template0_BrainCerebellumProbabilityMask', 'T_template0_BrainCerebellum',
                 'Priors2/priors1', 'Priors2/priors2'):  # fmt: skip
        (tmp_path / f'{name}.nii.gz').write_text('')
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    monkeypatch.setenv(ants.TEMPLATE_VARIABLE, str(tmp_path))
    assert 'antsCorticalThickness.sh (Tustison et al., 2014)' in registry.methods_text(['ants'])
    measurement = registry.make_engine('ants').run(fine_scan)
    assert '-u 0' in (tmp_path / 'calls').read_text()
    assert measurement.table.thickness_mm[tables.REGIONS[0]] == pytest.approx(2.5)
    assert set(np.unique(measurement.tissue_seg_img.dataobj)) <= {0, 1, 2, 3}
    assert '-u 0' in measurement.info['Thickness']
