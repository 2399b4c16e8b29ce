"""Order of the images of a participant in its report and in `images.tsv`."""

from types import SimpleNamespace

from bids_lesionfill.app import reporting


def test_images_are_sorted_by_visit_and_the_t1w_comes_first():
    names = ['sub-1_ses-2_FLAIR', 'sub-1_ses-1_FLAIR', 'sub-1_ses-2_T1w', 'sub-1_ses-1_T1w', 'sub-1_ses-1_T2w']
    images = [SimpleNamespace(name=name, modality=name.rpartition('_')[2]) for name in names]
    ordered = sorted(images, key=lambda image: reporting.place_of(image, 'filled'))
    assert [image.name.removeprefix('sub-1_ses-') for image in ordered] == [
        '1_T1w', '1_FLAIR', '1_T2w', '2_T1w', '2_FLAIR'
    ]  # fmt: skip
