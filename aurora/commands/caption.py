from typing import Annotated

import typer

from aurora.commands._options import Adapter, Device, split_words
from aurora.commands.ask import Answer, Frames, Model, answer_each, is_saved
from aurora.errors import AuroraError


def caption(
    *,
    words: Annotated[list[str], typer.Argument(
        metavar="VIDEO|OVERRIDE", default_factory=list, show_default=False,
        help="A video or image file, or several that are seen in this order, or a saved film; and overrides such as "
             "keep_ratio=0.5.")],
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
    from aurora.terminal import Waiting

    with Waiting("loading") as waiting:
        from aurora.evaluation.prompts import CAPTION_IMAGE, CAPTION_VIDEO
        from aurora.inference.visuals import is_image

        files, others, overrides = split_words(words)
        if others:
            raise AuroraError(f"{others[0]!r} is neither a file nor an override; --question takes another request")
        default = CAPTION_VIDEO if is_saved(files[0]) or not is_image(files[0]) else CAPTION_IMAGE
        answer_each([question or default], files, overrides, waiting, frames, model, adapter, answer, device)
