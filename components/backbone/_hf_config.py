"""Which model of `transformers` an `hf` or `transformer` backbone is: its config, from a folder or from sizes."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from aurora.errors import AuroraError, suggest

# the first release whose recurrent caches have the layout that `_hf_memory.py` fills
OLDEST = (5, 23)


@dataclass(frozen=True)
class Wanted:
    """What a backbone's options say about its model."""

    backbone: str
    path: str | None
    model_type: str | None
    hidden_size: int | None
    layers: int | None
    head_size: int | None
    config: Mapping[str, Any] | None
    vocab_size: int


def model_config(wanted: Wanted, default: str) -> Any:
    """The config of `transformers`; `default` is the model type when neither the path nor an option names one.

    AuroraError for options that contradict each other, the folder or the tokenizer.
    """
    if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < OLDEST:
        raise AuroraError(f"backbone {wanted.backbone!r} needs transformers {'.'.join(map(str, OLDEST))} or later; "
                          f"{transformers.__version__} is installed")
    config = _from_sizes(wanted, wanted.model_type or default) if wanted.path is None else _from_folder(wanted)
    try:
        # nn.Embedding would leave the padding token without a gradient; rows are packed, so no token is padding
        config.pad_token_id = None
    except Exception as error:
        raise AuroraError(f"backbone {wanted.backbone!r}: a {config.model_type} cannot do without a padding token"
                          ) from error
    return config


def read_folder(path: str, backbone: str) -> Any:
    """The config that lies in a folder. AuroraError when there is none that `transformers` itself knows."""
    if not (Path(path) / "config.json").is_file():
        raise AuroraError(f"backbone {backbone!r}: {path} holds no config.json; give the folder of a model, as "
                          "save_pretrained writes it")
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise AuroraError(f"backbone {backbone!r}: {path}/config.json describes no model that transformers "
                          f"{transformers.__version__} itself knows (code of the folder is never run): {reason}"
                          ) from error


def plain_config(config: Any) -> dict[str, Any]:
    """What `model_config` builds the same config from, in plain containers."""
    defaults = CONFIG_MAPPING[config.model_type]()
    apart = json.loads(json.dumps(config.to_diff_dict(), default=str))
    left_out = {"model_type", "architectures", "transformers_version", "dtype", "pad_token_id", "_name_or_path"}
    known = {*defaults.to_dict(), *defaults.attribute_map} - left_out
    return {key: value for key, value in apart.items() if key in known}


def _from_folder(wanted: Wanted) -> Any:
    assert wanted.path is not None
    if wanted.config:
        raise AuroraError(f"backbone {wanted.backbone!r}: give either path or config; {wanted.path}/config.json says "
                          "everything that config could")
    config = read_folder(wanted.path, wanted.backbone)
    _check_single(f"backbone {wanted.backbone!r}", config)
    if wanted.model_type not in (None, config.model_type):
        raise AuroraError(f"backbone {wanted.backbone!r}: {wanted.path} holds a {config.model_type}, not a "
                          f"{wanted.model_type}; leave model_type out when a path is given")
    for name, value in (("hidden_size", config.hidden_size), ("layers", config.num_hidden_layers)):
        if getattr(wanted, name) not in (None, value):
            raise AuroraError(f"backbone {wanted.backbone!r}: {name} is {getattr(wanted, name)}, but {wanted.path} "
                              f"has {value}; give null when a path is given")
    if config.vocab_size < wanted.vocab_size:
        raise AuroraError(f"backbone {wanted.backbone!r}: the tokenizer has {wanted.vocab_size} tokens, the model in "
                          f"{wanted.path} only {config.vocab_size}; take its own tokenizer: tokenizer=hf "
                          f"tokenizer.path={wanted.path}")
    return config


def _from_sizes(wanted: Wanted, model_type: str) -> Any:
    where = f"backbone {wanted.backbone!r}"
    if model_type not in CONFIG_MAPPING:
        raise AuroraError(f"{where}: transformers {transformers.__version__} has no model_type {model_type!r}."
                          f"{suggest(model_type, CONFIG_MAPPING).partition(' Known:')[0]}")
    kind = CONFIG_MAPPING[model_type]
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise AuroraError(f"{where}: {model_type!r} is not a causal language model of transformers")
    defaults = kind()
    _check_single(where, defaults)
    given = dict(wanted.config or {})
    for key in given:
        if key not in (known := {*defaults.to_dict(), *defaults.attribute_map}):
            raise AuroraError(f"{where}: config has no key {key!r} for model_type {model_type!r}.{suggest(key, known)}")
    values = {"vocab_size": wanted.vocab_size, **_sizes(wanted, defaults), **given}
    if values["vocab_size"] < wanted.vocab_size:
        raise AuroraError(f"{where}: config.vocab_size is {values['vocab_size']}, the tokenizer has "
                          f"{wanted.vocab_size} tokens; leave it out")
    try:
        return kind(**{defaults.attribute_map.get(key, key): value for key, value in values.items()})
    except Exception as error:
        raise AuroraError(f"{where}: transformers refuses {model_type} with {values}: "
                          f"{' '.join(str(error).split())}") from error


def _sizes(wanted: Wanted, defaults: Any) -> dict[str, Any]:
    """Our three sizes in the words of a family, whose proportions stay; head_size says nothing to a family whose
    channels are heads of their own."""
    values: dict[str, Any] = {}
    known = defaults.to_dict()
    width = wanted.hidden_size or defaults.hidden_size
    if wanted.hidden_size is not None:
        values["hidden_size"] = width
        inner = known.get("intermediate_size")
        if isinstance(inner, int):
            values["intermediate_size"] = max(8, round(inner / defaults.hidden_size * width / 8) * 8)
    if wanted.layers is not None:
        values["num_hidden_layers"] = wanted.layers
    recurrent = "num_heads" in known
    if wanted.head_size is None or not (recurrent or "num_attention_heads" in {*known, *defaults.attribute_map}):
        return values
    inner = int(defaults.expand * width) if recurrent and "expand" in known else width
    heads, rest = divmod(inner, wanted.head_size)
    if rest:
        raise AuroraError(f"backbone {wanted.backbone!r}: hidden_size {width} gives {inner} channels to heads, which "
                          f"is not a multiple of head_size {wanted.head_size}")
    values["num_heads" if recurrent else "num_attention_heads"] = heads
    if "head_dim" in known:
        values["head_dim"] = wanted.head_size
    if "num_key_value_heads" in known:
        values["num_key_value_heads"] = heads
    if "n_groups" in known:
        values["n_groups"] = math.gcd(defaults.n_groups, heads)
    return values


def _check_single(where: str, config: Any) -> None:
    """AuroraError for a model that sees or hears by parts of its own."""
    if (text := config.get_text_config(decoder=True)) is not config:
        raise AuroraError(f"{where}: a {config.model_type} has several parts; only a language model by itself is "
                          f"taken, here a {text.model_type}")
