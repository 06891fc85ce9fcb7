"""`aurora caption-many`: one request to very many videos, on one machine or on a Ray cluster."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aurora.commands._options import Adapter, Json, ModelFolder, require_writable_folder, split_overrides
from aurora.commands._workers import Devices, Jobs, Threads, device_of_each, make_executor, worker_model
from aurora.commands.ask import Answer, Sampled
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.inference.captions import CaptionTask, Outcome

_SHOWN = 20  # failures that are spelt out on the screen


def caption_many(
    *,
    words: Annotated[list[str], typer.Argument(
        metavar="INPUT|OVERRIDE", default_factory=list, show_default=False,
        help="WebDataset tars; lists of videos (.txt, .jsonl, .csv, .parquet); folders; videos; globs of these. And "
             "overrides such as keep_ratio=0.5.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the answers are written.")],
    question: Annotated[str | None, typer.Option(metavar="TEXT", help=(
        "What is asked; a list may bring a question per video. Default: a description."))] = None,
    format: Annotated[Literal["jsonl", "parquet"], typer.Option(help="Of the files with the answers.")] = "jsonl",
    videos_per_file: Annotated[int, typer.Option(
        metavar="N", min=1, help="A list or folder of more videos than N becomes several files.")] = 256,
    batch: Annotated[int, typer.Option(
        metavar="N", min=1, help="Videos that are answered in one forward pass.")] = 16,
    column: Annotated[str, typer.Option(metavar="NAME", help="Where lists name the video.")] = "video",
    retry: Annotated[bool, typer.Option("--retry", help="Do files again in which a video failed.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Replace all that was written.")] = False,
    model: ModelFolder = None,
    frames: Sampled, adapter: Adapter, answer: Answer,
    jobs: Jobs = None, devices: Devices = "cpu", threads: Threads = None,
    ray: Annotated[bool, typer.Option("--ray", help=(
        "Run --jobs actors on a Ray cluster instead, each with a GPU if --devices is cuda (needs the extra "
        "auroralong\\[ray]). RAY_ADDRESS names the cluster; without it one is started here."))] = False,
    json_output: Json = False,
) -> int:
    """Describe many videos, or ask one question about all of them.

    Every tar, and every list or part of one, gives one file of answers, written as a whole. Files that are there are
    skipped, so after an interruption the same command goes on. A broken video does not stop the others: its line says
    why, and the exit status is 1.

    \b
    example:
      aurora caption-many videos --output captions --jobs 2
      aurora caption-many clips.jsonl 'shards/*.tar' --output answers \\
        --question "Is anybody indoors?" --format parquet
      RAY_ADDRESS=head:6379 aurora caption-many 's/*.tar' --output captions \\
        --ray --jobs 16 --devices cuda
    """
    from aurora.evaluation.prompts import CAPTION_VIDEO
    from aurora.inference.captions import Request, caption_tasks
    from aurora.inference.generation import Generation
    from aurora.inference.models import model_folder
    from aurora.inference.video_lists import input_shards

    inputs, overrides = split_overrides(words)
    if not inputs:
        raise AuroraError("nothing to watch: give tars, lists of videos, folders or videos")
    if question is not None and not question.strip():
        raise AuroraError("the question is empty")
    require_writable_folder(output)
    request = Request(question or CAPTION_VIDEO, Generation(**vars(answer)), format, batch)
    if ray and devices not in ("cpu", "cuda"):
        raise AuroraError(f"--devices {devices}: with --ray it is cpu or cuda, since Ray gives every actor its GPU")
    places = [devices] * (jobs or 1) if ray else device_of_each(devices, jobs, "process")
    shards = input_shards(inputs, videos_per_file=videos_per_file, column=column, without=output)
    with TemporaryDirectory(prefix="aurora-captions-") as scratch:
        worker = worker_model(model_folder(model), [*overrides, *frames.overrides()], adapter, places, threads,
                              claims=Path(scratch) / "device")
        tasks = caption_tasks(shards, output, worker, request, retry=retry, restart=restart)
        done = _watched(_run(tasks, len(places), ray, gpu=devices.startswith("cuda")), len(tasks))
    _report(done, output, json_output)
    return 1 if any(outcome.failed for outcome in done) else 0


def _run(tasks: "Sequence[CaptionTask]", jobs: int, ray: bool, *, gpu: bool) -> "Iterator[Outcome]":
    """What becomes of every task; first of those that were done before."""
    from aurora.inference.captions import caption_shard
    from aurora.inference.workers import run_claimed

    left = []
    for task in tasks:
        if (result := task.result()) is None:
            left.append(task)
        else:
            yield result
    if not left:
        return
    if ray:
        try:
            from aurora.commands._ray_captions import caption_on_ray
        except ModuleNotFoundError as error:
            raise AuroraError(f"--ray needs {error.name}, which is not installed; pip install 'auroralong[ray]'"
                              ) from error
        yield from run_claimed(lambda some: caption_on_ray(some, actors=jobs, gpu=gpu), left)
    else:
        executor = make_executor("process", {}, jobs)
        yield from run_claimed(lambda some: executor.run(caption_shard, some), left)


def _watched(outcomes: "Iterable[Outcome]", total: int) -> "list[Outcome]":
    """All outcomes by name, with a bar while they come."""
    from rich.progress import BarColumn, TimeElapsedColumn, TimeRemainingColumn

    from aurora.terminal import progress

    done: list[Outcome] = []
    with progress("{task.description}", BarColumn(), "{task.fields[text]}", TimeElapsedColumn(), TimeRemainingColumn()
                  ) as bars:
        bar = bars.add_task("answering", total=total, text="")
        for outcome in outcomes:
            done.append(outcome)
            answers = sum(one.answers for one in done)
            bars.update(bar, advance=1, text=f"{len(done)} of {total} files, {answers:,} answers")
    return sorted(done)


def _report(done: "Sequence[Outcome]", output: Path, json_output: bool) -> None:
    from aurora.terminal import clock, write_json

    if json_output:
        write_json([outcome._asdict() for outcome in done])
        return
    counts = Counter(outcome.status for outcome in done)
    failures = [(outcome.name, *one) for outcome in done for one in outcome.failures]
    sys.stdout.write(f"{output}: {counts['written']} files written, {counts['present']} were there, {counts['broken']} "
                     f"broken; {sum(one.answers for one in done):,} answers about "
                     f"{clock(sum(one.seconds for one in done))} of video, {len(failures):,} failed\n")
    for outcome in done:
        if outcome.status == "broken":
            sys.stdout.write(f"{outcome.name}: {outcome.detail}\n")
    for name, video, reason in failures[:_SHOWN]:
        sys.stdout.write(f"{name}: {video}: {reason}\n")
    if len(failures) > _SHOWN:
        sys.stdout.write(f"and {len(failures) - _SHOWN:,} more, whose lines say why\n")
