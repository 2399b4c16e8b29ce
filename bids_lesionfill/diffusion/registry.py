"""Registry of fillers: diffusion models by name or folder, classical fillers, and those of other packages.

`--model` of the app, `evaluate --models` and `fill_lesions(model=...)` all read it. Another package brings a filler
(`filler.Filler`) as an entry point of the group `bids_lesionfill.fillers`. Bundled models are found before fillers, and
both before folders of the same name.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from ..modality import accepts, get
from ..plugins import Registry
from . import models
from .filler import Filler

_HERE = 'bids_lesionfill.diffusion.classical'
CLASSICAL = {
    'white-matter-normal': f'{_HERE}:WhiteMatterNormal',
    'local-white-matter-voxels': f'{_HERE}:LocalWhiteMatterVoxels',
    'local-white-matter-mean': f'{_HERE}:LocalWhiteMatterMean',
    'ants-rule': f'{_HERE}:AntsRule',
    'patch-match': f'{_HERE}:PatchMatch',
    'membrane': f'{_HERE}:Membrane',
    'biharmonic': f'{_HERE}:Biharmonic',
}
FILLERS = Registry('bids_lesionfill.fillers', CLASSICAL)


def names() -> list[str]:
    """Return the names of all fillers and models that are known without a folder."""
    return [*models.list_models(), *FILLERS]


def is_filler(name: str | Path) -> bool:
    """Return True for a filler that is no diffusion model."""
    return str(name) in FILLERS and str(name) not in models.list_models()


def load_filler(filler: str | Path | Filler, device: str = 'cpu', modality: str | None = None) -> Filler:
    """Return a filler, ready to fill images of a modality (that which it was made for, if not given).

    Raises
    ------
    FileNotFoundError
        Names what was looked for and what there is.
    """
    if isinstance(filler, (str, Path)):
        if is_filler(filler):
            return FILLERS[str(filler)](modality)
        check_known(filler)
        filler = models.load_model(filler, device)
    if isinstance(filler, models.Model) and modality not in (None, filler.modality):
        return dataclasses.replace(filler, used_on=modality)
    return filler


class DeferredFiller:
    """A filler that is loaded when it is needed: a run that has nothing to do needs the hash of its weights alone.

    Parameters
    ----------
    name : str or path
    device : {'auto', 'cpu', 'cuda'}
    modality : str, optional
        See `load_filler`.
    """

    def __init__(self, name: str | Path, device: str = 'cpu', modality: str | None = None) -> None:
        self.name, self.device, self.modality = name, device, modality

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights; '' if it has none."""
        if is_filler(self.name):
            return FILLERS[str(self.name)](self.modality).sha256
        return models.sha256_of(models.find_model(self.name) / models.WEIGHTS)

    @functools.cached_property
    def loaded(self) -> Filler:
        """The filler, see `load_filler`."""
        return load_filler(self.name, models.choose_device(self.device), self.modality)


def check_known(name: str | Path) -> None:
    """Raise FileNotFoundError, with the names that there are, if there is no filler or model of a name."""
    if is_filler(name):
        return
    try:
        models.find_model(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}; fillers without a model are {", ".join(FILLERS)}') from None


def check(name: str | Path, task: str, modality: str) -> None:
    """Check that a filler or model is there and made for a task (`fill`, `synth`) and images of a modality.

    Raises
    ------
    FileNotFoundError, ValueError
        See `check_known` and `models.check_model`.
    """
    check_known(name)
    if is_filler(name):
        if task != 'fill':
            raise ValueError(f'{name!r} fills lesions, expected a model for {task} {modality}')
        return
    made_for: Any = models.read_plan(name).get('modality')
    models.check_model(name, task, made_for if accepts(modality, task, made_for) else get(modality).name)


def describe(name: str | Path) -> dict:
    """Return the plan of a model, or what stands for it of another filler: its `methods` and `references`."""
    if not is_filler(name):
        return models.read_plan(name)
    words, references = FILLERS[str(name)](None).methods()
    return {'name': str(name), 'task': 'fill', 'methods': words, 'references': references}


def table() -> list[tuple[str, ...]]:
    """Return a row of each model and filler: name, what it was made for, size, steps, licence of the weights."""
    rows = [
        (name, f'{plan["task"]} {plan["modality"]}', plan['size'], f'{plan["num_inference_steps"]} step(s)')
        for name, plan in models.list_models().items()
    ]
    rows = [(*row, models.license_of(row[0])) for row in rows]
    return rows + [(name, 'fill any', 'no bundled weights', describe(name)['methods'], 'n/a') for name in FILLERS]
