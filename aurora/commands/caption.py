"""`aurora caption`."""

from __future__ import annotations

from typing import Annotated

import typer

from aurora.commands._options import Adapter, Device, Overrides
from aurora.commands.ask import Answer, Frames, Model, answer_each


def caption(
    *,
    visual: Annotated[str, typer.Argument(metavar="VIDEO", help="A video or image file.")],
    overrides: Overrides,
    question: Annotated[str | None, typer.Option(
        metavar="TEXT", help="The request. Default: one that training used.")] = None,
    frames: Frames, model: Model, adapter: Adapter, answer: Answer, device: Device,
) -> None:
    """Describe a video or an image.

    Asks for a description; like `aurora ask` otherwise.

    \b
    example:
      aurora caption clip.mp4 --model runs/demo/language_video/model \\
        --max-new-tokens 200
    """
    from aurora.evaluation.prompts import CAPTION_IMAGE, CAPTION_VIDEO
    from aurora.inference.visuals import is_image

    default = CAPTION_IMAGE if is_image(visual) else CAPTION_VIDEO
    answer_each([question or default], visual, overrides, frames, model, adapter, answer, device)
