"""The Python interface: fill and synthesize lesions in images, or in files of images.

What the command line learns from BIDS names, this asks for or recognises: which modality an image is.
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .diffusion import models, registry
from .diffusion.filler import Filler
from .images import nifti
from .layout.files import open_image
from .lesions import fill, recognition, synthesis
from .lesions import places as lesions_places
from .lesions.settings import Growth, Lesions, Sampling
from .modality import FLAIR, T1W, UNKNOWN, Modality, accepts, get, of_file

Image = Any  # nibabel image, or path of one (str, Path)


def fill_lesions(
    image_img: Image,
    lesion_mask_img: Image,
    *,
    t1w_img: Image | None = None,
    modality: str | None = None,
    model: str | Path | Filler | None = None,
    wm_mask_img: Image | None = None,
    rims: str = 'unmixed',
    flair_img: Image | None = None,
    dilate: int = 1,
    rim_voxels: int = 2,
    texture: str = 'sampled',
    num_inference_steps: int | None = None,
    n_samples: int = 1,
    device: str = 'auto',
    seed: int = 0,
    return_details: bool = False,
) -> 'nib.spatialimages.SpatialImage | fill.Filling':  # many arguments, each of them optional
    """Fill the lesions of an image with healthy tissue.

    Every image is a nibabel image, or the path of one (str, Path). What a person should read before trusting the result
    comes as Python warnings.

    Parameters
    ----------
    image_img : image, 3D (or 4D with one volume)
        T1w, FLAIR or another modality; with or without skull, any orientation and voxel size.
    lesion_mask_img : image
        Above zero = lesion; another grid in the same world space is resampled.
    t1w_img : image, optional
        The T1w in which brain and white matter are found, in the same world space; the image itself if not given.
        All modalities but T1w need it, unless `wm_mask_img` is given.
    modality : str, optional
        What the image is (`T1w`, `FLAIR`, `T2w`, ...; `any`: unknown). If not given: by the suffix of its file, else
        what `model` was made for, else FLAIR with `t1w_img` and T1w without. That lesions are as bright as they are
        on such images is measured.
    model : str, path or Filler, optional
        The name of a bundled model or of another filler (`biharmonic`, ...; see `diffusion.registry`), a model folder,
        or a loaded filler; the bundled model of the modality if not given.
    wm_mask_img : image, optional
        White matter, above zero; found by a mixture model if not given.
    rims : {'unmixed', 'grown'}
        What is done with the rims of lesions, which masks miss: the share of lesion in each voxel is estimated and
        taken out, and fluid inside the mask stays (`unmixing`); or the mask grows into them by `dilate` and
        `rim_voxels`.
    flair_img : image, optional
        A FLAIR of the session, in the same world space as a T1w: it tells fluid from lesions that are as dark.
    dilate : int
        Voxels that the mask grows into white matter (thesis 3.5); within the slice where slices are thicker than 2 mm.
        0: the given mask is filled and nothing else; `rims` and `rim_voxels` have no effect then.
    rim_voxels : int
        Voxels that it may grow further, into white matter as dark (FLAIR: bright) as the rim of a lesion that the mask
        missed; see `contrasts.grow_to_rim`.
    texture : {'sampled', 'mean'}
        Fill with a sample, which has the noise of this image's white matter (`texture`), or with the smooth estimate of
        the mean.
    num_inference_steps : int, optional
        DDIM steps; the model's default if not given.
    n_samples : int
        More than one: the mean of so many samples is filled in.
    device : {'auto', 'cpu', 'cuda'}
    seed : int
    return_details : bool
        Return also what was filled and found.

    Returns
    -------
    nibabel image, or Filling
        On the grid of `image_img`, with its header; equal outside the mask that was used. With `return_details` a
        `Filling`: `filled_img`, `used_mask_img`, `lesions` (the table, a list of dicts), `sd_img`, `record`,
        `warnings`.

    Raises
    ------
    ValueError
        If an image cannot be used, or is not what it is taken for; the sentence says why.
    FileNotFoundError
        If the model is not found.
    """
    image_img, lesion_mask_img, t1w_img, wm_mask_img, flair_img = opened(
        image_img, lesion_mask_img, t1w_img, wm_mask_img, flair_img
    )
    nifti.check_image(image_img, 'image')
    lesions = Lesions(lesion_mask_img, flair_img=flair_img)
    kind, doubts = recognise('fill', image_img, lesions, modality, model, has_t1w=t1w_img is not None)
    tell(doubts)
    filler = registry.load_filler(model or kind.fill_model, models.choose_device(device), modality_of(kind, model))
    filling = fill.fill_alone(
        image_img,
        lesions,
        filler,
        t1w_img,
        wm_mask_img,
        Growth(dilate, rim_voxels, rims),
        Sampling(num_inference_steps, n_samples, seed, device, texture=texture),
    )
    tell(filling.warnings)
    filling = replace(filling, filled_img=nifti.as_loaded(filling.filled_img))
    return filling if return_details else filling.filled_img


def synthesize_lesions(
    image_img: Image,
    lesion_mask_img: Image | None = None,
    *,
    t1w_img: Image | None = None,
    modality: str | None = None,
    new_mask_img: Image | None = None,
    model: 'str | Path | models.Model | None' = None,
    n_lesions: int | None = None,
    lesion_load_ml: float | None = None,
    lesion_locations: tuple[str, ...] = tuple(lesions_places.PLACES),
    lesion_intensity: float | str = 'auto',
    lesion_halo: float | str = 'auto',
    num_inference_steps: int | None = None,
    device: str = 'auto',
    seed: int = 0,
    return_details: bool = False,
) -> 'tuple | synthesis.Synthesis':  # many arguments, each of them optional
    """Synthesize new lesions in an image, and return it with their mask.

    Every image is a nibabel image, or the path of one (str, Path). What a person should read before trusting the result
    comes as Python warnings.

    Parameters
    ----------
    image_img : image, 3D (or 4D with one volume)
        FLAIR or T1w; with or without skull, any orientation and voxel size.
    lesion_mask_img : image, optional
        The lesions that the patient has (above zero); they stay, and new ones keep away from them.
    t1w_img : image, optional
        The T1w in which brain and white matter are found, in the same world space. A FLAIR needs it.
    modality : {'FLAIR', 'T1w'}, optional
        What the image is. If not given: by the suffix of its file, else what `model` was made for, else FLAIR. That
        tissues and lesions are as bright as they are on such images is measured.
    new_mask_img : image, optional
        Where the new lesions are to be (above zero); drawn if not given.
    model : str, path or models.Model, optional
        A bundled name, a model folder, or a loaded model; the bundled model of the modality if not given.
    n_lesions, lesion_load_ml : optional
        How many lesions, how much; if neither is given, as a patient of the lesion library has.
    lesion_locations : subset of {'periventricular', 'juxtacortical', 'deep', 'infratentorial'}
    lesion_intensity : float or 'auto'
        Quantile (0 to 1) of the contrast of lesions of the same size, the patient's own or those that the model was
        trained on: 1 is the brightest (FLAIR) or darkest (T1w). `auto` draws one for each lesion.
    lesion_halo : float or 'auto'
        Share (0 to 1) of the contrast that is left 1 mm outside a lesion; it fades out within 4 mm. `auto`: as
        around the patient's own lesions; 0: nothing outside `mask_img` changes.
    num_inference_steps : int, optional
        DDIM steps; the model's default if not given.
    device : {'auto', 'cpu', 'cuda'}
    seed : int
    return_details : bool
        Return also what was painted and found.

    Returns
    -------
    synth_img : nibabel image
        On the grid of `image_img`, with its header; equal outside `mask_img` and the halo around it.
    mask_img : nibabel image
        The new lesions.

    With `return_details` a `Synthesis`: `synth_img`, `mask_img` (all lesions), `new_mask_img`, `changed_mask_img`,
    `lesions` (the table, a list of dicts), `record`, `warnings`.

    Raises
    ------
    ValueError
        If an image cannot be used or is not what it is taken for, or so many lesions find no place; the sentence says
        why.
    FileNotFoundError
        If the model is not found.
    """
    image_img, lesion_mask_img, t1w_img, new_mask_img = opened(image_img, lesion_mask_img, t1w_img, new_mask_img)
    nifti.check_image(image_img, 'image')
    lesions = None if lesion_mask_img is None else Lesions(lesion_mask_img)
    kind, doubts = recognise('synth', image_img, lesions, modality, model, has_t1w=True)
    tell(doubts)
    device = models.choose_device(device)
    if not isinstance(model, models.Model):
        model = models.load_model(model or str(kind.synth_model), device)
    wanted = synthesis.Wanted(new_mask_img, n_lesions, lesion_load_ml, lesion_locations, lesion_intensity, lesion_halo)
    sampling = Sampling(num_inference_steps, seed=seed, device=device)
    painted = synthesis.paint_alone(image_img, t1w_img, lesions, wanted, model, sampling)
    tell(painted.warnings)
    painted = replace(painted, synth_img=nifti.as_loaded(painted.synth_img))
    return painted if return_details else (painted.synth_img, painted.new_mask_img)


def opened(*imgs: Image | None) -> list:
    """Return images, those of paths opened; None stays None.

    Raises
    ------
    ValueError
        If a file is not there or cannot be read; the sentence names it.
    """
    return [open_image(Path(img)) if isinstance(img, (str, os.PathLike)) else img for img in imgs]


def recognise(
    task: str,
    image_img: nib.spatialimages.SpatialImage,
    lesions: Lesions | None = None,
    asked: str | None = None,
    model: Any = None,
    has_t1w: bool = False,
) -> tuple[Modality, list[str]]:
    """Return the modality of an image, with sentences where it is doubtful.

    It is the one asked for, or that of its file, of the model, or the usual one.

    Parameters
    ----------
    task : {'fill', 'synth'}
    image_img : nibabel image
    lesions : Lesions, optional
        Whether they are brighter than the tissue around is measured.
    asked : str, optional
    model : str, path, Filler or None
    has_t1w : bool
        The T1w is another image: then this one is taken for a FLAIR.

    Raises
    ------
    ValueError
        If the model is for something else, or the image shows that it is not what nobody said that it is. Where its
        modality was asked for, or its file is named so, that is a sentence.
    """
    named = of_file(Path(image_img.get_filename() or '').name)
    made_for = None if model is None else made_for_of(model)
    is_said = asked is not None or named is not UNKNOWN
    if asked is not None:
        kind = get(asked)
    elif named is not UNKNOWN:
        kind = named
    else:
        kind = get(made_for) if made_for else FLAIR if has_t1w else T1W
    check_model(kind, task, model, made_for)
    doubts = []
    if asked is not None and named is not UNKNOWN and named.suffix != kind.suffix and kind is not UNKNOWN:
        doubts.append(f'{Path(image_img.get_filename()).name} is named as a {named.name}, and modality is {kind.name}')
    seen = '' if lesions is None else recognition.mismatch(kind, contrast_of(image_img, lesions))
    if seen and not is_said:
        raise ValueError(f'{seen} If so, give modality={kind.name!r}; else the modality that it is, and its T1w')
    return kind, doubts + ([seen] if seen else [])


def made_for_of(model: Any) -> str | None:
    """Return the modality that a filler or model was made for; None if it serves all."""
    if isinstance(model, (str, os.PathLike)):
        model = Path(model) if isinstance(model, os.PathLike) else model
        registry.check_known(model)
        made_for = None if registry.is_filler(model) else models.read_plan(model).get('modality')
    else:
        made_for = model.modality
    return None if made_for in (None, 'any') else made_for


def check_model(kind: Modality, task: str, model: Any, made_for: str | None) -> None:
    """Raise ValueError if a model is for images of another modality, or there is none for a task."""
    if model is None and kind.model_for(task) is None:
        raise ValueError(f'no bundled model synthesizes lesions in {kind.name} images: give model, or another modality')
    if made_for is not None and kind is not UNKNOWN and not accepts(kind.name, task, made_for):
        name = model if isinstance(model, (str, os.PathLike)) else model.name
        raise ValueError(
            f'model {name} was made for {made_for} images, and this is a {kind.name}: give the model of that, or '
            f"modality={made_for!r} if it is one, or modality='any'"
        )


def modality_of(kind: Modality, model: Any) -> str | None:
    """Return the name of a modality as `registry.load_filler` takes it; None: what the model was made for."""
    return None if kind is UNKNOWN and model is not None else kind.name


def contrast_of(image_img: nib.spatialimages.SpatialImage, lesions: Lesions) -> float | None:
    """Measure how much brighter lesions are than tissue around; see `recognition.lesion_contrast`."""
    image = nifti.plain(image_img, 'image').get_fdata(dtype=np.float32)
    return recognition.lesion_contrast(image, lesions.on_grid(image_img)[0])


def tell(sentences: list[str]) -> None:
    """Issue sentences as Python warnings, at the line that called the function of the interface."""
    for sentence in sentences:
        warnings.warn(sentence, UserWarning, stacklevel=3)
