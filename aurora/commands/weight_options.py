"""What `aurora convert` and `aurora export` may be told."""

from __future__ import annotations

from argparse import ArgumentParser

CONVERT = (
    "Writes the weights of one part under other names, in another file format or dtype. SOURCE is a .pth or "
    ".safetensors file, a folder with model.safetensors or shards and their index, or a model folder of Aurora, of "
    "which the part is taken; its layout is recognised. TARGET is a .pth or .safetensors file, or a folder, which gets "
    "shards and a config.json where the layout has one. Weights are streamed: no more than the largest tensor is held "
    "in memory.\n\n"
    "Every name is accounted for. Nothing is written when names are missing or unexpected, unless that is allowed."
)
CONVERT_EXAMPLE = (
    "aurora convert RWKV-x060-World-1B6.pth finch --backbone rwkv6 --to fla --dtype bfloat16\n"
    "  aurora convert finch finch.pth --backbone rwkv6\n"
    "  aurora convert runs/demo/language_video/model tower --vision siglip"
)
EXPORT = (
    "Writes a model folder as one to give away: weights in shards, config, tokenizer, prompt, and a model card with "
    "the parts, the stages it was trained in and the results that were measured on it. `--model TARGET` takes it "
    "wherever a model folder is taken.\n\n"
    "With --from-parts there is no model yet: the one that a config describes is made of its base weights, the "
    "connector of random ones; OVERRIDES after `--` choose it as for `aurora train`."
)
EXPORT_EXAMPLE = (
    "aurora export runs/demo/language_video/model exports/blocks --license apache-2.0\n"
    "  aurora export --from-parts exports/untrained -- dtype=bfloat16 \\\n"
    "    base_weights.vision.siglip=siglip-large-patch16-384 \\\n"
    "    base_weights.backbone.rwkv6=RWKV-x060-World-1B6-v2.1-20240328-ctx4096.pth"
)


def convert(parser: ArgumentParser) -> None:
    """The arguments of `aurora convert`."""
    parser.add_argument("source", metavar="SOURCE", help="a file or folder of weights")
    parser.add_argument("target", metavar="TARGET", help="what to write: NAME.safetensors, NAME.pth or a folder")
    part = parser.add_mutually_exclusive_group(required=True)
    part.add_argument("--backbone", metavar="NAME", help="the weights are of this backbone: rwkv6, rwkv7 "
                      "(layouts authors, fla), mamba2 (transformers, authors, aurora)")
    part.add_argument("--vision", metavar="NAME", help="the weights are of this vision encoder: siglip (transformers, "
                      "transformers-bare, aurora)")
    parser.add_argument("--to", metavar="LAYOUT", help="by default the layout that the part reads as base weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="by default each tensor's own")
    parser.add_argument("--allow-missing", action="store_true", help="write what is there")
    parser.add_argument("--allow-unexpected", action="store_true", help="leave out what is not known")
    parser.add_argument("--report", metavar="FILE", help="what became of every name, as JSON")
    _writing(parser)


def export(parser: ArgumentParser) -> None:
    """The arguments of `aurora export`."""
    parser.add_argument("folder", metavar="MODEL_FOLDER", nargs="?",
                        help="as training writes it, RUN/STAGE/model, or a checkpoint of a stage that is still "
                        "trained, RUN/STAGE/checkpoints/step-N")
    parser.add_argument("target", metavar="TARGET", help="the folder to write")
    parser.set_defaults(overrides=[])
    parser.add_argument("--from-parts", action="store_true", help="instead of MODEL_FOLDER: a model of base weights")
    parser.add_argument("--name", metavar="TEXT", help="title of the model card; by default the name of TARGET")
    parser.add_argument("--license", metavar="ID", help="of the model card, such as apache-2.0; none by default")
    parser.add_argument("--results", metavar="FILE", action="append", default=[],
                        help="a result.json of `aurora eval`, shown in the card; those below MODEL_FOLDER/../eval that "
                        "were measured on these weights always are")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="by default the model's own")
    _writing(parser)


def _writing(parser: ArgumentParser) -> None:
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="of a folder's files (default %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a TARGET that is there")
