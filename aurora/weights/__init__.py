"""Weights: files of tensors, model folders, layouts and adapters. `load` and `save` are for parts of other packages."""

from aurora.weights.loading import load as load
from aurora.weights.loading import save as save
