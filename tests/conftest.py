"""Fixtures that all tests share. Heavy packages (torch, diffusers) are imported by the fixtures that need them."""

from contextlib import contextmanager
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest
import quick_pictures
from bids_examples import mask_path, t1w_path, write_bids
from nibabel.processing import resample_from_to
from scipy import ndimage

# Voxels of 0.9 x 1.0 x 1.2 mm; the first axis runs from right to left.
PHANTOM_AFFINE = np.array([[-0.9, 0, 0, 17.5], [0, 1.0, 0, -21.0], [0, 0, 1.2, -13.0], [0, 0, 0, 1]], dtype=np.float64)


@dataclass(frozen=True)
class Phantom:
    """A head of nested ellipsoids, whose healthy state is known."""

    t1w: np.ndarray  # float32, raw intensities: background exactly 0, CSF 200, GM 500, WM 800, lesions 550
    healthy: np.ndarray  # the same, with the same noise, before the lesions came
    lesion_mask: np.ndarray  # bool: two lesions, one deep and one close to the cortex
    wm_mask: np.ndarray  # bool: all white matter, beneath the lesions as well
    tissue_seg: np.ndarray  # uint8: 0 background, 1 CSF, 2 GM, 3 WM
    brain_mask: np.ndarray  # bool
    affine: np.ndarray

    def img(self, array):
        """An array of the phantom as NIfTI image; a copy, masks as uint8."""
        array = array.astype(np.uint8) if array.dtype == bool else array.copy()
        image = nib.Nifti1Image(array, self.affine)
        image.header.set_xyzt_units('mm')
        image.set_sform(self.affine, code=1)
        image.set_qform(self.affine, code=1)
        return image

    @property
    def t1w_img(self):
        return self.img(self.t1w)

    @property
    def healthy_img(self):
        return self.img(self.healthy)

    @property
    def flair(self):
        """The same head as FLAIR (float32): CSF 80, GM 450, WM 350, lesions 550; dark ringing around the brain."""
        texture = self.healthy - np.array([0, 200, 500, 800])[self.tissue_seg]
        flair = np.array([0, 80, 450, 350])[self.tissue_seg] + 200 * self.lesion_mask + texture
        flair[ndimage.binary_dilation(self.brain_mask) & ~self.brain_mask] = -5  # as sinc interpolation leaves it
        return flair.astype(np.float32)

    def thick_slices(self, array):
        """An array of the phantom on another grid of its world: slices of 3 mm, two axes flipped; masks as uint8."""
        affine = np.array([[1, 0, 0, -20], [0, -1, 0, 16], [0, 0, 3, -15], [0, 0, 0, 1]], dtype=np.float64)
        own_grid = nib.Nifti1Image(array.astype(np.float32), self.affine)
        image = resample_from_to(own_grid, ((40, 38, 14), affine), order=1)
        data = image.get_fdata(dtype=np.float32)
        image = nib.Nifti1Image((data > 0.5).astype(np.uint8) if array.dtype == bool else data, affine)
        image.header.set_xyzt_units('mm')
        return image

    @property
    def lesion_mask_img(self):
        return self.img(self.lesion_mask)

    @property
    def wm_mask_img(self):
        return self.img(self.wm_mask)

    @property
    def tissue_seg_img(self):
        return self.img(self.tissue_seg)

    @property
    def normalised(self):
        """The T1w with white matter at +0.5 and background at -1 (float32), written without the package's help."""
        return np.float32(1.5 / 800) * self.t1w - np.float32(1)

    @property
    def normalised_healthy(self):
        return np.float32(1.5 / 800) * self.healthy - np.float32(1)


def ellipsoid(shape, centre, radii):
    """A filled ellipsoid as a bool array; centre and radii in voxels."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) <= 1


def build_phantom(shape=(40, 36, 30), affine=PHANTOM_AFFINE, seed=0, noise=8.0):
    middle = (np.array(shape) - 1) / 2
    brain = ellipsoid(shape, middle, middle * 0.95)
    inner = ellipsoid(shape, middle, middle * 0.88)
    wm_mask = ellipsoid(shape, middle, middle * 0.72)
    tissue_seg = brain.astype(np.uint8) + inner + wm_mask
    lesion_mask = ellipsoid(shape, middle + (-5, 2, 1), (3, 2.5, 2))
    lesion_mask |= ellipsoid(shape, middle + (7, -4, -3), (2, 2, 2))
    lesion_mask &= wm_mask
    texture = np.random.default_rng(seed).normal(0, noise, shape)
    healthy = np.where(brain, np.array([0, 200, 500, 800])[tissue_seg] + texture, 0).astype(np.float32)
    t1w = np.where(lesion_mask, healthy - 250, healthy).astype(np.float32)
    return Phantom(t1w, healthy, lesion_mask, wm_mask, tissue_seg, brain, np.array(affine))


@pytest.fixture(autouse=True)
def no_validation(request, monkeypatch):
    """Datasets of tests are not validated (seconds each), unless a test asks for `real_validation`."""
    if 'real_validation' not in request.fixturenames:
        from bids_lesionfill.app import validation

        monkeypatch.setattr(validation, 'is_valid', lambda options: True)


@pytest.fixture
def real_validation():
    """See `no_validation`."""


@pytest.fixture(scope='session', autouse=True)
def drawn():
    """Pictures are not drawn in tests (half a second each), unless one asks for `real_pictures`; what draws them."""
    from bids_lesionfill.report import pictures

    draw = pictures.draw_panels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, 'draw_panels', quick_pictures.draw_panels)
        yield draw


@contextmanager
def drawing(draw):
    from bids_lesionfill.report import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, 'draw_panels', draw)
        yield


@pytest.fixture
def real_pictures(drawn):
    """See `drawn`; for one test."""
    with drawing(drawn):
        yield


@pytest.fixture(scope='module')
def real_pictures_of_module(drawn):
    """See `drawn`; for a module, from the test on that asks for it first."""
    with drawing(drawn):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


@pytest.fixture(scope='session')
def make_phantom():
    """Factory: `make_phantom(shape=, affine=, seed=, noise=)`; another seed is another noise."""
    return build_phantom


@pytest.fixture
def phantom():
    """The usual phantom, fresh for every test: a test may write into its arrays."""
    return build_phantom()


@pytest.fixture(scope='session')
def tiny_unet():
    """Factory: a slab network of two levels with reproducible random weights; options as of `UNet2DModel`."""
    import torch

    from bids_lesionfill.diffusion import unet

    def build(in_channels=4, pseudo_3d=True, seed=0, **options):
        defaults = {
            'block_out_channels': (8, 8),
            'down_block_types': ('DownBlock2D',) * 2,
            'up_block_types': ('UpBlock2D',) * 2,
            'norm_num_groups': 4,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return unet.build_unet('compact', in_channels, pseudo_3d, **(defaults | options)).eval()

    return build


@pytest.fixture(scope='session')
def oracle():
    """Factory: `oracle(image, scheduler)` is a denoiser that knows the image; it predicts what the scheduler asks for.

    Written from the definitions: x_t = sqrt(a) x_0 + sqrt(1 - a) eps, v = sqrt(a) eps - sqrt(1 - a) x_0.
    """

    def build(image, scheduler):
        def predict(noisy_image, timestep):
            a = scheduler.alphas_cumprod[int(timestep)].to(image.dtype)
            noise = (noisy_image - a.sqrt() * image) / (1 - a).sqrt()
            if scheduler.config.prediction_type == 'v_prediction':
                return a.sqrt() * noise - (1 - a).sqrt() * image
            return noise

        return predict

    return build


@pytest.fixture(scope='session')
def tiny_library():
    """A lesion library of one patient: eight deep balls of 7 to 33 voxels, in a space without ventricles."""
    from bids_lesionfill.lesions import library as lesions_library
    from bids_lesionfill.lesions import places as lesions_places

    shapes = [ellipsoid((5, 5, 5), (2, 2, 2), (radius,) * 3) for radius in (1, 1.5, 1.8, 2) * 2]
    volume = np.zeros((20, 20, 20), dtype=np.uint8)
    return lesions_library.LesionLibrary(
        shapes=shapes,
        centres_mm=np.zeros((8, 3)),
        patients=np.zeros(8, dtype=int),
        places=np.full(8, lesions_places.PLACES['deep']),
        template=volume,
        frequency=volume,
        ventricles=volume,
        affine=np.eye(4),
    )


@pytest.fixture(scope='session')
def find_tiny_places(tiny_library):
    """In place of `synth.find_places`, which registers: all of any brain is deep and lesions are alike everywhere."""
    from bids_lesionfill.lesions import places as lesions_places
    from bids_lesionfill.lesions import sampling

    def find(anatomy, library=None):
        shape = anatomy.brain_mask.shape
        places = np.full(shape, lesions_places.PLACES['deep'], dtype=np.uint8)
        return sampling.Atlas(tiny_library, places, np.full(shape, 100, np.float32), anatomy.grid_img.affine)

    return find


@pytest.fixture
def img():
    """An image of nothing, for tests of names."""
    return nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))


@pytest.fixture
def no_deformation(monkeypatch):
    """Brains that are registered to one another lie as their headers say."""
    from bids_lesionfill.images import syn

    def find_in(t1w, brain_mask, affine, template, template_affine, start=(0, 0, 0)):
        return nib.affines.apply_affine(affine, np.argwhere(brain_mask)), {}

    monkeypatch.setattr(syn, 'find_in', find_in)


@pytest.fixture(scope='session')
def model_dirs(tmp_path_factory):
    """Model folders with a tiny network whose weights are random, one for each modality."""
    import torch

    from bids_lesionfill.train import loop, plans

    options = {'block_out_channels': (8, 8), 'down_block_types': ('DownBlock2D',) * 2,
               'up_block_types': ('UpBlock2D',) * 2, 'norm_num_groups': 4}  # fmt: skip
    folders = {modality: tmp_path_factory.mktemp('models') / 'tiny' for modality in ('T1w', 'FLAIR')}
    for modality, folder in folders.items():
        plan = plans.Plan('tiny', modality=modality, unet_options=options)
        torch.manual_seed(0)
        loop.save_model(plan.build_unet(), plan, folder)
    return folders


@pytest.fixture
def model_dir(model_dirs):
    return model_dirs['T1w']


@pytest.fixture
def dataset(tmp_path, make_phantom):
    """Two participants, one session each without ses-, as a scanner with int16 and scaling writes them."""

    def build(subjects=('01', '02'), **more):
        images = {}
        for seed, subject in enumerate(subjects):
            phantom = make_phantom(seed=seed)
            stored = np.rint(phantom.t1w / 0.25).astype(np.int16)
            img = nib.Nifti1Image(stored, phantom.affine)
            img.header.set_slope_inter(0.25, 0.0)
            images |= {t1w_path(subject): img, mask_path(subject): phantom.lesion_mask_img}
        return write_bids(tmp_path / 'data', images | more)

    return build
