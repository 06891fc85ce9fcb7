"""What `aurora plan` may be told."""

from __future__ import annotations

from argparse import ArgumentParser

PLAN = (
    "Shows for every stage what is read of each dataset (different samples, visits, tokens, frames, bytes), how many "
    "steps that makes, how full rows are, what decoding takes, and the paper's counts beside. With --published it "
    "needs no shards: counts are those of the catalogue, lengths are assumed."
)
EXAMPLE = ("aurora plan --published\n  aurora plan data.root=data stage=vision\n"
           "  aurora plan experiment=blocks data.root=data/blocks --json\n"
           "  aurora plan --published experiment=auroralong --gpu H100 --gpus 8 --price 2.5")
IMAGE_RATE = VIDEO_RATE = 200.0
"""Megapixels that a core decodes per second; measured were 225 of JPEG with PIL and 247 of H.264 with PyAV (Xeon)."""


def plan(parser: ArgumentParser) -> None:
    """What the command may be told."""
    parser.set_defaults(rest="overrides")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="key=value, see configs/aurora.yaml")
    parser.add_argument("--published", action="store_true", help="plan from published counts, without shards")
    parser.add_argument("--image-rate", type=float, default=IMAGE_RATE, metavar="N",
                        help="megapixels of images that a core decodes per second (default %(default)s)")
    parser.add_argument("--video-rate", type=float, default=VIDEO_RATE, metavar="N",
                        help="megapixels of video that a core decodes per second (default %(default)s)")
    group = parser.add_argument_group("hardware: with --gpu, memory, hours and money of the training too")
    group.add_argument("--gpu", metavar="NAME", help="such as H100 or A800")
    group.add_argument("--gpus", type=int, default=8, metavar="N", help="all together (default %(default)s)")
    group.add_argument("--gpu-gib", type=float, default=80.0, metavar="N", help="memory of each (default %(default)s)")
    group.add_argument("--peak-tflops", type=float, metavar="N", help="of each in 16 bits, where it is not known")
    group.add_argument("--used", type=float, default=0.4, metavar="R",
                       help="share of the peak that training reaches (default %(default)s)")
    group.add_argument("--price", type=float, metavar="N", help="of a GPU and hour, in whatever money")
    parser.add_argument("--json", action="store_true", help="for programs")
