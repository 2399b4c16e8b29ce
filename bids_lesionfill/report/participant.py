"""Contents of the report of a participant: figures, summaries, messages."""

import nibabel as nib
import numpy as np

from .. import text_files
from ..images import nifti, placement, registration
from ..layout import derivatives, naming
from ..lesions import checks
from . import pictures

PICTURED_VARIANTS = 3  # of a synthesis; the others are in the tables


def status_message(pages, missing):
    """What went wrong with a participant's images, by name if there are several, and which modalities it lacks."""
    sentences = [
        f'{page["name"]}: {page["message"]}' if len(pages) > 1 else page['message']
        for page in pages
        if page.get('message')
    ]
    return '; '.join(sentences + [f'no {modality} image' for modality in sorted(missing)])


def describe_image(image, desc, output_dir, pictured=True):
    """What the report says of a filled image, or one with new lesions, read back from the files that were written."""
    is_fill = desc == 'filled'
    files = naming.output_files(output_dir, image) if is_fill else naming.synth_files(output_dir, image, desc)
    after_file, mask_file = (files[name] for name in (('filled', 'used_mask') if is_fill else ('synth', 'new_mask')))
    info = derivatives.read_sidecar(after_file)
    lesions = text_files.read_tsv(files['lesions'])
    figures = draw_figures(image, after_file, mask_file, lesions, info if is_fill else {}) if pictured else []
    if desc in ('filled', 'synth', 'synth1'):
        figures += draw_overlay(image, mask_file, output_dir)
    unchanged = is_fill and not lesions
    from . import thickness

    return {
        'output': after_file.name,
        'thickness': thickness.describe_thickness(image, output_dir) if is_fill and image.tissue_file is None else [],
        'status': 'copied' if unchanged else 'filled' if is_fill else 'synthesized',
        'message': ' '.join(info.get('Warnings', [])) if unchanged else '',
        'lesions': lesions,
        'figures': figures,
        'summary': fill_summary(image, lesions, info) if is_fill else synth_summary(image, lesions, info),
        'warnings': info.get('Warnings', []),
        'checks': (checks.check_filling if is_fill else checks.check_synthesis)(info, lesions, image.contrast),
        'provenance': info,
    }


def draw_figures(image, after_file, mask_file, lesions, info):
    """Pictures of an image before and after, unusual lesions by `info` first; see `report.fill_figures`."""
    paths = {'before': image.image_file, 'after': after_file, 'mask': mask_file}
    canonical = {name: nib.as_closest_canonical(nib.load(path)) for name, path in paths.items()}
    affine, volumes = canonical['before'].affine, {name: nifti.one_volume(img) for name, img in canonical.items()}
    to_voxel = np.linalg.inv(affine)
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
    return pictures.fill_figures(
        volumes['before'], volumes['mask'] > 0, volumes['after'], nib.affines.voxel_sizes(affine), located
    )


def draw_overlay(image, mask_file, output_dir):
    """Where FLAIR and T1w had to be registered, pictures of the image and of the other one laid over it; else none."""
    xfm_file, other_file = naming.xfm_file(output_dir, image), image.tissue_file or image.flair_file
    if not xfm_file.is_file() or other_file is None:
        return []
    to_t1w = registration.from_itk_text(xfm_file.read_text(encoding='utf-8'))
    to_image = np.linalg.inv(to_t1w) if image.tissue_file else to_t1w
    image_img, mask_img = (nib.as_closest_canonical(nib.load(path)) for path in (image.image_file, mask_file))
    return pictures.overlay_figures(
        nifti.one_volume(image_img),
        placement.laid_over(nib.load(other_file), to_image, image_img),
        nifti.one_volume(mask_img) > 0,
        nib.affines.voxel_sizes(image_img.affine),
        (image.modality, 'T1w' if image.tissue_file else 'FLAIR'),
    )


def fill_summary(image, lesions, info):
    """What a report says of a filling at a glance."""
    return {
        'Modality': image.modality,
        'Lesions filled': len(lesions),
        **({'Lesions not filled': info['LesionsDropped']} if info.get('LesionsDropped') else {}),
        'Volume filled (ml)': volume_ml(lesions),
        'Voxels changed': info.get('VoxelsChanged', 0),
        **({'Voxels of lesions kept': info['LesionVoxelsKept']} if info.get('LesionVoxelsKept') else {}),
        'Lesion mask': image.lesion_mask_file.name if image.lesion_mask_file else 'n/a',
        **tissue_summary(image, info),
        'Mask grown by (voxels)': info.get('Dilation', 'n/a'),
        'Then into missed rims by at most (voxels)': info.get('RimVoxels', 'n/a'),
        **sampling_summary(info),
    }


def synth_summary(image, lesions, info):
    """What a report says of a synthesis at a glance."""
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
