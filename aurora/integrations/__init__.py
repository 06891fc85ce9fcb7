"""Aurora as a part of other people's software."""

from typing import Any

LMMS_CLASS = "aurora.integrations.lmms_eval.Aurora"


def lmms_manifest() -> Any:
    """What lmms-eval finds under the entry point group `lmms_eval.models`: where the model's class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="auroralong", simple_class_path=LMMS_CLASS, aliases=("aurora",))
