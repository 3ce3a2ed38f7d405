"""scikit-learn's 8x8 scans of digits, which are part of that package."""

import numpy as np
import torch

from fedcurv.simulations.data.samples import DataSet
from fedcurv.simulations.data.sets.registry import register_data_set, standardised


@register_data_set("digits")
def _digits(root: str, download: bool) -> DataSet:
    from sklearn.datasets import load_digits

    pictures = load_digits()
    # every fifth sample is for testing: the same ones whatever the seed
    pixels = torch.from_numpy(pictures.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(pictures.target.astype(np.int64))
    is_test = torch.arange(len(labels)) % 5 == 0
    return standardised(pixels[~is_test], labels[~is_test], pixels[is_test], labels[is_test])
