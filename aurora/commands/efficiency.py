import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aurora.commands._options import Device, Json, Overrides, positive, require_writable_folder
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.config import ModelConfig
    from aurora.evaluation.results import Result

FRAMES = "1,4,16,64,256,512,1024,4096,16384"


@dataclass(frozen=True)
class Baseline:
    """Baseline"""

    baseline: Annotated[Literal["transformer", "none"], typer.Option(help=(
        "What is measured too: a transformer with the same vision encoder that is as wide and deep, with attention by "
        "SDPA and eager."))] = "transformer"
    baseline_tokens: Annotated[int, typer.Option(metavar="N", min=1, help=(
        "Tokens of a frame that the baseline reads; 256 are InternVL's."))] = 256
    baseline_option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help=(
        "An option of its backbone, such as layers=24. May be repeated."))] = None


@dataclass(frozen=True)
class Live:
    """Live video"""

    live_seconds: Annotated[float, typer.Option(metavar="S", min=0, help=(
        "How long a live video is played to find the highest frame rate that keeps up; 0 leaves it out."))] = 10.0
    result: Annotated[list[Path] | None, typer.Option(metavar="RESULT", help=(
        "An output of `aurora eval`, the folder or its result.json, whose score stands in the row of the live video. "
        "May be repeated."))] = None


def efficiency(
    *,
    overrides: Overrides,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help=(
        "Where efficiency.json and the figures go. Points that were measured there are not measured again."))],
    model: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A model folder, in place of a config.")] = None,
    frames: Annotated[str, typer.Option(metavar="N,N,…", help="Numbers of frames to measure.")] = FRAMES,
    video: Annotated[Path | None, typer.Option(metavar="FILE", help=(
        "A video that is read again and again. Default: a generated one of 640×360 at 24 fps."))] = None,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens that are generated per point.")] = 16,
    memory: Annotated[float | None, typer.Option(metavar="GB", parser=positive, help=(
        "Memory that a point may take, such as 24 for the card of the paper. Default: what is free."))] = None,
    timeout: Annotated[float, typer.Option(metavar="S", parser=positive, help="That a point may take.")] = 1800.0,
    baseline: Baseline, live: Live, device: Device, json_output: Json = False,
) -> None:
    """Measure memory and time against the number of frames.

    Every point runs in a process of its own, from the file to the answer: decoding, vision encoder, connector, prefill,
    first token, and each further token. A transformer with the same vision encoder is measured too. What does not fit
    into memory is reported as such.

    \b
    example:
      aurora efficiency --model runs/demo/language_video/model \\
        --output runs/efficiency --frames 1,16,256
      aurora efficiency experiment=auroralong dtype=bfloat16 \\
        --device cuda --memory 24 --output runs/efficiency
    """
    from aurora.terminal import Waiting, write_json

    require_writable_folder(output)
    numbers = _numbers(frames)
    with Waiting("loading"):
        from aurora.evaluation.efficiency.curve import free_bytes, live_row, measure_all
        from aurora.evaluation.efficiency.figure import draw
        from aurora.evaluation.efficiency.point import BASELINES, OURS, Point
        from aurora.evaluation.efficiency.stages import config_of
        from aurora.evaluation.results import read_result
        from aurora.inference.models import use

        if video is not None and not video.is_file():
            raise AuroraError(f"--video {video} is not a file")
        use(device.device, device.threads)
        base = Point(
            series=OURS, frames=1, video="" if video is None else str(video.resolve()), overrides=overrides,
            model=None if model is None else str(model.resolve()), new_tokens=new_tokens, device=device.device,
            threads=device.threads, baseline=_options(baseline.baseline_option or ()),
            baseline_tokens=baseline.baseline_tokens,
            limit_bytes=free_bytes(device.device) if memory is None else int(memory * 1e9))
        config = config_of(base)
        results = [read_result(path) for path in live.result or ()]
        scores = _scores(results)
        about = [_measured(model, config), *_made_otherwise(results, model, config)]
    sys.stderr.write("".join(f"{line}\n" for line in about))
    with Waiting("measuring") as waiting:
        result = measure_all(output, base, numbers, list(BASELINES) if baseline.baseline != "none" else [],
                             timeout_seconds=timeout, stream_seconds=live.live_seconds or None,
                             on_progress=waiting.say)
        waiting.say("drawing")
        written = draw(result, output)
    if json_output:
        return write_json({**result, "live_row": live_row(result, scores)})
    _show(result, live_row(result, scores))
    sys.stderr.write(f"written to {output}: efficiency.json, {', '.join(path.name for path in written)}\n")
    return None


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise AuroraError(f"--frames {text!r} must be whole numbers from 1, such as {FRAMES}")
    return numbers


def _options(given: Sequence[str]) -> dict[str, Any]:
    from aurora.config import parse_override

    return {override.key_or_group: override.value() for override in map(parse_override, given)}


def _measured(model: Path | None, config: "ModelConfig") -> str:
    """What will be measured, in words."""
    import torch

    from aurora.assemble import build_model, count_parameters

    with torch.device("meta"):
        parameters = sum(count_parameters(build_model(config)).values())
    source = "no --model: the config's model is measured, with random weights where base_weights names none" \
        if model is None else f"measuring {model}"
    return f"{source}: {config.vision['name']}, {config.backbone['name']}, {parameters:,} parameters"


def _scores(results: "Sequence[Result]") -> dict[str, float]:
    """The score of every result, by the name of its benchmark, and its folder where others have that name."""
    names = [result.name for result in results]
    if without := [result.path for result in results if result.facts["score"] is None]:
        raise AuroraError(f"--result {without[0]} holds no score yet")
    return {result.name if names.count(result.name) == 1 else f"{result.name} ({result.path.parent})":
            float(result.facts["score"]) for result in results}


def _made_otherwise(results: "Sequence[Result]", model: Path | None, config: "ModelConfig") -> Iterator[str]:
    """A line for every result of a model or settings other than those that are measured."""
    from aurora.config import differences
    from aurora.weights.model_folder import model_hash

    if not results:
        return
    used = ("keep_ratio", "prompt", "merge", "sort", "skip", "reader", "dtype", "quantize")
    measured = {"model": None if model is None else model_hash(model), **{key: config.tree[key] for key in used}}
    for result in results:
        known = {key: result.facts[key] for key in measured if key in result.facts}
        if changed := differences(known, {key: measured[key] for key in known}):
            yield f"{result.path} was made with other settings than are measured here: {'; '.join(changed)}"


def _show(result: Mapping[str, Any], live: Mapping[str, Any] | None) -> None:
    from aurora.evaluation.efficiency.point import STAGES
    from aurora.terminal import stdout, table

    console = stdout()
    shown = table("series", "frames", "peak GiB", "kept MiB", "ms per frame", *(f"{name} ms" for name in STAGES[-2:]))
    for name, points in result["series"].items():
        for number, point in enumerate(points):
            row = _row(point) if point["fits"] else (point["reason"],)
            shown.add_row("" if number else name, f"{point['frames']:,}", *row)
    console.print(shown)
    for name, slopes in result["slopes"].items():
        known = [f"{what.replace('_', ' ')} {slope:.2f}" for what, slope in slopes.items()
                 if slope is not None and what != "bytes_per_frame"]
        if known:
            console.print(f"{name}: slopes over frames: {', '.join(known)}")
    for line in _sentences(result):
        console.print(line)
    if live is not None:
        streamed = table("live video", "max fps", "peak GiB", "state MiB", "first token ms", *live["accuracy"])
        streamed.add_row("aurora", f"{live['max_fps']:.3g}", _gib(live["peak_bytes"]),
                         f"{live['memory_bytes'] / 2**20:.2f}", f"{1000 * live['first_token_seconds']:.1f}",
                         *(f"{score:.1f}" for score in live["accuracy"].values()))
        console.print(streamed)


def _row(point: Mapping[str, Any]) -> tuple[str, ...]:
    first, each = (1000 * point["stages"][name]["seconds"] for name in ("first token", "per token"))
    return (_gib(point["peak_bytes"]), f"{point['memory_bytes'] / 2**20:.2f}",
            f"{1000 * point['watch_seconds'] / point['frames']:.2f}", f"{first:.1f}", f"{each:.2f}")


def _gib(size: int | None) -> str:
    return "n/a" if size is None else f"{size / 2**30:.3f}"


def _sentences(result: Mapping[str, Any]) -> list[str]:
    """How level our memory is, and how much more a baseline takes at 1,024 frames."""
    lines = []
    if level := result["level"]:
        few, many = level["frames"]
        lines.append(f"aurora at {many:,} frames: {level['memory']:.3f} times the memory at {few:,} frames, "
                     f"{level['seconds_per_frame']:.3f} times the time of a frame")
    for name, ratio in result["compared"].items():
        if ratio and ratio["memory"] is not None:
            least = "at least " if ratio["at_least"] else ""
            lines.append(f"{name} at 1,024 frames: {least}{ratio['memory']:.1f} times the memory of aurora "
                         "(the paper: 34 times, against InternVL-1.5 2B)")
        elif ratio:
            lines.append(f"{name} at 1,024 frames: {ratio['reason']}")
    return lines
