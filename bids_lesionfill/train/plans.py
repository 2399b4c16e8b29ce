"""Training plans: network, schedule, loss, cases."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ..diffusion import forms, process, unet
from . import cases as train_cases

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


@dataclass(frozen=True)
class Plan:
    """All that makes a model; saved beside its weights as `plan.json`."""

    name: str
    task: str = 'fill'  # or 'synth'
    modality: str = 'T1w'
    size: str = 'compact'
    pseudo_3d: bool = True
    unet_options: dict = field(default_factory=dict)  # single arguments of UNet2DModel that differ from the size's
    noise_schedule: str = 'linear'
    prediction_type: str = 'v_prediction'
    form: forms.Form = field(default_factory=forms.Form)
    cases: train_cases.CasePlan = field(default_factory=train_cases.CasePlan)
    share_at_end: float = 0.5  # of the training time steps that are T
    min_snr_gamma: float | None = None  # loss weights of Hang et al. 2023 (thesis 3.4); the thesis tried 5
    log_loss_floor: float | None = None  # train on log(loss + floor) of each slab: easy ones count as in PSNR
    batch_size: int = 6  # slabs
    learning_rate: float = 6e-4
    warmup_updates: int = 150
    num_updates: int = 8000
    decay_updates: int = 1000  # the last ones, in which the learning rate falls to zero along a cosine
    gradient_clip: float = 1.0
    mixed_precision: str = 'no'  # 'fp16' or 'bf16' on a GPU
    ema_decay: float = 0.999
    num_inference_steps: int = 1  # default of the finished model
    jump_length: int = 8  # of RePaint, which samples unconditional models
    jump_n_sample: int = 10
    start_step: int = 3  # t0 of SDEdit, in which unconditional models synthesize (table 4.5: 1 in 2D, 3 in 3D)
    validate_every: int = 200
    n_validation_cases: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task not in ('fill', 'synth'):
            raise ValueError(f"task is {self.task!r}, expected 'fill' or 'synth'")
        if self.min_snr_gamma is not None and self.prediction_type == 'v_prediction' and self.share_at_end:
            raise ValueError(
                'min_snr_gamma with v_prediction gives the last time step no weight: set share_at_end to 0'
            )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from JSON, the inverse of `to_json`; see `from_dict`."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_yaml(cls, text: str) -> Plan:
        """Read a plan from YAML; see `from_dict`."""
        import yaml

        try:
            return cls.from_dict(yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise ValueError(f'it is no YAML: {" ".join(str(error).split())}') from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """Make a plan of a dict as JSON or YAML has it.

        Missing fields are those of the plan named by `from`, or defaults.

        Raises
        ------
        ValueError
            Names what is not part of a plan, or has another type.
        """
        if not isinstance(values, dict):
            raise ValueError(f'a plan is an object with the names of settings, got {str(values)[:40]!r}')
        values = dict(values)
        start = values.pop('from', None)
        if start is not None and start not in PLANS:
            raise ValueError(f'a plan starts from {start!r}, expected one of {sorted(PLANS)}')
        start = asdict(PLANS[start]) if start is not None else {'form': {}, 'cases': {}}
        for name in ('form', 'cases', 'unet_options'):
            if not isinstance(values.get(name, {}), dict):
                raise ValueError(f'{name} of a plan is {values[name]!r}, expected an object')
        parts = {name: start[name] | values.get(name, {}) for name in ('form', 'cases')}
        values = start | values | parts
        for names, known in ((values, cls), (values['form'], forms.Form), (values['cases'], train_cases.CasePlan)):
            unknown = set(names) - set(known.__dataclass_fields__)
            if unknown:
                raise ValueError(f'a plan has no {sorted(unknown)}; expected {sorted(known.__dataclass_fields__)}')
        form, cases = (
            typed(values[name], kind) for name, kind in (('form', forms.Form), ('cases', train_cases.CasePlan))
        )
        values = {name: value for name, value in values.items() if name not in ('form', 'cases')}
        return cls(**typed(values, cls), form=forms.Form(**form), cases=train_cases.CasePlan(**cases))

    def to_json(self) -> str:
        """Return indented JSON."""
        return json.dumps(asdict(self), indent=2) + '\n'

    def build_unet(self) -> unet.SlabUNet2D:
        """Build a new network of this plan."""
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in self.unet_options.items()}
        return unet.build_unet(self.size, self.form.n_channels, self.pseudo_3d, **options)

    def build_scheduler(self) -> DDIMScheduler:
        """Build the noise schedule of this plan."""
        return process.build_scheduler(
            self.noise_schedule,
            self.prediction_type,
            clip_sample_range=None if self.form.kind == 'residual' else forms.CLIP,
        )


def typed(values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Return values of the fields of a plan with the types of their defaults.

    YAML reads `6e-4` as a word: words that are numbers are taken as such.

    Raises
    ------
    ValueError
        Names a value of another type.
    """
    usual = {entry.name: entry.default for entry in fields(kind)}
    return {name: value_like(usual[name], value, name) for name, value in values.items()}


def value_like(usual: Any, value: Any, name: str) -> Any:
    """Return a value of the type of a usual one, or raise ValueError."""
    if isinstance(usual, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(usual):
            raise ValueError(f'{name} of a plan is {value!r}, expected {len(usual)} numbers')
        return tuple(value_like(other, item, name) for other, item in zip(usual, value, strict=True))
    is_flag, is_number = isinstance(usual, bool), isinstance(usual, (int, float)) and not isinstance(usual, bool)
    if is_flag != isinstance(value, bool) and usual is not None:
        raise ValueError(f'{name} of a plan is {value!r}, expected {"true or false" if is_flag else repr(usual)} or so')
    if is_number or (usual is None and isinstance(value, str)):
        try:
            number = float(value)
            return int(number) if isinstance(usual, int) and number == int(number) else number
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f'{name} of a plan is {value!r}, expected a number') from None
    if isinstance(usual, str) and not isinstance(value, str):
        raise ValueError(f'{name} of a plan is {value!r}, expected a word as {usual!r}')
    return value


# Table 3.1 of the thesis; the learning rate falls from the end of the warm-up on.
THESIS = Plan(
    name='thesis-3d-mixture',
    size='thesis',
    prediction_type='epsilon',
    form=forms.Form(kind='plain', inside_mask_only=False),
    cases=train_cases.CasePlan(
        crop=(256, 256, 16),
        ellipsoid_radii_voxels=(3.0, 50.0),
        rim_share=0.0,
        max_dilation=0,
        intensity_augmentation=False,
        orientation_augmentation=False,
    ),
    share_at_end=0.0,
    batch_size=1,
    learning_rate=1e-4,
    warmup_updates=500,
    num_updates=90_000,
    decay_updates=89_500,
    mixed_precision='fp16',
    num_inference_steps=50,
    validate_every=1000,
    n_validation_cases=8,  # 50 passes each, on 16 whole slices
)
COMPACT = Plan(
    name='fill-T1w',
    cases=train_cases.CasePlan(rim_share=0.3, grow_share=0.7),
    share_at_end=0.6,
    log_loss_floor=0.01,
)
FLAIR = replace(
    COMPACT,
    name='fill-FLAIR',
    modality='FLAIR',
    # Rims are bright and wide on FLAIR: biharmonic interpolation overshoots there, and paints a new lesion.
    form=forms.Form(base='local_white_matter', residual_scale=0.15),
    cases=replace(COMPACT.cases, rim_contrast=(-1.0, -0.1), rim_share=0.4),
    share_at_end=0.7,
)
# One filler for every contrast: the tissues' contrasts are drawn, see `randomisation`.
ANY = replace(
    COMPACT,
    name='fill',
    modality='any',
    cases=replace(
        COMPACT.cases,
        rim_share=0.4,
        rim_contrast=(0.1, 0.9),
        either_sign=True,
        contrast_randomisation=0.7,
        acquisition_randomisation=0.6,
        native_thick_share=0.12,
        confluent_share=0.25,
    ),
    share_at_end=0.85,  # the one step of the default
    learning_rate=4e-4,
    warmup_updates=30,
    validate_every=250,
    n_validation_cases=24,
)
SYNTH_T1W = replace(
    COMPACT,
    name='synth-T1w',
    task='synth',
    form=forms.Form(base='lesion', residual_scale=0.2, detail_scale=0.3),
    cases=replace(COMPACT.cases, grow_share=0.0, contrast_scale=(0.5, 1.6)),
    share_at_end=0.2,  # samples, not their mean, are wanted: every time step counts
    log_loss_floor=None,
    num_inference_steps=1,  # the mean; the app adds the texture
    start_step=1,
    num_updates=200,
    decay_updates=130,
    warmup_updates=50,
    validate_every=300,
)
SYNTH_FLAIR = replace(
    SYNTH_T1W,
    name='synth-FLAIR',
    modality='FLAIR',
    form=forms.Form(base='lesion', residual_scale=0.4, detail_scale=0.4),
    cases=replace(SYNTH_T1W.cases, rim_contrast=FLAIR.cases.rim_contrast),
    num_updates=300,
    decay_updates=200,
)
MASKS = {'lesions': 0.0, 'circles': 1.0, 'mixture': 0.5}  # share of circles
UNCONDITIONAL = forms.Form(kind='unconditional', inside_mask_only=False)


def thesis_plans(start: Plan, prefix: str) -> list[Plan]:
    """Return every model of the thesis' chapter 3 as changes of one plan: 2D and pseudo-3D, filling and synthesis."""
    plans = []
    # RePaint takes 482 passes, and so the thesis
    unconditional: dict[str, Any] = {'form': UNCONDITIONAL, 'n_validation_cases': 4}
    for dimension, pseudo_3d in (('2d', False), ('3d', True)):
        model = replace(start, pseudo_3d=pseudo_3d)
        for masks_name, ellipsoid_share in MASKS.items():
            cases = replace(start.cases, ellipsoid_share=ellipsoid_share)
            plans.append(replace(model, name=f'{prefix}-{dimension}-{masks_name}', cases=cases))
        plans.append(replace(model, name=f'{prefix}-{dimension}-unconditional', **unconditional))
        synth = replace(model, task='synth', modality='FLAIR')
        plans.append(replace(synth, name=f'{prefix}-{dimension}-synth'))
        unconditional_synth = replace(synth, **unconditional, start_step=3 if pseudo_3d else 1)
        plans.append(replace(unconditional_synth, name=f'{prefix}-{dimension}-synth-unconditional'))
    plans.append(
        replace(start, name=f'{prefix}-2d-unconditional-min-snr', pseudo_3d=False, min_snr_gamma=5.0, **unconditional)
    )
    return plans


def small_plans() -> list[Plan]:
    """Return the plans of the benchmarks: the thesis' models and our changes to them, for a few CPU minutes each."""
    common: dict[str, Any] = {
        'size': 'small',
        'batch_size': 4,
        'learning_rate': 6e-4,
        'warmup_updates': 100,
        'num_updates': 1_000_000,  # give --cpu-minutes
        'decay_updates': 0,
        'mixed_precision': 'no',
        'validate_every': 1_000_000,
        'n_validation_cases': 8,
        'log_loss_floor': None,
    }
    small_cases = {name: getattr(COMPACT.cases, name) for name in ('crop', 'ellipsoid_radii_voxels')}
    cases = replace(THESIS.cases, **small_cases, orientation_augmentation=True)
    thesis = replace(THESIS, **common, cases=cases)
    rims = replace(COMPACT.cases, rim_share=0.5, grow_share=0.0)
    clean = replace(rims, rim_share=0.0, max_dilation=1)
    plain = replace(COMPACT, **common, form=forms.Form(kind='plain'), share_at_end=0.25, num_inference_steps=50)
    residual = replace(COMPACT, **common, share_at_end=0.5)
    return [
        *thesis_plans(thesis, 'small'),
        replace(plain, name='small-plain', cases=clean),
        replace(plain, name='small-plain-rims', cases=rims),
        replace(plain, name='small-prior-rims', cases=rims, form=forms.Form(kind='prior')),
        replace(residual, name='small-residual', cases=clean),
        *(
            replace(residual, name=f'small-residual-rims-{base}', cases=rims, form=forms.Form(base=base))
            for base in forms.BASES
            if base != 'lesion'
        ),
    ]


PLANS = {
    plan.name: plan
    for plan in (
        COMPACT,
        FLAIR,
        ANY,
        SYNTH_T1W,
        SYNTH_FLAIR,
        *thesis_plans(THESIS, 'thesis'),
        *small_plans(),
    )
}


def learning_rate_factor(plan: Plan, update: int) -> float:
    """Return the rate's factor: linear warm-up, constant, then a cosine to zero over the last `decay_updates`."""
    warmup = min(1.0, (update + 1) / plan.warmup_updates) if plan.warmup_updates else 1.0
    left = (plan.num_updates - update) / plan.decay_updates if plan.decay_updates else 1.0
    return warmup * 0.5 * (1 - math.cos(math.pi * min(1.0, max(0.0, left))))
