"""Aurora: trains and runs AuroraLong, a video language model on a linear RNN."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aurora.version import VERSION as __version__  # noqa: F401 - where others look for it

if TYPE_CHECKING:
    from aurora.config import load_config as load_config
    from aurora.inference.film import Film as Film
    from aurora.inference.generation import Generation as Generation
    from aurora.inference.video_model import VideoModel as VideoModel
    from aurora.inference.video_model import load as load
    from aurora.training.stage import data_module as data_module
    from aurora.training.stage import training_module as training_module
    from aurora.weights.model_folder import load_model as load_model

_PUBLIC = {"load_config": "aurora.config", "training_module": "aurora.training.stage",
           "data_module": "aurora.training.stage", "load_model": "aurora.weights.model_folder",
           "load": "aurora.inference.video_model",
           "VideoModel": "aurora.inference.video_model", "Film": "aurora.inference.film",
            "Generation": "aurora.inference.generation"}


def __getattr__(name: str) -> Any:
    """What Python code uses of Aurora, imported when it is first asked for: `import aurora` takes no time."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'aurora' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
