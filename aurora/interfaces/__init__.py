"""The contracts of the slots: `model` of what computes, `data` of what is read."""

from aurora.interfaces.data import DataModule, Entry, Executor, Sampling, Source, VideoReader, check_sampling
from aurora.interfaces.model import (
    Backbone,
    BlockView,
    Connector,
    Merge,
    MergeStrategy,
    Prompt,
    Sorter,
    Text,
    Tokenizer,
    Turn,
    VisionEncoder,
    Visual,
)

__all__ = [
    "Backbone", "BlockView", "Connector", "DataModule", "Entry", "Executor", "Merge", "MergeStrategy", "Prompt",
    "Sampling", "Sorter", "Source", "Text", "Tokenizer", "Turn", "VideoReader", "VisionEncoder", "Visual",
    "check_sampling",
]
