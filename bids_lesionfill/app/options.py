"""Options of a run."""

from dataclasses import dataclass, field
from pathlib import Path

from ..modality import get

VERSION_FILE = Path(__file__).resolve().parents[2] / 'version'

LOCATIONS = ('periventricular', 'juxtacortical', 'deep', 'infratentorial')
MODALITIES = {'fill': ('T1w',), 'synth': ('FLAIR', 'T1w')}  # by mode, if not said


def version():
    """The version, from the file `version` beside run.py, or from the installed package."""
    if VERSION_FILE.is_file():
        return VERSION_FILE.read_text(encoding='utf-8').strip()
    from importlib import metadata

    return metadata.version('bids_lesionfill')


@dataclass(frozen=True)
class Options:
    """What a participant run needs to know."""

    bids_dir: Path
    output_dir: Path
    mode: str = 'fill'  # or 'synth'
    modalities: tuple = ('T1w',)
    model: str | None = None  # the bundled one of mode and modality
    participant_labels: tuple = ()
    session_labels: tuple = ()
    filters: dict | None = None
    derivatives: dict | None = None  # name -> path
    mask_labels: tuple = ('lesion', 'L')
    mask_desc: str | None = None
    mask_threshold: float = 0.5
    lesion_labels: tuple = ()  # values of the mask that are filled; all if empty
    min_lesion_volume: float = 0  # mm3; smaller lesions stay
    dilate: int = 1
    rim_voxels: int = 2
    num_inference_steps: int | None = None
    n_samples: int = 1
    n_lesions: int | None = None  # synthesis: how many, how much, where, or exactly which; how bright
    lesion_load_ml: float | None = None
    lesion_locations: tuple = LOCATIONS
    new_mask_file: Path | None = None
    mask_from: str | None = None  # participant label
    lesion_intensity: float | str = 'auto'
    lesion_halo: float | str = 'auto'
    second_visit: bool = False
    n_variants: int = 1
    batch_size: int = 8
    device: str = 'auto'
    random_seed: int = 0
    thickness: tuple = ()  # engines
    thickness_results: dict = field(default_factory=dict)  # name -> path: other tools' folders, for thickness alone
    thickness_noise: bool = True
    allow_download: bool = False
    juxta_min_voxels: int = 1
    raw_dir: Path | None = None  # of --output-layout raw; output_dir is in it then
    work_dir: Path | None = None  # the system's folder for such files
    bids_database_dir: Path | None = None
    nprocs: int = 1
    omp_nthreads: int | None = None
    mem_gb: float | None = None
    plugin_file: Path | None = None
    config: str = ''  # all options as TOML, for the log
    reports_only: bool = False
    stop_on_first_crash: bool = False
    command: str = ''
    version: str = ''

    def model_of(self, modality):
        """Name or path of the model for images of a modality."""
        return self.model or get(modality).model_for(self.mode) or f'{self.mode}-{modality}'

    def of_result(self, modality):
        """Those options that change the result for an image of a modality; written to the sidecar."""
        names = ['mask_threshold', 'num_inference_steps', 'device', 'random_seed']
        if self.mode == 'fill':
            names += ['dilate', 'rim_voxels', 'n_samples', 'lesion_labels', 'min_lesion_volume']
        else:
            names += ['n_lesions', 'lesion_load_ml', 'lesion_locations', 'mask_from', 'lesion_intensity']
            names += ['lesion_halo', 'second_visit']  # the second is said in the sidecar
        return {'model': self.model_of(modality)} | {name: getattr(self, name) for name in names}

    @property
    def top_dir(self):
        """The folder that holds all that a run writes."""
        return self.raw_dir or self.output_dir

    @property
    def variants(self):
        """The `desc-` of each variant of a synthesis: `synth`, or `synth1` to `synthK`."""
        return [f'synth{n}' for n in range(1, self.n_variants + 1)] if self.n_variants > 1 else ['synth']
