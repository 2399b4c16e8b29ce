"""Find, check and load models: the bundled ones by name, others by folder.

Nothing is ever downloaded.

A model is a folder: `unet/` and `scheduler/` as diffusers writes them (safetensors only), `plan.json`, `README.md`;
of synthesis also `lesion_contrasts.json`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import text_files
from .filler import Record, Sampling

if TYPE_CHECKING:
    import numpy as np

    from .forms import Form


def choose_device(device: str) -> Any:
    """Return the torch device; `auto` means CUDA if a GPU is available, else the CPU."""
    import torch

    available = torch.cuda.is_available()
    if device == 'cuda' and not available:
        raise ValueError('device is cuda, but torch finds no usable GPU; use --device cpu or auto')
    return ('cuda' if available else 'cpu') if device == 'auto' else device


MODELS_DIR = Path(__file__).resolve().parent.parent / 'models'
WEIGHTS = 'unet/diffusion_pytorch_model.safetensors'
CONTRASTS = 'lesion_contrasts.json'


@dataclass(frozen=True)
class Model:
    """A loaded model, ready to sample."""

    name: str
    sha256: str  # of the weights file
    plan: dict
    form: Form
    tile: tuple  # voxels, as it was trained on
    unet: Any  # see `unet.build_unet`
    scheduler: Any  # of diffusers
    jump_length: int = 8  # of RePaint, for unconditional models
    jump_n_sample: int = 10
    contrasts: tuple | None = None  # of synthesis: volumes (mm3) and contrasts of the lesions it was trained on
    used_on: str | None = None  # modality of the images that it is used on, if that is not what it was made for
    has_texture = False  # one step gives the mean of all fillings

    @property
    def modality(self) -> str:
        """Modality of the images that it fills or paints into."""
        return self.used_on or self.plan['modality']

    def fill(self, volume: np.ndarray, lesion_mask: np.ndarray, wm_mask: np.ndarray, sampling: Sampling) -> np.ndarray:
        """Fill the lesions of a volume, once per seed; see `filler.Filler.fill`."""
        from . import inpaint

        steps, seeds = self.steps(sampling), list(sampling.seeds)
        arguments = (volume, lesion_mask, wm_mask, self, steps, seeds, sampling.device, sampling.batch_size)
        return inpaint.fill_volume(*arguments, progress=sampling.progress, beside_grey=sampling.beside_grey)

    def steps(self, sampling: Sampling) -> int:
        """Return the number of steps of a sampling."""
        return choose_steps(sampling.num_inference_steps, self.plan['num_inference_steps'], len(sampling.seeds))

    def record(self, sampling: Sampling) -> Record:
        """Return what the sidecar tells of a filling."""
        return Record(self.name, self.sha256, sampling.seeds[0], self.steps(sampling))

    def methods(self) -> tuple[str, tuple[str, ...]]:
        """Return how it fills, for a paper, and the keys of its references; see `describe_models`."""
        return describe_models({self.name: self.plan})


STEPS_FOR_SEVERAL_SAMPLES = 10  # one step gives the mean of all fillings, whatever the seed


def choose_steps(asked: int | None, of_plan: int, n_samples: int = 1) -> int:
    """Return how many steps a sampling takes: those asked for, or the plan's (more for several samples)."""
    if asked is not None:
        return asked
    return max(of_plan, STEPS_FOR_SEVERAL_SAMPLES) if n_samples > 1 else of_plan


# What a model starts from, in words: the base of its form, see `forms.Form`.
BASES = {
    'biharmonic': ', starting from biharmonic interpolation',
    'membrane': ', starting from harmonic interpolation',
    'local_white_matter': ', starting from the mean of the white matter around',
    'lesion': ', starting from lesions of even contrast',
}


def describe_models(
    plans: dict[str, dict], num_inference_steps: int | None = None, n_samples: int = 1
) -> tuple[str, tuple[str, ...]]:
    """Return how models fill or paint, what they start from and how they were trained and sampled, and references.

    Parameters
    ----------
    plans : dict of name -> plan
    num_inference_steps : int, optional
        Those asked for; the plans' own if not given.
    n_samples : int

    Returns
    -------
    words : str
        They complete "Lesions were filled by".
    references : tuple of keys of `report/references.bib`
    """
    forms = [plan.get('form', {}) for plan in plans.values()]
    started = [
        BASES.get(form.get('base', 'biharmonic'), '') if form.get('kind') == 'residual' else '' for form in forms
    ]
    named = '; '.join(f'{name}{base}' for name, base in zip(plans, started))
    repaint = any(form.get('kind') == 'unconditional' for form in forms)
    kind = 'diffusion model' if repaint else 'conditional diffusion model'
    of_v = all(plan.get('prediction_type') == 'v_prediction' for plan in plans.values())
    trained = ' trained by v-prediction (Salimans and Ho, 2022) and' if of_v else ''
    sampled = 'RePaint (Lugmayr et al., 2022)' if repaint else 'DDIM (Song et al., 2021)'
    of_plans = {plan.get('num_inference_steps', 1) for plan in plans.values()}
    steps = sorted({choose_steps(num_inference_steps, of_plan, n_samples) for of_plan in of_plans})
    counted = f'{" or ".join(map(str, steps))} step{"" if steps[-1] == 1 else "s"}'
    references = ('uhr2024', 'uhr2025', 'lugmayr2022' if repaint else 'song2021', *(['salimans2022'] if of_v else []))
    cited = 'Uhr, 2024; Uhr et al., 2025'
    return f'a pseudo-3D {kind} ({cited}; {named}),{trained} sampled by {sampled} in {counted}', references


def list_models(models_dir: Path = MODELS_DIR) -> dict[str, dict[str, Any]]:
    """List the names and plans of the bundled models: dict of dict."""
    return {path.parent.name: text_files.read_json(path) for path in sorted(models_dir.glob('*/plan.json'))}


def find_model(name_or_path: str | Path, models_dir: Path = MODELS_DIR) -> Path:
    """Find the folder of a model.

    Raises
    ------
    FileNotFoundError
        Names what was looked for and which models are bundled.
    """
    for folder in (models_dir / str(name_or_path), Path(name_or_path)):
        if (folder / 'plan.json').is_file():
            return folder
    bundled = ', '.join(list_models(models_dir)) or 'none'
    raise FileNotFoundError(
        f'model {str(name_or_path)!r} is neither bundled ({bundled}) nor a folder with unet/, scheduler/ and plan.json'
    )


def read_plan(name_or_path: str | Path, models_dir: Path = MODELS_DIR) -> dict[str, Any]:
    """Read the plan of a model as a dict; see `find_model`."""
    return text_files.read_json(find_model(name_or_path, models_dir) / 'plan.json')


def check_model(name_or_path: str | Path, task: str, modality: str, models_dir: Path = MODELS_DIR) -> None:
    """Check that a model has weights and, by its plan, was made for a task and a modality.

    Raises
    ------
    FileNotFoundError
        See `find_model`; or it has none.
    ValueError
        Says what the model was made for.
    """
    plan, folder = read_plan(name_or_path, models_dir), find_model(name_or_path, models_dir)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f'model {str(name_or_path)!r} has no weights: expected {folder / WEIGHTS}')
    if (plan.get('task'), plan.get('modality')) != (task, modality):
        raise ValueError(
            f'model {str(name_or_path)!r} was made for {plan.get("task")} {plan.get("modality")}, '
            f'expected one for {task} {modality}'
        )


def license_of(name_or_path: str | Path, models_dir: Path = MODELS_DIR) -> str:
    """Return the licence of a model's weights from its card; 'n/a' if it lists none."""
    card = find_model(name_or_path, models_dir) / 'README.md'
    text = text_files.read_text(card) if card.is_file() else ''
    said = re.search(r'weights\s+are\s+(CC[\s-][A-Z-]+\s\d\.\d|CC0)', text)
    return ' '.join(said[1].split()) if said else 'n/a'


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_model(name_or_path: str | Path, device: str = 'cpu', models_dir: Path = MODELS_DIR) -> Model:
    """Load a model, in single precision.

    Parameters
    ----------
    name_or_path : str or path
    device : str

    Raises
    ------
    FileNotFoundError
        See `find_model`.
    """
    import torch
    from diffusers import DDIMScheduler
    from diffusers.utils import logging as diffusers_logging

    from . import forms, unet

    diffusers_logging.set_verbosity_error()  # advice for those who write pipelines
    folder = find_model(name_or_path, models_dir)
    plan = text_files.read_json(folder / 'plan.json')
    network = unet.SlabUNetPseudo3D if plan['pseudo_3d'] else unet.SlabUNet2D
    weights_file = folder / WEIGHTS
    return Model(
        name=plan['name'],
        sha256=sha256_of(weights_file),
        plan=plan,
        form=forms.Form(**plan['form']),
        tile=tuple(plan['cases']['crop']),
        jump_length=plan.get('jump_length', 8),
        jump_n_sample=plan.get('jump_n_sample', 10),
        contrasts=read_contrasts(folder),
        unet=network.from_pretrained(folder / 'unet', use_safetensors=True, low_cpu_mem_usage=False)
        .to(device=device, dtype=torch.float32, memory_format=torch.channels_last)
        .eval(),
        scheduler=DDIMScheduler.from_pretrained(folder / 'scheduler'),
    )


def read_contrasts(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read volumes (mm3) and contrasts of a model's training lesions, (n,) arrays; None without."""
    import numpy as np

    path = Path(folder) / CONTRASTS
    if not path.is_file():
        return None
    content = text_files.read_json(path)
    return np.array(content['volume_mm3']), np.array(content['contrast'])
