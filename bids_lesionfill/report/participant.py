"""Contents of the report of a participant: figures, summaries, messages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np

from .. import sidecars, text_files
from ..images import nifti, placement, registration
from ..layout import derivatives, naming
from ..lesions import checks, records

if TYPE_CHECKING:
    from ..layout.inputs import Inputs

PICTURED_VARIANTS = 3  # of a synthesis; the others are in the tables


class Other(NamedTuple):
    """Another image of the visit, to be shown beside the one that was filled."""

    modality: str
    image_file: Path
    filled_file: Path | None  # None if it was not filled


class Known(NamedTuple):
    """Content of a picture beside the files of an image."""

    given_mask: np.ndarray | None = None  # (X, Y, Z) bool, on the image's own grid
    other: Other | None = None


NOTHING = Known()


class Drawing(NamedTuple):
    """Pictures of an image, and what the viewer of the page shows of it."""

    figures: list[dict[str, Any]] = []
    viewer: dict[str, Any] | None = None  # see `viewer.pack`


def status_message(pages: list[dict[str, Any]], missing: set[str]) -> str:
    """Return a message that lists failures of a participant's images and its missing modalities."""
    sentences = [
        f'{page["name"]}: {page["message"]}' if len(pages) > 1 else page['message']
        for page in pages
        if page.get('message')
    ]
    return '; '.join(sentences + [f'no {modality} image' for modality in sorted(missing)])


def describe_image(image: Inputs, desc: str, output_dir: Path) -> dict[str, Any]:
    """Return what the report says of a filled image, or one with new lesions, read back from the files.

    All but the pictures, see `figures_of`.
    """
    is_fill = desc == 'filled'
    files, after_file = files_of(image, desc, output_dir)
    info = derivatives.read_sidecar(after_file)
    lesions = text_files.read_tsv(files['lesions'])
    unchanged = is_fill and not lesions
    voxel_ml = abs(np.linalg.det(nib.load(after_file).affine[:3, :3])) / 1000
    record = read_record(info, is_fill)
    volumes = fill_volumes(record, voxel_ml) if is_fill else {'synthesized_volume_ml': volume_ml(lesions)}
    from . import thickness

    return {
        'output': after_file.name,
        'thickness': thickness.describe_thickness(image, output_dir) if is_fill and image.tissue_file is None else [],
        'status': 'copied' if unchanged else 'filled' if is_fill else 'synthesized',
        'message': (' '.join(info.get('Warnings', [])) or info.get('Description', '')) if unchanged else '',
        'lesions': lesions,
        'volumes': volumes,
        'changed_voxels': shown(record.voxels_changed, 0),
        'summary': fill_summary(image, lesions, record, volumes) if is_fill else synth_summary(image, lesions, record),
        'warnings': info.get('Warnings', []),
        'checks': (checks.check_filling if is_fill else checks.check_synthesis)(record, lesions, image.contrast),
        'provenance': info,
    }


def read_record(info: dict, is_fill: bool) -> Any:
    """Return the record of a filled image, or of one with new lesions, from the content of its sidecar."""
    return sidecars.read(records.FillRecord if is_fill else records.SynthesisRecord, info)


def files_of(image: Inputs, desc: str, output_dir: Path) -> tuple[dict[str, Path], Path]:
    """Return the files of an image (dict of name -> path), and the main one of them."""
    if desc == 'filled':
        files = naming.output_files(output_dir, image)
        return files, files['filled']
    files = naming.synth_files(output_dir, image, desc)
    return files, files['synth']


def figures_of(
    image: Inputs, desc: str, output_dir: Path, pictured: bool = True, known: Known = NOTHING
) -> Drawing:
    """Draw the pictures of an image, of its files; see `draw_figures`.

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
    record = read_record(derivatives.read_sidecar(after_file) if is_fill else {}, is_fill)
    lesions = text_files.read_tsv(files['lesions'])
    way = way_between(image, output_dir)
    drawing = draw_figures(image, (after_file, mask_file), lesions, record, known, way) if pictured else Drawing()
    overlay = draw_overlay(image, mask_file, output_dir) if desc in ('filled', 'synth', 'synth1') else []
    return drawing._replace(figures=drawing.figures + overlay)


def fill_volumes(record: Any, voxel_ml: float) -> dict[str, float | None]:
    """Return the volumes of the mask that was given and of what was filled; ml, None where they are not known."""
    counts = {'given_volume_ml': record.lesion_voxels_given, 'filled_volume_ml': record.lesion_voxels_used}
    return {name: None if n is None else round(float(n * voxel_ml), 3) for name, n in counts.items()}


def draw_figures(
    image: Inputs,
    made_files: tuple[Path, Path],
    lesions: list[dict[str, Any]],
    record: Any,
    known: Known,
    way: np.ndarray,
) -> Drawing:
    """Plot an image before and after, unusual lesions (by their record) first; pack it for the viewer.

    See `pictures.fill_figures` and `viewer.pack`.

    Parameters
    ----------
    image : layout.Inputs
    made_files : (path, path)
        The image that was made, and the mask that was used.
    lesions : list of dict
    record : FillRecord or SynthesisRecord
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
            'suspicion': checks.suspicion(row, record, image.contrast),
            'reason': checks.reason(row, record, image.contrast),
            'centre_voxel': tuple(
                int(v) for v in np.rint(nib.affines.apply_affine(to_voxel, [row['x_mm'], row['y_mm'], row['z_mm']]))
            ),
        }
        for row in lesions
    ]
    from . import closeup, pictures, viewer  # with matplotlib, which takes seconds

    given = known.given_mask
    if given is not None:
        given = in_ras(given, nib.load(image.image_file))
    both = closeup.Masks(mask > 0, given)
    figures = pictures.fill_figures(before, both.used, after, voxel_sizes_mm, located, both.given)
    if isinstance(record, records.FillRecord) and located:
        beside = show_beside(known.other, before_img, way)
        worst = max(located, key=lambda row: (max(row['suspicion'], 1), row['volume_mm3']))
        before, after = np.nan_to_num(before), np.nan_to_num(after)
        figures.insert(1, closeup.closeup(before, after, both, voxel_sizes_mm, worst, image.modality, beside))
    return Drawing(figures, viewer.pack(before, after, both, before_img.affine, located))


def in_ras(mask: np.ndarray, img: nib.Nifti1Image) -> np.ndarray:
    """Return a mask on the voxels of an image in the order of `as_closest_canonical`; bool array."""
    mask_img = nifti.mask_image(mask, img)
    return np.asarray(nib.as_closest_canonical(mask_img).dataobj) > 0


def show_beside(other: Other | None, image_img: nib.Nifti1Image, way: np.ndarray) -> Any:
    """Read another image of the visit on the voxels of this one: closeup.Beside; None if there is none to be read."""
    from . import closeup

    if other is None:
        return None
    try:
        files = (other.image_file, other.filled_file)
        imgs = [None if path is None else nib.as_closest_canonical(nib.load(path)) for path in files]
        is_resampled = not (np.allclose(way, np.eye(4)) and placement.same_grid(imgs[0], image_img))
        volumes: list[Any] = [
            img
            and (placement.laid_over(img, way, image_img) if is_resampled else np.nan_to_num(nifti.one_volume(img)))
            for img in imgs
        ]
        return closeup.Beside(other.modality, volumes[0], volumes[1], is_resampled)
    except (OSError, ValueError):  # a picture less
        return None


def way_between(image: Inputs, output_dir: Path) -> np.ndarray:
    """Return the (4, 4) transform from the world of the other image of a visit to that of this one, if registered."""
    xfm_file = naming.xfm_file(output_dir, image)
    if not xfm_file.is_file():
        return np.eye(4)
    to_t1w = registration.from_itk_text(xfm_file.read_text(encoding='utf-8'))
    return np.linalg.inv(to_t1w) if image.tissue_file else to_t1w


def draw_overlay(image: Inputs, mask_file: Path, output_dir: Path) -> list[dict[str, Any]]:
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


def fill_summary(image: Inputs, lesions: list[dict[str, Any]], record: Any, volumes: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of a filling for the report."""
    return {
        'Modality': image.modality,
        'Lesions filled': len(lesions),
        **({'Lesions not filled': record.lesions_dropped} if record.lesions_dropped else {}),
        'Volume of the given mask (ml)': volumes['given_volume_ml'],
        'Volume filled (ml)': volumes['filled_volume_ml'],
        'Voxels changed': shown(record.voxels_changed, 0),
        **({'Voxels of lesions kept': record.lesion_voxels_kept} if record.lesion_voxels_kept else {}),
        'Lesion mask': image.lesion_mask_file.name if image.lesion_mask_file else 'n/a',
        **tissue_summary(image, record),
        **rim_summary(record),
        **sampling_summary(record),
    }


def rim_summary(record: records.FillRecord) -> dict[str, Any]:
    """Return what was done with the rims of lesions, which masks miss, for the summary."""
    if record.lesion_voxels_replaced is None:
        return {
            'Rims': 'grown',
            'Mask grown by (voxels)': shown(record.dilation),
            'Then into missed rims by at most (voxels)': shown(record.rim_voxels),
        }
    return {
        'Rims': 'unmixed',
        'Voxels replaced (more than half lesion)': record.lesion_voxels_replaced,
        'Voxels corrected (up to half lesion)': shown(record.lesion_voxels_unmixed),
        'Voxels of fluid kept': shown(record.fluid_voxels_kept),
    }


def synth_summary(image: Inputs, lesions: list[dict[str, Any]], record: Any) -> dict[str, Any]:
    """Return the summary of a synthesis for the report."""
    return {
        'Modality': image.modality,
        'New lesions': len(lesions),
        'Volume of new lesions (ml)': volume_ml(lesions),
        'Voxels of old lesions': shown(record.lesion_voxels_old, 0),
        'Voxels changed': shown(record.voxels_changed, 0),
        'Lesions come from': shown(record.lesion_source),
        'Contrast is that of': shown(record.contrast_reference),
        'Share of it that is left 1 mm outside': shown(record.halo_share),
        **({'Texture': record.texture} if record.texture else {}),
        **tissue_summary(image, record),
        **sampling_summary(record),
    }


def shown(value: Any, otherwise: Any = 'n/a') -> Any:
    """Return a value of a record as the report shows it: `otherwise` if it is not known."""
    return otherwise if value is None else value


def volume_ml(lesions: list[dict[str, Any]]) -> float:
    """Return the summed volume of some lesions, ml."""
    return round(sum(row['volume_mm3'] for row in lesions) / 1000, 2)


def tissue_summary(image: Inputs, record: Any) -> dict[str, str]:
    """Return where brain and white matter come from, for the summary."""
    return {
        'Brain mask': shown(record.brain_mask_source),
        'White matter': shown(record.white_matter_source),
        'White matter found in': image.t1w_file.name,
    }


def sampling_summary(record: Any) -> dict[str, Any]:
    """Return how the network was sampled, for the summary."""
    return {
        'Model': shown(record.model),
        'Steps': shown(record.num_inference_steps),
        'Seed': shown(record.random_seed),
        'Device': shown(record.device),
    }
