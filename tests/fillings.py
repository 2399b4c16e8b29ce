"""Fillings of one image by keywords, for tests of `fill`."""

from dataclasses import fields

from bids_lesionfill.lesions import fill
from bids_lesionfill.lesions.settings import Growth, Lesions, Sampling


def fill_with(image_img, lesion_mask_img, model, t1w_img=None, wm_mask_img=None, **options):
    """Return the `Filling` of an image; options are fields of `Lesions`, `Growth` and `Sampling`."""
    groups = []
    for kind in (Lesions, Growth, Sampling):
        names = {field.name for field in fields(kind)} & set(options)
        groups.append({name: options.pop(name) for name in names})
    assert not options
    lesions = Lesions(lesion_mask_img, **groups[0])
    return fill.fill_alone(image_img, lesions, model, t1w_img, wm_mask_img, Growth(**groups[1]), Sampling(**groups[2]))
