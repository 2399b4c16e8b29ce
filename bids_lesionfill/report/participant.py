"""Contents of the report of a participant: figures, summaries, messages."""

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from .. import text_files
from ..images import nifti, placement, registration
from ..layout import derivatives, naming
from ..lesions import checks

PICTURED_VARIANTS = 3  # of a synthesis; the others are in the tables


class Other(NamedTuple):
    """Another image of the visit, to be shown beside the one that was filled."""

    modality: str
    image_file: Path
    filled_file: Path | None  # None if it was not filled


class Known(NamedTuple):
    """What a picture shows beside the files of an image."""

    given_mask: np.ndarray | None = None  # (X, Y, Z) bool, on the image's own grid
    other: Other | None = None


NOTHING = Known()


def status_message(pages, missing):
    """Return a message that lists failures of a participant's images and its missing modalities."""
    sentences = [
        f'{page["name"]}: {page["message"]}' if len(pages) > 1 else page['message']
        for page in pages
        if page.get('message')
    ]
    return '; '.join(sentences + [f'no {modality} image' for modality in sorted(missing)])


def describe_image(image, desc, output_dir):
    """Return what the report says of a filled image, or one with new lesions, read back from the files.

    All but the pictures, see `figures_of`.
    """
    is_fill = desc == 'filled'
    files, after_file = files_of(image, desc, output_dir)
    info = derivatives.read_sidecar(after_file)
    lesions = text_files.read_tsv(files['lesions'])
    unchanged = is_fill and not lesions
    voxel_ml = abs(np.linalg.det(nib.load(after_file).affine[:3, :3])) / 1000
    volumes = fill_volumes(info, voxel_ml) if is_fill else {'synthesized_volume_ml': volume_ml(lesions)}
    from . import thickness

    return {
        'output': after_file.name,
        'thickness': thickness.describe_thickness(image, output_dir) if is_fill and image.tissue_file is None else [],
        'status': 'copied' if unchanged else 'filled' if is_fill else 'synthesized',
        'message': (' '.join(info.get('Warnings', [])) or info.get('Description', '')) if unchanged else '',
        'lesions': lesions,
        'volumes': volumes,
        'summary': fill_summary(image, lesions, info, volumes) if is_fill else synth_summary(image, lesions, info),
        'warnings': info.get('Warnings', []),
        'checks': (checks.check_filling if is_fill else checks.check_synthesis)(info, lesions, image.contrast),
        'provenance': info,
    }


def files_of(image, desc, output_dir):
    """Return the files of an image (dict of name -> path), and the main one of them."""
    if desc == 'filled':
        files = naming.output_files(output_dir, image)
        return files, files['filled']
    files = naming.synth_files(output_dir, image, desc)
    return files, files['synth']


def figures_of(image, desc, output_dir, pictured=True, known=NOTHING):
    """Draw the pictures of an image, of its files; see `pictures.fill_figures`.

    Parameters
    ----------
    image : layout.Inputs
        With the FLAIR that was registered, if one was.
    desc : str
        `filled`, `synth`, `synth2`.
    pictured : bool
        False: only the first variant shows how FLAIR and T1w were brought together.
    known : Known
        The mask that was given, and another image of the visit, of a filling.
    """
    is_fill = desc == 'filled'
    files, after_file = files_of(image, desc, output_dir)
    mask_file = files['used_mask' if is_fill else 'new_mask']
    info = derivatives.read_sidecar(after_file) if is_fill else {}
    lesions = text_files.read_tsv(files['lesions'])
    way = way_between(image, output_dir)
    figures = draw_figures(image, (after_file, mask_file), lesions, info, known, way) if pictured else []
    return figures + (draw_overlay(image, mask_file, output_dir) if desc in ('filled', 'synth', 'synth1') else [])


def fill_volumes(info, voxel_ml):
    """Return the volumes of the mask that was given and of what was filled; ml, None where they are not known."""
    counts = {'given_volume_ml': 'LesionVoxelsGiven', 'filled_volume_ml': 'LesionVoxelsUsed'}
    return {
        name: None if info.get(count) is None else round(float(info[count] * voxel_ml), 3)
        for name, count in counts.items()
    }


def draw_figures(image, made_files, lesions, info, known, way):
    """Plot an image before and after, unusual lesions (`info`) first; see `pictures.fill_figures`.

    Parameters
    ----------
    image : layout.Inputs
    made_files : (path, path)
        The image that was made, and the mask that was used.
    lesions : list of dict
    info : dict
        Of a filling, from its sidecar; empty of a synthesis.
    known : Known
    way : (4, 4) array
        See `way_between`.
    """
    canonical = [nib.as_closest_canonical(nib.load(path)) for path in (image.image_file, *made_files)]
    before_img, (before, after, mask) = canonical[0], map(nifti.one_volume, canonical)
    voxel_sizes_mm, to_voxel = nib.affines.voxel_sizes(before_img.affine), np.linalg.inv(before_img.affine)
    located = [
        row
        | {
            'label': int(row['label']),
            'suspicion': checks.suspicion(row, info, image.contrast),
            'reason': checks.reason(row, info, image.contrast),
            'centre_voxel': tuple(
                int(v) for v in np.rint(nib.affines.apply_affine(to_voxel, [row['x_mm'], row['y_mm'], row['z_mm']]))
            ),
        }
        for row in lesions
    ]
    from . import closeup, pictures  # with matplotlib, which takes seconds

    given = known.given_mask
    if given is not None:
        given = in_ras(given, nib.load(image.image_file))
    both = closeup.Masks(mask > 0, given)
    figures = pictures.fill_figures(before, both.used, after, voxel_sizes_mm, located, both.given)
    if info and located:
        beside = show_beside(known.other, before_img, way)
        worst = max(located, key=lambda row: (max(row['suspicion'], 1), row['volume_mm3']))
        before, after = np.nan_to_num(before), np.nan_to_num(after)
        figures.insert(1, closeup.closeup(before, after, both, voxel_sizes_mm, worst, image.modality, beside))
    return figures


def in_ras(mask, img):
    """Return a mask on the voxels of an image in the order of `as_closest_canonical`; bool array."""
    mask_img = nifti.mask_image(mask, img)
    return np.asarray(nib.as_closest_canonical(mask_img).dataobj) > 0


def show_beside(other, image_img, way):
    """Read another image of the visit on the voxels of this one: closeup.Beside; None if there is none to be read."""
    from . import closeup

    if other is None:
        return None
    try:
        imgs = [path and nib.load(path) for path in (other.image_file, other.filled_file)]
        before, after = (img and nib.as_closest_canonical(img) for img in imgs)
        if np.allclose(way, np.eye(4)) and placement.same_grid(before, image_img):
            volumes = [img and np.nan_to_num(nifti.one_volume(img)) for img in (before, after)]
            return closeup.Beside(other.modality, *volumes)
        volumes = [img and placement.laid_over(img, way, image_img) for img in (before, after)]
        return closeup.Beside(other.modality, *volumes, is_resampled=True)
    except (OSError, ValueError):  # a picture less
        return None


def way_between(image, output_dir):
    """Return the (4, 4) transform from the world of the other image of a visit to that of this one, if registered."""
    xfm_file = naming.xfm_file(output_dir, image)
    if not xfm_file.is_file():
        return np.eye(4)
    to_t1w = registration.from_itk_text(xfm_file.read_text(encoding='utf-8'))
    return np.linalg.inv(to_t1w) if image.tissue_file else to_t1w


def draw_overlay(image, mask_file, output_dir):
    """Plot an overlay of FLAIR and T1w if they had to be registered; else nothing."""
    xfm_file, other_file = naming.xfm_file(output_dir, image), image.tissue_file or image.flair_file
    if not xfm_file.is_file() or other_file is None:
        return []
    to_image = way_between(image, output_dir)
    image_img, mask_img = (nib.as_closest_canonical(nib.load(path)) for path in (image.image_file, mask_file))
    from . import pictures

    return pictures.overlay_figures(
        nifti.one_volume(image_img),
        placement.laid_over(nib.load(other_file), to_image, image_img),
        nifti.one_volume(mask_img) > 0,
        nib.affines.voxel_sizes(image_img.affine),
        (image.modality, 'T1w' if image.tissue_file else image.drawn_on),
    )


def fill_summary(image, lesions, info, volumes):
    """Return the summary of a filling for the report."""
    return {
        'Modality': image.modality,
        'Lesions filled': len(lesions),
        **({'Lesions not filled': info['LesionsDropped']} if info.get('LesionsDropped') else {}),
        'Volume of the given mask (ml)': volumes['given_volume_ml'],
        'Volume filled (ml)': volumes['filled_volume_ml'],
        'Voxels changed': info.get('VoxelsChanged', 0),
        **({'Voxels of lesions kept': info['LesionVoxelsKept']} if info.get('LesionVoxelsKept') else {}),
        'Lesion mask': image.lesion_mask_file.name if image.lesion_mask_file else 'n/a',
        **tissue_summary(image, info),
        'Mask grown by (voxels)': info.get('Dilation', 'n/a'),
        'Then into missed rims by at most (voxels)': info.get('RimVoxels', 'n/a'),
        **sampling_summary(info),
    }


def synth_summary(image, lesions, info):
    """Return the summary of a synthesis for the report."""
    return {
        'Modality': image.modality,
        'New lesions': len(lesions),
        'Volume of new lesions (ml)': volume_ml(lesions),
        'Voxels of old lesions': info.get('LesionVoxelsOld', 0),
        'Voxels changed': info.get('VoxelsChanged', 0),
        'Lesions come from': info.get('LesionSource', 'n/a'),
        'Contrast is that of': info.get('ContrastReference', 'n/a'),
        'Share of it that is left 1 mm outside': info.get('HaloShare', 'n/a'),
        **tissue_summary(image, info),
        **sampling_summary(info),
    }


def volume_ml(lesions):
    return round(sum(row['volume_mm3'] for row in lesions) / 1000, 2)


def tissue_summary(image, info):
    return {
        'Brain mask': info.get('BrainMaskSource', 'n/a'),
        'White matter': info.get('WhiteMatterSource', 'n/a'),
        'White matter found in': image.t1w_file.name,
    }


def sampling_summary(info):
    return {
        'Model': info.get('Model', 'n/a'),
        'Steps': info.get('NumInferenceSteps', 'n/a'),
        'Seed': info.get('RandomSeed', 'n/a'),
        'Device': info.get('Device', 'n/a'),
    }
