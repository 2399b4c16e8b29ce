"""Facts about the paragraph for a paper and its references."""

import re
from pathlib import Path

import pytest

from bids_lesionfill.app import options as app_options
from bids_lesionfill.app import participant
from bids_lesionfill.diffusion import models
from bids_lesionfill.layout import tools as layout_tools
from bids_lesionfill.report import methods, references
from bids_lesionfill.thickness import registry

VERSIONS = dict.fromkeys(methods.SOFTWARE, '9.9')
EVERY_RUN = {'uhr2024', 'uhr2025', 'gorgolewski2017', 'fisch2024', 'tustison2010', 'mattes2003'}
EVERY_RUN |= {'paszke2019', 'vonplaten2022', 'lowekamp2013'}
EVERY_RUN |= {'marcus2007', 'lesjak2018', 'guarnera2025'}  # whose images the models were trained on
DDIM = {'song2021', 'salimans2022'}
RUNS = {
    'as is': ({}, (), DDIM),
    'FLAIR': ({'modalities': ('T1w', 'FLAIR')}, (), DDIM),
    'other tools': (
        {},
        ('SAMSEG', 'LST-AI', 'SynthSeg'),
        {*DDIM, 'cerri2021', 'wiltgen2024', 'billot2023'},
    ),
    **{
        name: ({'segmenter': name}, (), {*DDIM, work})
        for name, work in (
            ('lst-ai', 'wiltgen2024'),
            ('mindglide', 'goebl2025'),
            ('nnunet', 'isensee2021'),
            ('samseg', 'cerri2021'),
        )
    },
    'thickness': (
        {'thickness': tuple(registry.ENGINES)},
        (),
        {*DDIM, 'dahnke2013', 'fonov2011', 'avants2008', 'das2009', 'tustison2021', 'rebsamen2020'}
        | {'fischl2012', 'henschel2020', 'desikan2006'},
    ),
    'drawn': ({'mode': 'synth', 'modalities': ('FLAIR', 'T1w')}, (), DDIM),
    'given': ({'mode': 'synth', 'modalities': ('T1w',), 'new_mask_file': Path('m.nii')}, (), DDIM),
    'borrowed': (
        {'mode': 'synth', 'modalities': ('T1w',), 'mask_from': '02'},
        (),
        {*DDIM, 'avants2008', 'tustison2021'},
    ),
}


def text_of(tools=(), plans=None, **options):
    options = app_options.Options(Path('in'), Path('out'), version='1.2', **options)
    plans = plans or {modality: participant.plan_of(options, modality) for modality in options.modalities}
    return methods.methods_text(options, plans, VERSIONS, tools)


def test_methods_text_says_what_each_model_starts_from():
    text = text_of(modalities=('T1w', 'FLAIR'))
    assert 'fill-T1w, starting from biharmonic interpolation; ' in text
    assert 'fill-FLAIR, starting from the mean of the white matter around)' in text
    assert 'bids_lesionfill 1.2' in text


@pytest.mark.parametrize(('options', 'tools', 'works'), RUNS.values(), ids=RUNS)
def test_works_that_are_listed_are_those_that_the_text_cites(options, tools, works):
    text = text_of(tools, **options)
    files = references.citation(text)
    listed = set(re.findall(r'@\w+\{(\w+),', files['bib']))
    assert listed == EVERY_RUN | works
    mentions = re.findall(r'((?:von )?[A-Z][a-z]+(?: et al\.| and [A-Z][a-z]+)?, (?:19|20)\d\d)', text)
    assert set(mentions) == {references.REFERENCES[key].cited for key in listed}
    assert files['md'].count('\n- ') == len(listed)


@pytest.mark.parametrize(
    ('dilate', 'rim_voxels', 'sentence'),
    [
        (0, 0, 'The lesion mask was not grown; voxels outside it were left as they were.'),
        (1, 0, 'The lesion mask was grown by 1 voxel within white matter; voxels'),
        (0, 1, 'The lesion mask was grown by up to 1 voxel where white matter was as dark (T1w) as the rim'),
        (2, 3, 'The lesion mask was grown by 2 voxels within white matter and by up to 3 more where'),
    ],
)
def test_text_says_how_far_the_mask_grew(dilate, rim_voxels, sentence):
    assert sentence in text_of(rims='grown', dilate=dilate, rim_voxels=rim_voxels)


def test_text_says_that_rims_were_unmixed():
    text = text_of()
    assert 'the share of lesion in each voxel was estimated and removed' in text
    assert 'grown' not in text


def test_text_says_which_lesions_were_kept_and_how_many_samples_were_drawn():
    text = text_of(lesion_labels=(3, 7), min_lesion_volume=5.0, n_samples=4)
    assert 'Lesions without the labels 3, 7 or smaller than 5 mm3 were left as they were.' in text
    assert 'The mean of 4 samples was filled in.' in text
    assert f'in {models.STEPS_FOR_SEVERAL_SAMPLES} steps' in text
    assert 'sampled by DDIM (Song et al., 2021) in 1 step.' in text_of()
    assert 'in 25 steps.' in text_of(num_inference_steps=25)


def test_texture_of_new_lesions_is_described_where_it_is_not_the_networks_own():
    plan = {'form': {'kind': 'residual', 'base': 'lesion'}, 'num_inference_steps': 1}
    synth = {'mode': 'synth', 'plans': {'FLAIR': plan}, 'modalities': ('FLAIR',)}
    assert 'noise of the tissue in their place was kept' in text_of(**synth)
    assert 'noise of the tissue' not in text_of(**synth, num_inference_steps=20)
    assert 'noise of the tissue' not in text_of(**synth, texture='mean')


def test_an_unconditional_model_is_one_of_repaint():
    plan = {'form': {'kind': 'unconditional'}, 'prediction_type': 'epsilon', 'num_inference_steps': 250}
    text = text_of(plans={'T1w': plan})
    assert 'pseudo-3D diffusion model (Uhr, 2024; Uhr et al., 2025; fill-T1w), sampled by RePaint' in text
    assert 'v-prediction' not in text
    assert 'song2021' not in references.citation(text)['bib']


def test_text_credits_the_training_data_of_the_models_of_the_app_alone():
    assert set(methods.BUNDLED) == set(models.list_models())
    both = text_of(modalities=('T1w', 'FLAIR'))
    assert 'The models fill-T1w and fill-FLAIR had been trained on images of OASIS-1 (Marcus et al., 2007' in both
    own = text_of(model='/models/mine', plans={'T1w': {}})
    assert 'OASIS' not in own
    assert 'marcus2007' not in references.citation(own)['bib']


def test_versions_are_said_of_what_was_used():
    assert 'torch 9.9 (Paszke et al., 2019)' in text_of()
    assert 'antspyx 9.9' not in text_of()
    assert 'antspyx 9.9' in text_of(thickness=('pbt',))
    assert 'antspyx' not in text_of(thickness=('freesurfer',))


def test_a_package_that_is_not_installed_has_no_version():
    assert set(participant.versions_of(['torch', 'no-such-package'])) == {'torch'}


def test_every_tool_and_engine_has_its_work():
    cited = {reference.cited for reference in references.REFERENCES.values()}
    assert len(cited) == len(references.REFERENCES)
    assert {*methods.TOOLS.values(), *methods.SOFTWARE.values()} <= cited
    assert set(methods.TOOLS) == {*layout_tools.LABEL_FILES.values(), 'LST-AI'}


@pytest.mark.parametrize('name', registry.ENGINES)
def test_every_engine_brings_the_works_that_its_sentence_cites(name, monkeypatch):
    engine = registry.make_engine(name)
    mentions = set(re.findall(r'[A-Z][a-z]+(?: et al\.)?, (?:19|20)\d\d', engine.method))
    assert mentions == {references.REFERENCES[key].cited for key in engine.references}


def test_tools_are_those_whose_files_are_there(tmp_path):
    of_freesurfer = 'c/sourcedata/freesurfer/sub-1/mri/aseg.mgz'
    for path in ('a/sub-01/ses-1/seg.mgz', 'b/sub-01/space-t1w_seg-lst.nii.gz', of_freesurfer):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert layout_tools.tools_in(tmp_path / name for name in 'abc') == ['FreeSurfer', 'SAMSEG', 'LST-AI']
    assert layout_tools.tools_in([tmp_path / 'b']) == ['LST-AI']
    assert layout_tools.tools_in([]) == []
