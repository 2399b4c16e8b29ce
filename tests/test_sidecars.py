"""Records are spelled as JSON in one place, and read back."""

from dataclasses import fields, replace

import pytest

from bids_lesionfill import sidecars
from bids_lesionfill.lesions.records import FillRecord, Registration, SynthesisRecord


def test_keys_are_camel_case_and_known_abbreviations_are_kept():
    names = ('model', 'brain_volume_ml', 'num_inference_steps', 'weights_sha256')
    assert [sidecars.key_of(name) for name in names] == ['Model', 'BrainVolumeMl', 'NumInferenceSteps', 'WeightsSHA256']


def test_what_is_not_known_is_left_out_and_the_order_is_that_of_the_fields():
    record = FillRecord(model='m', lesions=0, skull_stripped=False, more={'Level': 0.5}, device='cpu')
    assert list(sidecars.spell(record).items()) == [
        *(('Lesions', 0), ('SkullStripped', False), ('Model', 'm'), ('Level', 0.5), ('Device', 'cpu')),
    ]


def test_a_record_in_a_record_is_an_object_in_an_object():
    record = SynthesisRecord(flair_registration=Registration('rigid', 2.5, 0.1, 0.2, used=True))
    assert sidecars.spell(record) == {
        'FlairRegistration': {
            **{'Method': 'rigid', 'ShiftMm': 2.5, 'Used': True},
            **{'InformationByHeaders': 0.1, 'InformationRegistered': 0.2},
        }
    }


@pytest.mark.parametrize('record_type', [FillRecord, SynthesisRecord])
def test_a_record_that_is_written_is_read_again(record_type):
    names = [each.name for each in fields(record_type) if not each.metadata]
    record = replace(record_type(), **{name: number for number, name in enumerate(names)})
    assert len(sidecars.spell(record)) == len(names)  # no two fields have one key
    assert sidecars.read(record_type, sidecars.spell(record) | {'Warnings': []}) == record


def test_a_sidecar_of_an_earlier_version_is_read_as_far_as_it_goes():
    assert sidecars.read(FillRecord, {'LesionVoxelsGiven': 3}) == FillRecord(3)
