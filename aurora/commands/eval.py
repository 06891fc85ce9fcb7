import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aurora.commands._options import Adapter, Device, Json, ModelFolder, Overrides, Score
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.evaluation.predictions import Shard


@dataclass(frozen=True)
class Asked:
    """Questions"""

    score: Score = "text"
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help=(
        "Of every answer. Default: what the benchmark gives each question."))] = None


@dataclass(frozen=True)
class Processes:
    """Several processes"""

    shard: Annotated[str | None, typer.Option(metavar="RANK/WORLD", help=(
        "Ask about this part of the videos only, such as 0/4 … 3/4. torchrun's processes need no option. The last "
        "process to end writes the result."))] = None
    merge: Annotated[bool, typer.Option("--merge", help=(
        "Write the result from the predictions that the processes left in --output, without a model."))] = False


def eval(
    *,
    overrides: Overrides,
    benchmark: Annotated[str, typer.Option(metavar="NAME", help=(
        "What is asked and how it is scored: `aurora list benchmark` shows the names and their options."))] = "blocks",
    data: Annotated[Path | None, typer.Option(metavar="FOLDER", help=(
        "The benchmark's folder: annotations and videos as its makers lay them out."))] = None,
    model: ModelFolder = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help=(
        "Where results go. Default: beside the model, as eval/NAME OF THE DATA FOLDER."))] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Ask only N questions, spread over all.")] = None,
    parallel: Annotated[int, typer.Option(
        metavar="N", min=1, help="Questions about one video that are read side by side.")] = 32,
    restart: Annotated[bool, typer.Option("--restart", help="Discard the predictions that are there.")] = False,
    json_output: Json = False,
    asked: Asked, processes: Processes, adapter: Adapter, device: Device,
) -> None:
    """Measure a model on a benchmark.

    Asks every question of the benchmark about the videos of FOLDER. Writes items.jsonl, what is asked;
    predictions.jsonl, line by line; and result.json. A stopped evaluation resumes.

    Overrides change how the model is used, and as benchmark.KEY=VALUE what is asked. The default benchmark, `blocks`,
    reads FOLDER/questions.jsonl, your own questions too: docs/evaluation.md has the format and all benchmarks.

    \b
    example:
      aurora eval --model runs/demo/language_video/model \\
        --data data/blocks/heldout keep_ratio=0.5
      aurora eval --benchmark mvbench --data MVBench \\
        --output runs/mvbench benchmark.subtasks=paper17
    """
    from aurora.terminal import Waiting, progress_bar

    if processes.merge:
        return _show(_merged(output), json_output)
    with Waiting("loading"):
        from aurora.config import part_by_option
        from aurora.evaluation.run import RESULT_FILE, Protocol, evaluate
        from aurora.inference.models import model_folder, saved_model
        from aurora.registry import BENCHMARK
        from aurora.weights.adapters import adapter_hash
        from aurora.weights.model_folder import model_hash

        if data is None:
            raise AuroraError("--data FOLDER is needed: where the benchmark's annotations and videos are")
        chosen, overrides = part_by_option("benchmark", benchmark, overrides)
        shard = _shard(processes.shard, os.environ)
        protocol = Protocol(score=asked.score, max_new_tokens=asked.max_new_tokens)
        found = BENCHMARK.build(chosen).items(data)  # before a model is loaded
        _tell_missing(found.missing, [item.video for item in found.items])
        folder = model_folder(model)
        output = output or folder.parent / "eval" / data.resolve().name
        used, config = saved_model(folder, overrides, **vars(adapter), **vars(_own_device(device, os.environ)))
        identity = model_hash(folder) + ("" if adapter.adapter is None else f"+{adapter_hash(adapter.adapter)}")
    with progress_bar("asking") as tick:
        result = evaluate(used, config, data, output=output, benchmark=chosen, protocol=protocol, model_hash=identity,
                          limit=limit, parallel=parallel, shard=shard, restart=restart, on_progress=tick)
    if result is None:
        sys.stderr.write(f"{output / shard.file} is complete; the last process to end writes the result\n")
        return None
    _show(result, json_output)
    sys.stderr.write(f"written to {output / RESULT_FILE}\n")
    return None


def _show(result: dict[str, Any], json_output: bool) -> None:
    from aurora.evaluation.summary import render
    from aurora.terminal import stdout, write_json

    if json_output:
        return write_json(result)
    return stdout().print(render(result))


def _merged(output: Path | None) -> dict[str, Any]:
    from aurora.evaluation.run import merge

    if output is None:
        raise AuroraError("--merge needs --output FOLDER, where the processes wrote their predictions")
    return merge(output)


def _shard(given: str | None, environment: Mapping[str, str]) -> "Shard":
    """What --shard says, or torchrun."""
    from aurora.evaluation.predictions import Shard

    if given is not None:
        return Shard.parse(given)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Shard.parse(f"{environment['RANK']}/{environment['WORLD_SIZE']}")
    return Shard()


def _own_device(device: Device, environment: Mapping[str, str]) -> Device:
    """The GPU of this process of torchrun's, where any was meant."""
    local = environment.get("LOCAL_RANK")
    return replace(device, device=f"cuda:{local}") if device.device == "cuda" and local is not None else device


def _tell_missing(missing: Sequence[str], videos: Sequence[str]) -> None:
    """Says which videos are not there, before anything is asked."""
    if missing:
        gone = set(missing)
        shown = "\n".join(f"  {video}" for video in missing[:20])
        more = f"\n  and {len(missing) - 20} more" if len(missing) > 20 else ""
        sys.stderr.write(f"{len(missing)} of {len(set(videos))} videos are missing; their "
                         f"{sum(video in gone for video in videos)} questions count as failed:\n{shown}{more}\n")
