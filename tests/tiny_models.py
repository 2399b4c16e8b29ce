"""Models of synthesis with a tiny network of random weights."""

import numpy as np

from bids_lesionfill.diffusion import forms, models, process


def tiny_model(tiny_unet, modality):
    """A model of synthesis with random weights."""
    form, scheduler = forms.Form(base='lesion'), process.build_scheduler(prediction_type='v_prediction')
    plan = {'task': 'synth', 'modality': modality, 'num_inference_steps': 1}
    contrasts = np.array([10.0, 30.0, 100.0]), np.array([0.5, 0.6, 0.7])
    network = tiny_unet(form.n_channels)
    return models.Model('tiny', 'abc', plan, form, (16, 16, 8), network, scheduler, contrasts=contrasts)
