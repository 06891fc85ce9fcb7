"""`aurora export`: a whole model as a folder to give away, with shards, config, tokenizer, prompt and model card.

The card says what the model is made of, how it was trained and what was measured, as far as that is known.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from aurora.assemble import build_model, count_parameters
from aurora.config import ModelConfig, read_config
from aurora.errors import AuroraError
from aurora.files import read_json, replacing, require_free, require_room, write_json
from aurora.interfaces import Text, Turn
from aurora.model import AuroraModel
from aurora.registry import MODEL_SLOTS
from aurora.types import state_bytes
from aurora.version import VERSION
from aurora.weights.convert import DTYPES, SHARD_BYTES, Progress, summed
from aurora.weights.io import Output, are_mapped, write_shards
from aurora.weights.model_folder import describe_model, fitting_tensors, model_hash, part_metadata

CARD_FILE = "README.md"
PROMPT_FILE = "prompt.json"
_SPARE_BYTES = 2**26  # for what lies beside the weights
# what lies beside a model, by the names that training and evaluation give it: RUN/STAGE/{model,done.json,eval}
DONE_FILE = "done.json"
RESULTS = "eval/*/result.json"


def export(
    folder: Path, target: Path, *, name: str | None = None, licence: str | None = None, dtype: str | None = None,
    results: Sequence[str] = (), sources: Mapping[str, str] | None = None, force: bool = False,
    shard_bytes: int = SHARD_BYTES, progress: Progress = lambda done, all: None,
) -> None:
    """Writes the model in `folder` to the folder `target`, which `load_model` reads as well. Streamed; whole or not at
    all. AuroraError for a model that is broken or not the one that its config describes.

    `sources` says of a model that was not trained yet where the weights of its slots come from.
    """
    require_free(target, folder=True, force=force)
    config = read_config(folder).override([] if dtype is None else [f"dtype={dtype}"])
    with torch.device("meta"):
        model = build_model(config)
    _, tensors = fitting_tensors(model, folder, config)
    card = model_card(model, config, name=name or target.resolve().name, licence=licence,
                      training=training_of(folder), sources=sources,
                      results=results_of(folder, model_hash(folder), results))
    wanted, mapped = DTYPES[config.dtype] if dtype else None, are_mapped(folder)
    outputs = {key: Output.of(tensor, wanted if tensor.is_floating_point() else None, mapped=mapped)
               for key, tensor in tensors.items()}
    all_bytes = sum(output.nbytes for output in outputs.values())
    require_room(target, all_bytes + _SPARE_BYTES)
    with replacing(target, folder=True) as place:
        describe_model(config, place)
        write_json(place / PROMPT_FILE, describe_prompt(model))
        (place / CARD_FILE).write_text(card, encoding="utf-8")
        for file in model.tokenizer.files:
            shutil.copyfile(file, place / file.name)
        write_shards(place, outputs, part_metadata(config), shard_bytes, summed(progress, all_bytes))


# ---- the card -------------------------------------------------------------------------------------------------


def describe_prompt(model: AuroraModel) -> dict[str, Any]:
    """The form of a conversation, with the words {question} and {answer} where those stand."""
    pieces = model.prompt.layout([Turn("{question}", "{answer}")], visual=True)
    # what stands in front of every frame, each character tokenized by itself
    visual = {"visual": True, "timestamps": "h:mm:ss"} if model.prompt.timestamps else {"visual": True}
    return {
        "pieces": [{"text": piece.text, "learned": piece.learned} if isinstance(piece, Text) else visual
                   for piece in pieces],
        "stop": model.prompt.stop,
    }


def training_of(folder: Path) -> list[dict[str, Any]]:
    """What is known of the stages that made RUN/STAGE/model, the first one first; none for any other folder."""
    stages: list[dict[str, Any]] = []
    marker = folder.resolve().parent / DONE_FILE
    while marker.is_file() and len(stages) < 100:
        done = read_json(marker)
        trained: dict[str, dict[str, Any]] = done.get("stages", {})
        if not trained:
            break
        name, recipe = next(iter(trained.items()))
        stages.insert(0, {"stage": name, "recipe": recipe, "seed": done.get("seed"), "start": done.get("start", {}),
                          "precision": (done.get("trainer") or {}).get("precision")})
        marker = marker.parent.parent / str(recipe.get("after")) / DONE_FILE
    return stages


def results_of(folder: Path, model_hash: str, given: Sequence[str]) -> list[dict[str, Any]]:
    """The results of `aurora eval` that were measured on this model: those given, and those that lie beside it.

    AuroraError for one that was given and is of another model.
    """
    found = [read_json(Path(path)) for path in given]
    for path, result in zip(given, found, strict=True):
        if result.get("model") != model_hash:
            raise AuroraError(f"{path} was measured on another model (its hash is {str(result.get('model'))[:12]}…, "
                              f"this one's {model_hash[:12]}…); `aurora eval --model {folder}` measures this one")
    beside = [read_json(path) for path in sorted(folder.resolve().parent.glob(RESULTS))]
    return found + [result for result in beside if result.get("model") == model_hash and result not in found]


def model_card(model: AuroraModel, config: ModelConfig, *, name: str, licence: str | None,
               training: Sequence[Mapping[str, Any]], sources: Mapping[str, str] | None,
               results: Sequence[Mapping[str, Any]]) -> str:
    """README.md with its front matter."""
    names = {slot: config.part(slot)["name"] for slot in MODEL_SLOTS}
    front = {
        **({"license": licence} if licence else {}),
        "library_name": "auroralong",
        "pipeline_tag": "video-text-to-text",
        "tags": ["video", "linear-rnn", names["vision"], names["backbone"]],
    }
    counts = count_parameters(model)
    parts = [(slot, part, ", ".join(f"{key} {value}" for key, value in config.part(slot).items()
                                    if key not in ("name", "path") and value is not None),
              f"{counts[slot]:,}" if slot in counts else "") for slot, part in names.items()]
    state = state_bytes(model.backbone.init_state(1))
    return Path(__file__).with_name("card.md").read_text(encoding="utf-8").format(
        front=yaml.safe_dump(front, sort_keys=False), name=name, version=VERSION,
        licence=f"Licence: {licence}." if licence else "Whoever exported this model named no licence.",
        parts=_table(("slot", "part", "options", "parameters"), parts), parameters=sum(counts.values()),
        dtype=config.dtype, keep_ratio=config.keep_ratio, tokenizer=names["tokenizer"],
        state=f"{state:,} bytes, whatever the length" if model.backbone.constant_state else "it grows with the length",
        prompt="".join(piece.get("text", "<video>") for piece in describe_prompt(model)["pieces"]).rstrip(),
        stop=model.prompt.stop, training=_training(training, sources), results=_results(results),
    )


def _training(stages: Sequence[Mapping[str, Any]], sources: Mapping[str, str] | None) -> str:
    if sources is not None:
        return f"This model was not trained as a whole. Its weights: {_named(sources)}."
    if not stages:
        return "Nothing is recorded about it."
    rows = [(each["stage"], ", ".join(each["recipe"].get("trained", ())), _datasets(each["recipe"].get("mixture", {})),
             *(str(each["recipe"].get(key, "")) for key in ("keep_ratio", "peak_lr", "global_batch", "epochs")),
             str(each["precision"]), str(each["seed"])) for each in stages]
    columns = ("stage", "trained", "data", "keep ratio", "peak rate", "global batch", "epochs", "precision", "seed")
    return f"{_table(columns, rows)}\nThe first stage started from {_named(stages[0]['start'])}."


def _datasets(mixture: Mapping[str, Any]) -> str:
    return ", ".join(mixture["datasets"] if isinstance(mixture.get("datasets"), Mapping) else mixture)


def _named(sources: Mapping[str, str]) -> str:
    # only the names: where files lay is nobody's business
    return ", ".join(f"{slot}: {Path(str(path)).name}" for slot, path in sources.items())


def _results(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "None were measured on these weights."
    rows = []
    for result in results:
        rows += [(name, str(row["n"]), _percent(row["accuracy"]), _between(row["low"], row["high"]),
                  _percent(row["wrong_video_accuracy"]), _percent(row["chance"]))
                 for name, row in {**result.get("families", {}), "all": result}.items() if row.get("n")]
    columns = ("questions", "n", "accuracy", "95 % interval", "on a wrong video", "chance")
    used = {f"keep ratio {result.get('keep_ratio')}, {result.get('dtype')}" for result in results}
    return f"{_table(columns, rows)}\nMultiple choice, measured by `aurora eval` ({'; '.join(sorted(used))})."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _between(low: float | None, high: float | None) -> str:
    return "–" if low is None else f"{_percent(low)} – {_percent(high)}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
