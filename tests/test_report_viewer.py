"""The volumes of the viewer of a report, and the size of a page; in a browser: test_report_in_browser.py."""

import base64
import gzip
import hashlib
import json
import re

import nibabel as nib
import numpy as np
import pytest

from bids_lesionfill.report import closeup, viewer
from bids_lesionfill.report import page as report_page

SHAPE = (30, 26, 22)
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.05, -0.1) @ np.diag((0.8, 1.2, 3.0)), (-12, 7, 40))


@pytest.fixture
def scene(rng):
    """A head in air: before, after, masks, and the rows of its lesions."""
    before = np.zeros(SHAPE)
    before[6:24, 5:20, 4:18] = rng.normal(500, 40, (18, 15, 14))
    used = np.zeros(SHAPE, dtype=bool)
    used[8:12, 8:12, 8:12] = used[15:20, 10:12, 9:11] = True
    given = used.copy()
    given[8, 8, 8] = False
    after = np.where(used, 700, before)
    lesions = [{'label': 1, 'centre_voxel': (9, 9, 9)}, {'label': 12, 'centre_voxel': (16, 14, 10)}]
    return before, after, closeup.Masks(used, given), lesions


def unpack(data):
    """The image of a stream, and its levels before and after, and the bits of its masks."""
    stream = gzip.decompress(data)
    length = (len(stream) - 352) // 3
    img = nib.Nifti1Image.from_bytes(stream[: 352 + length])
    before = np.asarray(img.dataobj)
    parts = [np.frombuffer(stream, np.uint8, length, 352 + i * length).reshape(before.shape, order='F') for i in (1, 2)]
    return img, before, before + parts[0], parts[1]


def test_volumes_are_cropped_to_the_head_and_keep_their_place(scene):
    before, after, both, lesions = scene
    packed = viewer.pack(before, after, both, AFFINE, lesions)
    img, *_ = unpack(packed['data'])
    assert img.shape == (18 + 4, 15 + 4, 14 + 4)
    assert np.allclose(img.affine @ (2, 2, 2, 1), AFFINE @ (6, 5, 4, 1), atol=1e-4)
    assert packed['voxel_mm'] == [0.8, 1.2, 3.0]


def test_levels_differ_from_intensities_by_half_a_step_and_after_from_before_in_the_mask_alone(scene):
    before, after, both, lesions = scene
    packed = viewer.pack(before, after, both, AFFINE, lesions)
    _, old, new, bits = unpack(packed['data'])
    box = np.s_[4:26, 3:22, 2:20]
    step = packed['grey_max'] / 255
    for levels, volume in ((old, before), (new, after)):
        assert np.abs(levels * step - np.minimum(volume[box], packed['grey_max'])).max() <= 0.5001 * step
    assert ((old != new) <= both.used[box]).all()
    assert ((bits & viewer.USED > 0) == both.used[box]).all()
    assert ((bits & viewer.GIVEN > 0) == both.given[box]).all()


def test_a_lesion_is_found_in_its_mask_even_if_its_centre_is_outside(scene):
    packed = viewer.pack(*scene[:2], scene[2], AFFINE, scene[3])
    assert list(packed['places']) == [1, 12]
    assert np.allclose(packed['places'][1], (AFFINE @ (9, 9, 9, 1))[:3], atol=0.01)
    voxel = np.linalg.inv(AFFINE) @ (*packed['places'][12], 1)
    assert np.allclose(voxel[:3], (16, 11, 10), atol=0.02)


def test_changes_outside_the_head_and_the_mask_are_in_the_box(scene):
    before, after, both, lesions = scene
    after = after.copy()
    after[28, 1, 20] = 300
    img, old, new, _ = unpack(viewer.pack(before, after, both, AFFINE, lesions)['data'])
    place = np.rint(np.linalg.inv(img.affine) @ AFFINE @ (28, 1, 20, 1)).astype(int)[:3]
    assert (old[tuple(place)], new[tuple(place)] > 0) == (0, True)


def test_an_image_without_mask_and_one_of_nothing_work(scene):
    before, *_ = scene
    nothing = closeup.Masks(np.zeros(SHAPE, dtype=bool))
    packed = viewer.pack(before, before, nothing, AFFINE, [])
    assert (packed['places'], packed['has_given']) == ({}, False)
    empty = np.full(SHAPE, np.nan)
    assert unpack(viewer.pack(empty, empty, nothing, AFFINE, [])['data'])[0].shape == SHAPE


def test_the_same_image_gives_the_same_bytes(scene):
    assert viewer.pack(*scene[:3], AFFINE, scene[3]) == viewer.pack(*scene[:3], AFFINE, scene[3])


def test_niivue_is_the_published_one_and_its_licence_is_in_every_page_that_holds_it(scene, write_page):
    published = '47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af'
    code = gzip.decompress(base64.b64decode(report_page.niivue()['code']))
    assert hashlib.sha256(code).hexdigest() == published
    assert published in report_page.niivue()['license']
    page = write_page([scene])
    for words in ('Copyright (c) 2021, Niivue', 'gl-matrix', 'zarrita'):
        assert words in page
    assert report_page.niivue()['code'] in page
    assert 'viewer-code' not in write_page([])


@pytest.fixture
def write_page(tmp_path):
    """Function: write a page with a viewer and a figure for each scene; its text."""

    def write(scenes):
        path = tmp_path / 'sub-07.html'
        images = [
            {
                'name': f'sub-07_run-{n}_T1w',
                'status': 'filled',
                'lesions': [{'label': 1.0, 'volume_mm3': 5.0}, {'label': 2.0, 'volume_mm3': 6.0}],
                'viewer': viewer.pack(*scene[:3], AFFINE, scene[3]),
                'figures': [
                    {'name': 'lesion-1', 'label': 1, 'title': 'Lesion 1', 'caption': ''}
                    | {picture: bytes([n]) * 3000 for picture in report_page.PICTURES}
                ],
            }
            for n, scene in enumerate(scenes, start=1)
        ]
        content = dict.fromkeys(('version', 'command', 'message', 'methods'), 'x') | {'label': 'sub-07'}
        report_page.write_participant(path, content | {'status': 'filled', 'images': images})
        return path.read_text(encoding='utf-8')

    return write


def test_rows_and_pictures_of_lesions_lead_to_the_viewer(scene, write_page):
    page = write_page([scene])
    assert re.findall(r'<tr[^>]* data-image="1" data-place="(\d+)"', page) == ['1']  # lesion 2 has no place
    assert 'class="go screen" data-image="1" data-place="1">look closer' in page
    about = json.loads(re.search(r"data-about='(.*?)'", page)[1])
    assert about['places'].keys() == {'1', '12'}
    assert about['beside'] is None


def test_parts_that_would_make_a_page_too_large_are_beside_it(scene, write_page, tmp_path, monkeypatch):
    whole = write_page([scene, scene])
    assert not (tmp_path / 'sub-07').exists()
    assert whole.count('data:image/png') == 6
    assert "img-src data:;" in whole
    limit = len(whole.encode()) - 1000  # the second volume is too much
    monkeypatch.setattr(report_page, 'MAX_PAGE_BYTES', limit)
    page = write_page([scene, scene])
    assert len(page.encode()) <= limit
    assert page.count('data:image/png') == 6
    script = 'sub-07/figures/sub-07_run-2_T1w_viewer.js'
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*.js')] == [script]
    data = re.search(r'"([^"]+)";\n$', (tmp_path / script).read_text())[1]
    assert base64.b64decode(data) == viewer.pack(*scene[:3], AFFINE, scene[3])['data']
    assert "img-src data: 'self' file:;" in page
    text = len(whole.encode()) - sum(map(len, re.findall(r'[A-Za-z0-9+/=]{4000}[A-Za-z0-9+/=]*', whole)))
    monkeypatch.setattr(report_page, 'MAX_PAGE_BYTES', text + len(report_page.niivue()['code']) + 13_000)
    page = write_page([scene, scene])
    assert page.count('data:image/png') == 3
    assert 'src="sub-07/figures/sub-07_run-2_T1w_lesion-1_after.png"' in page
    assert (tmp_path / 'sub-07/figures/sub-07_run-2_T1w_lesion-1_after.png').read_bytes() == b'\2' * 3000
