"""An RWKV-6 `.pth` in the authors' layout as a GGUF that llama.cpp reads, without a vocabulary: it is fed ids.

    python tools/make_rwkv6_gguf.py RWKV-x060-World-1B6.pth model.gguf --dtype q8_0

Needs the package `gguf`, for q8_0 `llama-cpp-python` too (tools/build_llama_peer.sh brings both). Without a `.pth`,
`--random` makes one of random weights of the 1.6B model first.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch

from tools.bench.gguf_file import write_gguf
from tools.bench.readers import quantize_gguf
from tools.bench.weights import FULL, write_random

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dtype", choices=(*DTYPES, "q8_0"), default="bfloat16")
    parser.add_argument("--random", action="store_true", help="make WEIGHTS, random, before")
    options = parser.parse_args()
    if options.random:
        write_random(options.weights, FULL, torch.bfloat16)
    weights = torch.load(options.weights, mmap=True, weights_only=True)
    if options.dtype != "q8_0":
        write_gguf(weights, options.target, DTYPES[options.dtype])
        return
    with tempfile.TemporaryDirectory(dir=options.target.absolute().parent) as folder:
        write_gguf(weights, Path(folder) / "bfloat16.gguf", torch.bfloat16)
        quantize_gguf(Path(folder) / "bfloat16.gguf", options.target, threads=os.cpu_count() or 1)


if __name__ == "__main__":
    main()
