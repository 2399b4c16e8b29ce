"""Patients, the models that did not see them, and two simple ways to paint: what the benchmarks of synthesis share.

MODELS holds a folder `synth-MODALITY-LABEL/last` for every patient, trained with `--validation-label LABEL`.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_lesionfill import statistics, text_files
from bids_lesionfill.diffusion import classical, inpaint, models
from bids_lesionfill.images import anatomy as images_anatomy
from bids_lesionfill.images import grid as images_grid
from bids_lesionfill.images import masks
from bids_lesionfill.layout import datasets, files
from bids_lesionfill.lesions import contrasts as lesions_contrasts
from bids_lesionfill.lesions import sampling, synthesis

EDGE_VOXELS = {'FLAIR': 0.9, 'T1w': 0.56}  # of real lesions: lesion_contrast.py

ANATOMY = ('brain_mask', 'tissue_seg', 'old_lesions')


@dataclass(frozen=True)
class Session:
    """One visit of a patient on the working grid of its T1w; `(X, Y, Z)` arrays."""

    label: str  # of the patient
    name: str  # of the visit
    modality: str
    image_img: nib.Nifti1Image  # with its own intensities
    anatomy: images_anatomy.Anatomy
    scaling: images_grid.Scaling

    def normalise(self, img):
        """An image of this visit, normalised; -1 outside the brain."""
        image = self.scaling.apply(img.get_fdata(dtype=np.float32))
        return np.where(self.anatomy.brain_mask, image, -1).astype(np.float32)

    @property
    def image(self):
        """Normalised."""
        return self.normalise(self.image_img)

    def generator(self, seed, *numbers):
        """Randomness of its own, whichever other visits there are."""
        return np.random.default_rng([seed, *numbers, *self.name.encode()])

    @property
    def lesion_mask(self):
        """The patient's lesions inside the brain."""
        return self.anatomy.old_lesions & self.anatomy.brain_mask


def add_arguments(parser):
    """The command line that these benchmarks share."""
    parser.add_argument('bids_dir', type=Path, nargs='+')
    parser.add_argument('--models', type=Path, required=True, help='folder of the leave-one-patient-out models')
    parser.add_argument('--work-dir', type=Path, required=True, help='keeps what is done: run again to go on')
    parser.add_argument('--modality', choices=['FLAIR', 'T1w'], nargs='+', default=['FLAIR', 'T1w'])
    parser.add_argument('--patients', nargs='+', help='labels; default: all that have a model')
    parser.add_argument('--visits', type=int, help='of each patient, at most; default: all')
    parser.add_argument('--seed', type=int, default=1)


def read_sessions(bids_dirs, modality, work_dir, n_visits=None):
    """Visits of all patients (of each the first `n_visits`); what is known of their anatomy is kept in `work_dir`."""
    sessions = []
    for bids_dir in bids_dirs:
        for label, image_file, t1w_file, mask_file in datasets.find_patients(bids_dir, modality):
            if sum(session.label == label for session in sessions) == n_visits:
                continue
            name = Path(t1w_file).name.removesuffix('_T1w.nii.gz')
            anatomy = read_anatomy(Path(work_dir) / 'anatomy' / f'{name}.npz', t1w_file, mask_file)
            image = images_grid.resample_to(nib.load(image_file), anatomy.grid_img, order=3)
            scaling = images_grid.white_matter_scaling(image, anatomy.wm_mask)
            image_img = nib.Nifti1Image(image, anatomy.grid_img.affine)
            sessions.append(Session(label, name, modality, *crop(image_img, anatomy), scaling))
    return sessions


def crop(image_img, anatomy, margin_voxels=16):
    """Image and anatomy, cut to the brain: half of the time goes with the background."""
    box = masks.bounding_box(anatomy.brain_mask, margin_voxels)
    arrays = (getattr(anatomy, name)[box] for name in ANATOMY)
    return image_img.slicer[box], images_anatomy.Anatomy(anatomy.grid_img.slicer[box], *arrays)


def read_anatomy(cache_file, t1w_file, mask_file):
    """`synth.look_at`, once."""
    if not cache_file.is_file():
        anatomy = images_anatomy.look_at(nib.load(t1w_file), nib.load(mask_file))
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache_file, **{name: getattr(anatomy, name) for name in ANATOMY})
    with np.load(cache_file) as arrays:
        return images_anatomy.Anatomy(images_grid.conform(nib.load(t1w_file)), *(arrays[name] for name in ANATOMY))


def load_model(models_dir, modality, label):
    """The model that did not see a patient; None if it is not trained yet."""
    folder = Path(models_dir) / f'synth-{modality}-{label}' / 'last'
    return models.load_model(folder) if (folder / 'plan.json').is_file() else None


def held_out(options, modality):
    """Every visit with the model that did not see its patient: pairs."""
    pairs = []
    for session in read_sessions(options.bids_dir, modality, options.work_dir, options.visits):
        model = load_model(options.models, modality, session.label)
        if model is not None and (options.patients is None or session.label in options.patients):
            pairs.append((session, model))
    return pairs


def all_rows(options, modality, name, make, *arguments):
    """Rows of every visit, by `make(session, model, *arguments)`; see `finished`."""
    rows = []
    for session, model in held_out(options, modality):
        path = options.work_dir / name / f'{modality}_{session.name}.tsv'
        rows += finished(path, make, session, model, *arguments)
    return rows


def finished(path, make, *arguments):
    """Rows of a table (list of dict); made by `make(*arguments)` and written if it is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = make(*arguments)
        files.write_tsv(path, rows, list(rows[0]))
    return [row | {'label': label_of(row)} for row in text_files.read_tsv(path)]


def write_section(script, title, section, text):
    """Put a section (`FLAIR`, `T1w`, ...) into the page beside a script; the page's other sections stay as they are."""
    page = Path(script).with_suffix('.md')
    parts = page.read_text().split('\n## ')[1:] if page.is_file() else []
    sections = {part.partition('\n')[0]: part.partition('\n')[2].strip('\n') for part in parts}
    sections[section] = text.strip('\n')
    body = ''.join(f'\n## {name}\n\n{sections[name]}\n' for name in sorted(sections))
    page.write_text(f'# {title}\n{body}')


def label_of(row):
    """The patient's label as it was: `07` is no number."""
    return row['name'].removeprefix('sub-').partition('_')[0]


def draw_lesions(lesion_mask, n_lesions, rng, min_voxels=sampling.MIN_VOXELS):
    """Number up to `n_lesions` of the lesions of a mask, drawn at random, from 1; (X, Y, Z) int array."""
    labels, _ = masks.label_lesions(lesion_mask)
    large = np.flatnonzero(np.bincount(labels.flat)[1:] >= min_voxels) + 1
    number = np.zeros(labels.max() + 1, dtype=int)
    chosen = np.sort(rng.permutation(large)[:n_lesions])
    number[chosen] = np.arange(1, len(chosen) + 1)
    return number[labels]


def cut_out(sessions):
    """Real lesions as they can be pasted: list of (patient, image minus white matter around, mask), cropped."""
    donors = []
    for session in sessions:
        image, lesion_mask = session.image, session.lesion_mask
        brighter = image - classical.local_white_matter(image, lesion_mask, session.anatomy.wm_mask)
        labels, _ = masks.label_lesions(lesion_mask)
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[box] == number
            if mask.sum() >= sampling.MIN_VOXELS:
                donors.append((session.label, brighter[box], mask))
    return donors


def paste_real(image, labels, wm_mask, donors, label, rng):
    """Another patient's lesion of the nearest volume in the place of each lesion: flipped, turned, scaled to its box.

    Where the donor leaves the mask uncovered, the nearest of its values.

    Parameters
    ----------
    image : (X, Y, Z) float array, normalised
    labels : (X, Y, Z) int array, the number of each lesion from 1
    wm_mask : (X, Y, Z) bool array
    donors : see `cut_out`
    label : str
        Of the patient, who does not lend to himself.
    rng : numpy.random.Generator
    """
    painted = image.copy()
    white_matter = classical.local_white_matter(image, labels > 0, wm_mask)
    donors = [(brighter, mask) for owner, brighter, mask in donors if owner != label]
    volumes = np.array([mask.sum() for _, mask in donors])
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[box] == number
        brighter, donor_mask = donors[np.argmin(np.abs(np.log(volumes / mask.sum())))]
        nearest = ndimage.distance_transform_edt(~donor_mask, return_distances=False, return_indices=True)
        covered = masks.random_orientation(brighter[tuple(nearest)], rng)
        grid = np.meshgrid(*(np.linspace(0, n - 1, m) for n, m in zip(covered.shape, mask.shape)), indexing='ij')
        scaled = ndimage.map_coordinates(covered, grid, order=1)
        painted[box][mask] = (white_matter[box] + scaled)[mask]
    return painted


def paint_constant(image, labels, contrasts, edge_voxels):
    """A constant contrast with a soft edge in each lesion, on the tissue that is there; nothing outside the mask."""
    contrast = np.append(0, contrasts)[labels].astype(np.float32)
    everywhere = np.ones(labels.shape, dtype=bool)
    painted, _ = lesions_contrasts.paint_lesion(image, labels > 0, everywhere, -contrast, edge_voxels)
    return np.where(labels > 0, painted, image).astype(np.float32)


def volumes_of(labels):
    """Voxels (mm3) of each lesion, by number."""
    return np.bincount(labels.flat)[1:]


def contrasts_of(image, labels, wm_mask):
    """`inpaint.contrast_of` for numbered lesions that do not touch: (n,) array."""
    contrast = lesions_contrasts.contrast_of(image, labels > 0, wm_mask)[0]
    return ndimage.mean(contrast, labels, np.arange(1, labels.max() + 1))


def app_contrasts(image, labels, strengths, old_lesions, wm_mask, model):
    """The contrasts that the app asks for; see `synth.paint`."""
    reference, _ = lesions_contrasts.reference_contrasts(image, old_lesions, wm_mask, model)
    return lesions_contrasts.choose_contrasts(
        volumes_of(labels), strengths, *reference, lesions_contrasts.sign_of(reference[1])
    )


def sample(session, labels, contrasts, model, seed, num_inference_steps=None, image=None, texture=False):
    """Lesions painted as `synth.paint` does on its working grid, and the network's own, before contrasts are matched.

    Parameters
    ----------
    session : Session
    labels : (X, Y, Z) int array, the number of each lesion from 1
    contrasts : (n,) array, asked for
    model : weights.Model
    seed : int
    num_inference_steps : int, optional
        The model's own if not given.
    image : (X, Y, Z) float array, optional
        Instead of the session's, normalised.
    texture : bool
        Of one step: with the noise of the tissue in the place of the lesions, as in the app. Not where a real lesion
        was in that place: its own texture would be given away.

    Returns
    -------
    painted, own : (X, Y, Z) float arrays, normalised
    """
    image, hole = session.image if image is None else image, labels > 0
    wm_mask = session.anatomy.wm_mask & ~hole
    contrast = np.append(0, contrasts)[labels].astype(np.float32)
    steps = num_inference_steps or model.plan['num_inference_steps']
    own = image.copy()
    own[hole] = inpaint.fill_volume(image, hole, wm_mask, model, steps, [seed], contrast=contrast)[0]
    limits = synthesis.limits_of(image, session.anatomy.brain_mask & ~hole)
    matched = lesions_contrasts.match_contrast(own, hole, wm_mask, contrast)
    if texture and steps == 1:
        matched[hole] = synthesis.with_texture(image, hole, wm_mask, matched[hole], contrast, model, seed)
    return np.where(hole, np.clip(matched, *limits), image), own


def with_halo(session, painted, labels, model):
    """Painted lesions that fade into the white matter around, as `synth.paint` lets them; (X, Y, Z) float array."""
    share = lesions_contrasts.choose_halo('auto', session.image, session.anatomy, model)
    hole = labels > 0
    faded = lesions_contrasts.fade_out(painted, hole, session.anatomy.wm_mask & ~hole, share)
    limits = synthesis.limits_of(session.image, session.anatomy.brain_mask & ~hole)
    return np.where(faded != painted, np.clip(faded, *limits), painted)


def with_interval(values, people, form, seed=0):
    """Mean and 95 % bootstrap interval, patients drawn first; one value has none."""
    if len(values) == 1:
        return f'{values[0]:{form}}'
    mean, low, high = statistics.bootstrap_mean(values, np.random.default_rng(seed), clusters=people)
    return f'{mean:{form}} ({low:{form}} to {high:{form}})'


def table(header, rows):
    """Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines) + '\n'
