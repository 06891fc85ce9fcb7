"""What commands that use a model may be told."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser
from typing import TypeAlias

Options: TypeAlias = "argparse._ActionsContainer"

MODEL_HELP = ("a model folder, as training writes it; by default runs/*/language_video/model of this folder if there "
              "is just one")


def visual(parser: ArgumentParser) -> None:
    """What is seen."""
    group = parser.add_argument_group("what is seen")
    group.add_argument("--with", dest="more", action="append", default=[], metavar="FILE",
                       help="a further image or video, seen after the first; may be repeated")
    group.add_argument("--fps", type=float, metavar="N", help="frames per second of video")
    group.add_argument("--frames", type=int, metavar="N", help="this many frames instead, spread evenly")
    group.add_argument("--max-frames", type=int, metavar="N", help="at most this many; beyond, spread evenly")
    group.add_argument("--keep-ratio", type=float, metavar="R", help="share of the patches kept per frame, in (0, 1]")


def model(parser: ArgumentParser) -> None:
    """Which model answers."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="FOLDER", help=MODEL_HELP)
    adapter(group)
    group.add_argument("--random-weights", action="store_true",
                       help="no saved model: the one that a config describes, untrained; OVERRIDES after `--` choose "
                            "it as for `aurora train`")
    for slot in ("merge", "sort", "prompt"):
        group.add_argument(f"--{slot}", metavar="NAME", help=f"another {slot} than the model's, see `aurora list`")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and activations")
    group.add_argument("--quantize", choices=("int8",), help="round the language model's matrices: less memory, faster "
                                                             "answers")
    machine(group)


def adapter(group: Options) -> None:
    """What is put on the model."""
    group.add_argument("--adapter", metavar="PATH",
                       help="RUN/STAGE/adapter of a stage that trained adapters on this model, a folder of peft for "
                            "its backbone, or a file with a tuned initial state")
    group.add_argument("--any-base", action="store_true",
                       help="apply the adapter although it was trained on another model")


def machine(group: Options) -> None:
    """Where it runs."""
    group.add_argument("--device", default="cpu", help="where the model runs, such as cuda (default %(default)s)")
    group.add_argument("--threads", type=int, metavar="N", help="of the processor; by default one per core")


def generation(parser: ArgumentParser) -> None:
    """How an answer is drawn."""
    group = parser.add_argument_group("answer")
    group.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="(default %(default)s)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T",
                       help="0 always takes the likeliest token (default %(default)s)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P",
                       help="draw from the likeliest tokens that hold this probability (default %(default)s)")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    group.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT",
                       help="end the answer before this text; may be repeated")
