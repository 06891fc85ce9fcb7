"""The contracts of the slots: `backbone` and `model` of what computes, `data` of what is read, `benchmark` of what is
measured."""

from aurora.interfaces.backbone import INITIAL_STATE, Backbone, InitialState, Runner
from aurora.interfaces.benchmark import Benchmark, Item, Items
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
    Timestamps,
    Tokenizer,
    Turn,
    VisionEncoder,
    Visual,
    VisualLayout,
    compiled,
)

__all__ = [
    "INITIAL_STATE", "Backbone", "Benchmark", "BlockView", "Connector", "DataModule", "Entry", "Executor", "FrameSkip",
    "InitialState", "Item", "Items", "Merge", "MergeStrategy", "Prompt", "Runner", "Sampling", "Sorter", "Source",
    "Text", "Timestamps", "Tokenizer", "Turn", "VideoReader", "VisionEncoder", "Visual", "VisualLayout",
    "compiled",
]
