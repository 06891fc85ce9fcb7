from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from aurora.commands._options import Json, Overrides, positive
from aurora.errors import AuroraError

if TYPE_CHECKING:
    from aurora.training.budget import Hardware

MEGAPIXELS_PER_SECOND = 200.0
"""That a core decodes; measured were 225 of JPEG with PIL and 247 of H.264 with PyAV (Xeon)."""


@dataclass(frozen=True)
class GPUs:
    """Hardware: with --gpu, memory, hours and cost of the training too"""

    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="Such as H100 or A800.")] = None
    gpus: Annotated[int, typer.Option(metavar="N", min=1, help="GPUs of all nodes together.")] = 8
    gpu_gib: Annotated[float, typer.Option(metavar="N", parser=positive, help="Memory of each.")] = 80.0
    peak_tflops: Annotated[float | None, typer.Option(
        metavar="N", parser=positive, help="Of each in 16 bits, where it is not known.")] = None
    used: Annotated[float, typer.Option(
        metavar="R", parser=positive, help="Share of the peak that training reaches.")] = 0.4
    price: Annotated[float | None, typer.Option(
        metavar="N", parser=positive, help="Price of a GPU hour, in any currency.")] = None

    def hardware(self) -> "Hardware | None":
        """The same; None when no GPU was named. AuroraError for options that make no sense together, and for an unknown
        GPU without its peak."""
        from aurora.training.budget import PEAK_TFLOPS, Hardware, named_peak

        if self.used > 1:
            raise AuroraError(f"--used {self.used} is a share of the peak; it must be at most 1")
        if self.gpu is None and (self.price is not None or self.peak_tflops is not None):
            raise AuroraError("--price and --peak-tflops need --gpu NAME, which may be any with --peak-tflops")
        if self.gpu is None:
            return None
        peak = named_peak(self.gpu) if self.peak_tflops is None else self.peak_tflops * 1e12
        if peak is None:
            raise AuroraError(f"--gpu {self.gpu}: its peak is not known; give --peak-tflops, or one of "
                              f"{', '.join(PEAK_TFLOPS)}")
        return Hardware(self.gpus, self.gpu_gib * 2**30, peak, self.used, self.price)


def plan(
    *,
    overrides: Overrides,
    published: Annotated[bool, typer.Option(
        "--published", help="Plan from published counts, without shards.")] = False,
    image_rate: Annotated[float, typer.Option(
        metavar="N", parser=positive, help="Megapixels of images that a core decodes per second.")
    ] = MEGAPIXELS_PER_SECOND,
    video_rate: Annotated[float, typer.Option(
        metavar="N", parser=positive, help="Megapixels of video that a core decodes per second.")
    ] = MEGAPIXELS_PER_SECOND,
    json_output: Json = False,
    gpus: GPUs,
) -> int:
    """Show what stages will read, before they are trained.

    Shows for every stage what is read of each dataset (different samples, visits, tokens, frames, bytes), how many
    steps that makes, how full rows are, what decoding takes, and the paper's counts as a baseline. With --published it
    needs no shards: counts are those of the catalogue, lengths are assumed. The exit status is 1 when a stage does not
    fit the hardware.

    \b
    example:
      aurora plan --published
      aurora plan data.root=data stage=vision
      aurora plan experiment=blocks data.root=data/blocks --json
      aurora plan --published experiment=auroralong --gpu H100 \\
        --gpus 8 --price 2.5
    """
    from aurora.config import load_config
    from aurora.terminal import write_json

    from ._plan import against_paper, plan_stages, show

    stages = plan_stages(load_config(*overrides), published=published, machine=gpus.hardware(), image_rate=image_rate,
                         video_rate=video_rate)
    planned = {"stages": stages, "tables": against_paper(stages)}
    if json_output:
        write_json(planned)
    else:
        show(planned, image_rate, video_rate)
    return int(any(stage["training"] is not None and not stage["training"]["fits"] for stage in stages.values()))
