"""The contracts of the slots: `backbone` and `model` of what computes, `data` of what is read."""

from aurora.interfaces.backbone import INITIAL_STATE, Backbone, InitialState, Runner
from aurora.interfaces.data import DataModule, Entry, Executor, Sampling, Source, VideoReader
from aurora.interfaces.model import (
    BlockView,
    Connector,
    FrameSkip,
    Merge,
    MergeStrategy,
    Prompt,
    Sorter,
    Text,
    Tokenizer,
    Turn,
    VisionEncoder,
    Visual,
    VisualLayout,
)

__all__ = [
    "INITIAL_STATE", "Backbone", "BlockView", "Connector", "DataModule", "Entry", "Executor", "FrameSkip",
    "InitialState", "Merge", "MergeStrategy", "Prompt", "Runner", "Sampling", "Sorter", "Source", "Text", "Tokenizer",
    "Turn", "VideoReader", "VisionEncoder", "Visual", "VisualLayout",
]
