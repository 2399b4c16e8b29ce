"""A filler, a thickness engine and a modality from outside the package are used like those of the app."""

import re
import sys

import nibabel as nib
import numpy as np
import pytest
from bids_examples import find, mask_path, t1w_path, write_bids

from bids_lesionfill import fill_lesions, modality, plugins, text_files
from bids_lesionfill.app import cli, exit_codes
from bids_lesionfill.diffusion import models
from bids_lesionfill.diffusion import registry as fillers
from bids_lesionfill.diffusion.filler import Sampling
from bids_lesionfill.evaluate import cli as evaluate_cli
from bids_lesionfill.evaluate.methods import BASELINES, ModelMethod
from bids_lesionfill.lesions import contrasts
from bids_lesionfill.report import references
from bids_lesionfill.thickness import engine, registry
from bids_lesionfill.thickness import tables as thickness_tables

PACKAGE = '''
import numpy as np

from bids_lesionfill.diffusion.filler import Record
from bids_lesionfill.modality import Modality
from bids_lesionfill.thickness import engine, tables

BIBTEX = """@article{toy2026,
  author = {Toy, A. and Toy, B. and Toy, C.},
  title = {The level of white matter},
  year = {2026},
  journal = {Journal of Toys 1}
}"""


class Level:
    name, sha256, has_texture = 'toy-level', '', True

    def __init__(self, modality):
        self.modality = modality

    def fill(self, volume, lesion_mask, wm_mask, sampling):
        return np.full((len(sampling.seeds), lesion_mask.sum()), 0.5)

    def record(self, sampling):
        return Record(self.name, more={'Level': 0.5})

    def methods(self):
        return 'the level of white matter (Toy et al., 2026)', (BIBTEX,)


class Ruler:
    name, has_noise, reads_results, results_pattern = 'toy-ruler', False, False, 'ruler.txt'
    method, references, packages = 'a ruler (Toy et al., 2026)', (BIBTEX,), ('toy-package',)

    def __init__(self, settings):
        pass

    def check(self):
        return engine.Availability(True, '1')

    def run(self, scan):
        return engine.Measurement(tables.table_of(dict.fromkeys(tables.REGIONS, (2.5, 1)), {'lh': 2.5, 'rh': 2.5}))


SWI = Modality('T2starw', 'T2starw', lesion_sign=1)
'''
ENTRY_POINTS = """[bids_lesionfill.fillers]
toy-level = toy_package:Level
[bids_lesionfill.engines]
toy-ruler = toy_package:Ruler
[bids_lesionfill.modalities]
T2starw = toy_package:SWI
"""


@pytest.fixture
def toy_package(tmp_path, monkeypatch):
    """An installed package with one part of each kind."""
    site = tmp_path / 'site-packages'
    info = site / 'toy_package-1.0.dist-info'
    info.mkdir(parents=True)
    (site / 'toy_package.py').write_text(PACKAGE)
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n')
    (info / 'entry_points.txt').write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(site)
    plugins.brought.cache_clear()
    yield
    sys.modules.pop('toy_package', None)
    plugins.brought.cache_clear()


def test_registry_has_built_in_registered_and_brought_parts(toy_package):
    parts = plugins.Registry('bids_lesionfill.engines', {'join': 'os.path:join'})
    assert parts['join'](*'ab') == 'a/b'
    assert list(parts) == ['join', 'toy-ruler']
    assert parts.register('mine', 7) == parts['mine'] == 7
    del parts['mine']
    with pytest.raises(KeyError, match="'mine' is not in bids_lesionfill.engines, which has join, toy-ruler"):
        parts['mine']


def test_part_that_cannot_be_loaded_is_told_with_its_package(toy_package, tmp_path):
    (tmp_path / 'site-packages/toy_package.py').write_text('import no_such_module')
    words = "'toy-ruler' of bids_lesionfill.engines .* cannot be loaded: No module .*; repair or remove toy-package"
    with pytest.raises(ImportError, match=words):
        registry.make_engine('toy-ruler')


# fillers


@pytest.mark.parametrize('name', fillers.FILLERS)
def test_classical_fillers_fill_normalised_volumes_and_bring_their_works(name, phantom):
    lesion_mask, wm_mask = phantom.lesion_mask > 0, phantom.wm_mask & ~(phantom.lesion_mask > 0)
    volume = phantom.normalised.astype(np.float32)
    filler = fillers.load_filler(name, modality='T1w')
    values = filler.fill(volume.copy(), lesion_mask, wm_mask, Sampling((1, 2)))
    again = filler.fill(volume.copy(), lesion_mask, wm_mask, Sampling((1, 2)))
    assert values.shape == (2, lesion_mask.sum())
    assert np.array_equal(values, again)
    assert np.abs(values.mean() - 0.5) < 0.2 < np.abs(volume[lesion_mask].mean() - 0.5)
    assert (filler.name, filler.modality) == (name, 'T1w')
    assert filler.has_texture == (not np.array_equal(*values))  # what is smooth does not depend on the seed
    words, keys = filler.methods()
    assert set(re.findall(r'[A-Z][a-z]+ et al\., \d{4}', words)) == {references.REFERENCES[key].cited for key in keys}


def test_fill_lesions_takes_a_filler_from_outside(toy_package, phantom):
    filled_img = fill_lesions(phantom.t1w_img, phantom.lesion_mask_img, model='toy-level', rims='grown')
    filled, before = filled_img.get_fdata(), phantom.t1w_img.get_fdata()
    changed = filled != before
    assert changed[phantom.lesion_mask > 0].mean() > 0.9
    level = np.median(before[phantom.wm_mask & ~changed])
    assert (np.abs(filled[changed] - level) < 0.01 * level).mean() > 0.9


def test_app_fills_by_a_filler_from_outside_and_cites_it(toy_package, dataset, tmp_path):
    out = tmp_path / 'out'
    assert cli.main([str(dataset(('01',))), str(out), 'participant', '--model', 'toy-level']) == exit_codes.OK
    sidecar = text_files.read_json(out / 'sub-01/anat/sub-01_desc-filled_T1w.json')
    assert (sidecar['Model'], sidecar['Level']) == ('toy-level', 0.5)
    assert 'were filled' in (citation := (out / 'logs/CITATION.md').read_text())
    assert 'by the level of white matter (Toy et al., 2026).' in citation
    assert '@article{toy2026,' in (out / 'logs/CITATION.bib').read_text()


def test_app_fills_by_biharmonic_interpolation(dataset, tmp_path):
    out = tmp_path / 'out'
    root = dataset(('01',))
    assert cli.main([str(root), str(out), 'participant', '--model', 'biharmonic']) == exit_codes.OK
    sidecar = text_files.read_json(out / 'sub-01/anat/sub-01_desc-filled_T1w.json')
    assert sidecar['Model'] == 'biharmonic'
    assert 'WeightsSHA256' not in sidecar
    filled, before = (nib.load(file).get_fdata() for file in (
        out / 'sub-01/anat/sub-01_desc-filled_T1w.nii.gz', root / t1w_path('01')))  # fmt: skip
    lesions = nib.load(root / mask_path('01')).get_fdata() > 0
    assert filled[lesions].mean() > 1.1 * before[lesions].mean()
    citation = (out / 'logs/CITATION.md').read_text()
    assert 'by biharmonic interpolation.' in citation
    assert 'diffusion model' not in citation.split('Software')[0]


def test_models_and_fillers_are_listed_together(toy_package, capsys):
    with pytest.raises(SystemExit):
        cli.main(['--list-models'])
    rows = [line.split('\t')[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == [*models.list_models(), *fillers.CLASSICAL, 'toy-level']


def test_evaluation_reads_the_same_registry(toy_package):
    lesion_mask = np.zeros((6, 6, 6), dtype=bool)
    lesion_mask[2:4, 2:4, 2:4] = True
    name, is_repaint, fill, sha256 = ModelMethod.parse('toy-level').load('cpu', 'T1w')
    assert (name, is_repaint, sha256) == ('toy-level', False, '')
    filled = fill(np.zeros((6, 6, 6)), lesion_mask, ~lesion_mask, np.random.default_rng(0))
    assert np.array_equal(filled == 0.5, lesion_mask)


def test_classical_filler_among_the_models_of_an_evaluation_is_no_baseline_as_well():
    options = evaluate_cli.parse_options(['in', 'out', '--models', 'fill-T1w', 'patch-match'])
    assert 'patch match' not in options.baselines
    assert set(options.baselines) == set(BASELINES) - {'patch match'}


def test_filler_that_is_not_known_is_told_with_those_that_are():
    with pytest.raises(FileNotFoundError, match='fill-T1w.* fillers without a model are .*biharmonic'):
        fillers.check('no-such-filler', 'fill', 'T1w')
    with pytest.raises(ValueError, match="'biharmonic' fills lesions, expected a model for synth FLAIR"):
        fillers.check('biharmonic', 'synth', 'FLAIR')


# thickness engines


def test_engine_from_outside_is_made_and_cited(toy_package, tmp_path):
    found = registry.make_engines(['toy-ruler'])['toy-ruler']
    assert found.run(None).table.thickness_mm[thickness_tables.REGIONS[0]] == 2.5
    assert 'before and after filling by a ruler (Toy et al., 2026); regions' in registry.methods_text(['toy-ruler'])
    (tmp_path / 'results/sub-01').mkdir(parents=True)
    (tmp_path / 'results/sub-01/ruler.txt').touch()
    assert registry.has_results(tmp_path / 'results')
    assert not registry.has_results(tmp_path / 'results', ['dldirect'])


def test_app_knows_an_engine_from_outside(toy_package, dataset, tmp_path):
    out, arguments = tmp_path / 'out', ['--model', 'toy-level', '--thickness', 'toy-ruler']
    assert cli.main([str(dataset(('01',))), str(out), 'participant', *arguments]) == exit_codes.OK
    assert 'toy-package 1.0' in (out / 'logs/CITATION.md').read_text()
    rows = text_files.read_tsv(out / 'sub-01/anat/sub-01_seg-DK_desc-filled_morph.tsv')
    assert {row['engine'] for row in rows} == {'toy-ruler'}


def test_engines_that_are_not_available_are_told_by_name(monkeypatch):
    class Missing:
        def __init__(self, settings):
            pass

        def check(self):
            return engine.Availability(False, '', 'no ruler', 'buy one')

    monkeypatch.setitem(registry.ENGINES, 'missing', Missing)
    with pytest.raises(engine.EngineUnavailable, match='missing: no ruler; buy one'):
        registry.make_engines(['missing'])


# modalities


@pytest.mark.parametrize('name', ['T2starw', 'T2w', 'PDw', 'UNIT1'])
def test_modality_is_paired_with_mask_and_t1w_of_the_visit(toy_package, tmp_path, img, name):
    image_path = t1w_path('01', '1').replace('T1w', name)
    images = {t1w_path('01', session): img for session in '12'} | {mask_path('01', session): img for session in '12'}
    root = write_bids(tmp_path / 'data', images | {image_path: img})
    (inputs,) = find(root, modality=name)['01']
    assert (inputs.modality, inputs.contrast, inputs.problem) == (name, name, '')
    assert inputs.image_file == root / image_path
    assert inputs.tissue_file == root / t1w_path('01', '1')
    assert inputs.lesion_mask_file == root / mask_path('01', '1')


def test_mask_in_the_space_of_a_t2w_is_drawn_on_that_t2w(tmp_path, img):
    mask = mask_path('01', extra='space-T2w_')
    root = write_bids(tmp_path, {t1w_path('01'): img, t1w_path('01').replace('T1w', 'T2w'): img, mask: img})
    (t2w,), (t1w,) = (find(root, modality=name)['01'] for name in ('T2w', 'T1w'))
    assert (t2w.lesion_mask_file, t2w.mask_space) == (root / mask, 'T2w')
    assert (t1w.lesion_mask_file, t1w.mask_space, t1w.drawn_on) == (root / mask, 'T2w', 'T2w')  # to be registered


def test_phase_of_an_image_is_none_of_its_images(tmp_path, img):
    images = {t1w_path('01', extra=f'part-{part}_').replace('T1w', 'T2w'): img for part in ('mag', 'phase')}
    root = write_bids(tmp_path, images | {t1w_path('01'): img, mask_path('01'): img})
    assert [image.name for image in find(root, modality='T2w')['01']] == ['sub-01_part-mag_T2w']


def test_app_fills_a_t2w_by_the_model_of_the_t1w(dataset, make_phantom, tmp_path):
    phantom = make_phantom(seed=0)
    image = t1w_path('01').replace('T1w', 'T2w')
    root, out = dataset(('01',), **{image: phantom.img(phantom.flair)}), tmp_path / 'out'
    assert cli.main([str(root), str(out), 'participant', '--modality', 'T2w']) == exit_codes.OK
    sidecar = text_files.read_json(out / 'sub-01/anat/sub-01_desc-filled_T2w.json')
    assert (sidecar['Model'], sidecar['LesionSign']) == ('fill-T1w', 1)
    filled, before = (nib.load(path).get_fdata() for path in (
        out / 'sub-01/anat/sub-01_desc-filled_T2w.nii.gz', root / image))  # fmt: skip
    lesions, healthy = phantom.lesion_mask > 0, phantom.wm_mask & (filled == before)
    level = before[healthy].mean()
    assert np.abs(filled[lesions].mean() - level) < 0.25 * np.abs(before[lesions].mean() - level)
    assert 'fill-T1w' in (out / 'logs/CITATION.md').read_text()


def test_modality_knows_what_its_models_were_made_for():
    fillers.check('fill-T1w', 'fill', 'T2w')
    with pytest.raises(ValueError, match="'fill-T1w' was made for fill T1w, expected one for fill FLAIR"):
        fillers.check('fill-T1w', 'fill', 'FLAIR')
    with pytest.raises(FileNotFoundError, match="model 'synth-T2w' is neither bundled"):
        fillers.check('synth-T2w', 'synth', 'T2w')
    assert fillers.load_filler('fill-T1w', modality='T2w').modality == 'T2w'


@pytest.mark.parametrize(
    ('filename', 'name', 'sign'),
    [
        ('sub-01_T1w.nii.gz', 'T1w', -1),
        ('sub-01_ses-1_FLAIR', 'FLAIR', 1),
        ('sub-01_acq-ce_UNIT1.nii', 'UNIT1', -1),
        ('sub-01_ce-gad_T1w.nii.gz', 'T1w after contrast agent', None),
        ('sub-01_ce-gad_FLAIR.nii.gz', 'FLAIR', 1),
        ('sub-01_bold.nii.gz', 'image', None),
    ],
)
def test_contrast_agent_is_told_by_the_name(filename, name, sign):
    found = modality.of_file(filename)
    assert (found.name, found.lesion_sign) == (name, sign)
    assert modality.get(found.name) is found


def test_unknown_modality_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="modality is 'T9w', expected one of T1w, FLAIR, T2w, PDw, UNIT1"):
        modality.get('T9w')


# sign of lesions


@pytest.mark.parametrize('sign', [-1, 1])
def test_sign_of_lesions_is_measured_next_to_them(sign, phantom):
    """White matter is brighter on one side of the head than a lesion on the other, whatever its sign."""
    lesion_mask, wm_mask = phantom.lesion_mask > 0, phantom.wm_mask & ~(phantom.lesion_mask > 0)
    ramp = 0.05 * np.arange(lesion_mask.shape[0])[:, None, None]
    image = ramp + 0.05 * np.random.default_rng(0).normal(size=lesion_mask.shape) + sign * 0.1 * lesion_mask
    assert contrasts.lesion_sign(image, lesion_mask, wm_mask) == sign
    assert contrasts.lesion_sign(1000 * image + 500, lesion_mask, wm_mask, usual=-sign) == sign


def test_sign_of_lesions_is_the_usual_one_where_nothing_can_be_measured():
    image, nothing, everything = np.zeros((5, 5, 5)), np.zeros((5, 5, 5), bool), np.ones((5, 5, 5), bool)
    assert contrasts.lesion_sign(image, nothing, everything, usual=1) == 1
    assert contrasts.lesion_sign(image, everything, nothing, usual=1) == 1
    assert contrasts.lesion_sign(image, nothing, everything) == -1


def test_modalities_that_a_task_takes_are_a_fact_of_the_modality():
    assert modality.defaults('fill') == ('T1w',)
    assert modality.defaults('synth') == ('FLAIR', 'T1w')  # in the order in which they are painted
    assert [name for name in modality.NAMES if modality.get(name).is_measured] == ['T1w']
