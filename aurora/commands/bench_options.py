"""What `aurora bench` may be told."""

from __future__ import annotations

from argparse import ArgumentParser

BENCHES = ("kernels", "prefill", "decode", "vision", "train", "data")
BENCH = (
    "Does a work in Aurora and in whatever else can do it here, in turns, after checking that the results agree. Shows "
    "medians and quartiles, how many times longer the others take, and which share of what the machine was measured "
    "to be able to was reached. Writes results.json, results.md and results.png.\n\n"
    "kernels: the operators under the backbones. prefill, decode: RWKV-6 1.6B. vision: SigLIP-L/16-384, and a whole "
    "model. train: a training step. data: building shards, reading them, decoding videos. all: one after the other. "
    "docs/benchmarks/ says how to read the results."
)
EXAMPLE = "aurora bench kernels --quick\n  aurora bench decode --dtype bfloat16 --out runs/bench/decode"


def bench(parser: ArgumentParser) -> None:
    """The arguments, but for those of the machine."""
    parser.add_argument("what", metavar="WHAT", choices=(*BENCHES, "all"), help=f"{', '.join(BENCHES)} or all")
    parser.add_argument("--out", metavar="FOLDER", default="runs/bench", help="(default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows in seconds that it runs, not how fast")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "int8"),
                        help="only works in this one; may be repeated")
    parser.add_argument("--weights", metavar="FILE", help="an RWKV-6 1.6B .pth for prefill, decode and vision; by "
                        "default random weights are made, and thrown away at the end")
