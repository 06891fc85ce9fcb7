"""Makes the small base weights of Blocks world: a tokenizer, a SigLIP trained contrastively, an RWKV-6 trained on text.

They stand for the pretrained parts that the paper starts from, so that its stages mean the same in small. The encoder
has never seen the language model's words, and the language model has never seen a picture: it has read accounts of
scenes, frame by frame, the words of one thing at once, and answered questions about them.

    python tools/train_blocks_base.py tokenizer language vision --out aurora/assets/blocks
"""

from __future__ import annotations

import argparse
import math
import random
import re
import string
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count, pairwise, product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from aurora.interfaces import Text, Turn
from aurora.registry import BACKBONE, MERGE, PROMPT, SORT, TOKENIZER, VISION
from aurora.training.muon import Muon
from aurora.types import IGNORE
from datamodules.blocks.build import heldout_question
from datamodules.blocks.conversations import (
    CHOICES,
    STILL,
    image_caption_turn,
    place_name,
    question_turns,
    video_caption_turn,
)
from datamodules.blocks.families import FAMILIES, drawn_family
from datamodules.blocks.render import draw
from datamodules.blocks.scenes import AXES, BANDS, SHAPES, Look, Scene, SceneMaker, Thing, of_split

VISION_OPTIONS = {"image_size": 96, "patch_size": 12, "width": 128, "layers": 6, "heads": 4, "mlp_width": 384}
BACKBONE_OPTIONS = {"hidden_size": 128, "layers": 4, "head_size": 32}
VOCABULARY = 640
COLUMNS = "abcdefgh"
EVENT_LAYERS = 2
"""After so many layers it is told what each thing has just done; the others are left to gather that."""
OPTION_LAYERS = 3
"""After so many layers it is told at the end of each option whether that is right, and which one; the last is left to
answer with its letter."""
LETTERS = string.ascii_uppercase
WRONG = len(LETTERS)
OPTION = re.compile(r"\(?(?P<letter>[A-Z])(\)|\.) (?P<text>.+)\n")
"""A line of a question that is an option, in either form."""


class Glance(NamedTuple):
    """What is read in place of one visual token."""

    words: str  # read at once, as one position
    event: str | None = None  # a word for what has become of it since the frame before, to be predicted from there


Sight = list[Glance]
"""What is read in place of visual tokens."""


class Ease(NamedTuple):
    """How much of what is read is easy. A small recurrent model learns to look things up in one frame and in answers
    that stand close by, or not at all; letters come last, since they ask for two things to be looked up."""

    still: float = 0.15  # share of single frames among all that is seen
    open: float = 0.4  # share of questions without options
    letters: float = 0.25  # share of questions with options that ask for a letter

    @classmethod
    def at(cls, share: float) -> Ease:
        """After a share of the training."""
        return cls(max(cls().still, 0.9 - 2 * share), max(cls().open, 0.8 - 0.6 * share),
                   cls().letters if share > 0.5 else 0.0)


def account(rng: random.Random, ease: Ease) -> tuple[Sight, list[Turn]]:
    """What stands in place of the visual tokens, and the conversation about it: a still or a whole video. Half of the
    conversations hold a caption."""
    maker = SceneMaker(rng)
    if rng.random() < ease.still:
        scene = of_split("train", lambda: maker.plain(rng.randint(1, 4)))
        sight, caption, families, first = look(rng, scene, 0.0), image_caption_turn(scene), STILL, None
    else:
        first = drawn_family(rng)
        scene = of_split("train", lambda: FAMILIES[first].make(maker))
        sight, caption, families = watched(rng, scene), video_caption_turn(scene), ()
    turns = question_turns(scene, rng, 6, families=families, first=first, open_share=ease.open,
                           letter_share=ease.letters)
    if not turns or rng.random() < 0.5:
        turns.insert(rng.choice((rng.randint(0, len(turns)), len(turns))), caption)
    return sight, turns


def glances(scene: Scene, time: float) -> list[str]:
    """The words of each thing that a frame shows, and of what is behind: a connector hands over as much per token.

    Of a thing's place they say the ninth of the frame, and its square among those of the patches, named as on a
    chessboard: what moves is on another square almost every second.
    """
    parts = []
    for thing in scene.seen(time):
        x, y = thing.place(time, scene.duration)
        parts.append(f" {thing.color_at(time)} {thing.look.shape} {place_name(x, y)} {COLUMNS[int(8 * x)]}{int(8 * y)}")
    return [*parts, *([" wall"] if scene.wall else []), f" {scene.background_at(time)}"]


def rearranged(maker: SceneMaker, scene: Scene) -> Scene:
    """A scene of the same colours with other shapes in other places, perhaps of another split."""
    axis, bands = maker.rng.choice(AXES), maker.rng.sample(BANDS, len(scene.things))
    things = []
    for thing, band in zip(scene.things, bands, strict=True):
        other = maker.resting(axis, band)
        things.append(replace(thing, look=Look(thing.look.color, maker.rng.choice(SHAPES)), start=other.start,
                              end=other.end, radius=other.radius))
    return replace(scene, things=tuple(things))


def event(thing: Thing, scene: Scene, time: float) -> str | None:
    """What a thing has done in the second before; None where that cannot be known."""
    before = time - 1
    if before < 0 or (thing.visible(before) and thing not in scene.seen(before)):
        return None
    if not thing.visible(before):
        return " appears"
    if thing.color_at(time) != thing.color_at(before):
        return " turns"
    return f" {thing.direction}" if thing.moves else " rests"


def look(rng: random.Random, scene: Scene, time: float) -> Sight:
    """A frame as merged tokens tell it: things before what is behind them, in any order, some more than once."""
    *things, behind = glances(scene, time)
    events = [event(thing, scene, time) for thing in scene.seen(time)]
    reported = [Glance(*told) for told in zip_longest(things, events) for _ in range(rng.choice((1, 1, 2)))]
    rng.shuffle(reported)
    return [*reported, *[Glance(behind)] * rng.randint(1, 4)]


def watched(rng: random.Random, scene: Scene) -> Sight:
    """A whole video at one frame a second."""
    return [glance for second in range(int(scene.duration)) for glance in look(rng, scene, float(second))]


def document(rng: random.Random, ease: Ease) -> list[Text | Sight]:
    """One text of the base language model, as pieces: a prompt with the account in the place of what is seen."""
    return laid_out(rng.choice(("sandwich", "sandwich", "generic", "generic", "image_first")), *account(rng, ease))


def laid_out(prompt: str, sight: Sight, turns: Sequence[Turn]) -> list[Text | Sight]:
    return [piece if isinstance(piece, Text) else sight
            for piece in PROMPT.build({"name": prompt}).layout(turns, visual=True)]


def make_tokenizer(folder: Path, seed: int) -> None:
    """A byte-level BPE of the words of Blocks world: any text can be encoded, its own text is short."""
    rng = random.Random(seed)
    texts = ["".join(piece.text if isinstance(piece, Text) else "".join(glance.words for glance in piece)
                     for piece in document(rng, Ease())) for _ in range(4000)]
    texts += [f" {letter}" for letter in LETTERS]  # an answer of one token each
    tokenizer = Tokenizer(models.BPE())
    # words, digits and signs, with the space before them; an option's letter is one token
    words = Regex(r" ?\([A-Z]\)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens, "
          f"{sum(map(len, tokenizer.encode_batch(texts))) / len(texts):.0f} a document")


class Row(NamedTuple):
    """Packed documents; W words are read at once where an account stands, one elsewhere."""

    words: Tensor  # [T, W], -1 where there are fewer
    targets: Tensor  # [T]
    answers: Tensor  # [T] whether the target belongs to an answer
    events: Tensor  # [T] the token for what has become of a thing, IGNORE where none is read
    options: Tensor  # [T] at the end of an option its number if it is right, else WRONG; IGNORE elsewhere
    cu_seqlens: Tensor  # [S + 1]


class Place(NamedTuple):
    """One position of a row."""

    words: list[int]  # read there
    token: int = IGNORE  # to be predicted before it
    answer: bool = False  # whether that is part of an answer
    event: int = IGNORE
    option: int = IGNORE


def rows(tokenizer: Any, documents: Iterable[list[Text | Sight]], length: int) -> Iterator[Row]:
    """Packed rows of at least so many positions each, but for the last one."""
    encode = lru_cache(4096)(tokenizer.encode)
    places: list[Place] = []
    bounds = [0]
    for document in documents:
        answers = [piece.text.strip() for piece in document if isinstance(piece, Text) and piece.learned]
        for piece in document:
            if not isinstance(piece, Text):
                places += [Place(encode(glance.words), event=encode(glance.event)[0] if glance.event else IGNORE)
                           for glance in piece]
            elif piece.learned:
                places += [Place([token], token, answer=True) for token in encode(piece.text)]
                del answers[0]
            else:
                for line in piece.text.splitlines(keepends=True):  # no token has parts of two lines
                    places += [Place([token], token) for token in encode(line)]
                    option = OPTION.fullmatch(line)
                    if option:  # it ends before the line does
                        is_right = answers[0] in option.group("letter", "text")
                        number = LETTERS.index(option["letter"]) if is_right else WRONG
                        places[-2] = places[-2]._replace(option=number)
        places[bounds[-1]] = places[bounds[-1]]._replace(token=IGNORE, answer=False)
        bounds.append(len(places))
        if len(places) >= length:
            yield _row(places, bounds)
            places, bounds = [], [0]
    if places:
        yield _row(places, bounds)


def _row(places: list[Place], bounds: list[int]) -> Row:
    following = [*places[1:], Place([])]
    width = max(len(place.words) for place in places)
    return Row(torch.tensor([place.words + [-1] * (width - len(place.words)) for place in places]),
               torch.tensor([place.token for place in following]), torch.tensor([place.answer for place in following]),
               torch.tensor([place.event for place in places]), torch.tensor([place.option for place in places]),
               torch.tensor(bounds))


def train_language(folder: Path, seed: int, steps: int, *, further: Path | None, precision: str) -> None:
    """An RWKV-6 that reads accounts of scenes and answers about them: single frames first, then ever more videos.

    From halfway up it is also to tell what each thing has done since the frame before: movers are told from resters at
    once, where answers alone teach it late or not at all. With `further` it goes on from the model of that folder, with
    texts as they are at the end. Only then it is also to tell, one layer on, at the end of each option whether that is
    the right one, and its letter: from the first step on it learned colors by that, and never shapes."""
    tokenizer = TOKENIZER.build({"name": "hf", "path": str(folder / "tokenizer")})
    torch.manual_seed(seed)
    model = BACKBONE.build({"name": "rwkv6", **BACKBONE_OPTIONS}, vocab_size=tokenizer.vocab_size)
    if further is not None:
        take_over(further, model, tokenizer)
    heads = {layers: nn.Sequential(nn.LayerNorm(model.hidden_size), nn.Linear(model.hidden_size, classes))
             for layers, classes in ((EVENT_LAYERS, tokenizer.vocab_size), (OPTION_LAYERS, WRONG + 1))}
    inner: dict[int, Tensor] = {}
    hooks = [model.blocks[layers - 1].register_forward_hook(
        lambda module, given, made, layers=layers: inner.update({layers: made[0]})) for layers in heads]

    def told(layers: int, targets: Tensor) -> Tensor:
        """The loss of what is told after so many layers."""
        asked = targets != IGNORE
        logits = heads[layers](inner.pop(layers)[asked]).float()
        return F.cross_entropy(logits, targets[asked], reduction="sum") / max(1, len(logits))

    rng = random.Random(seed if further is None else f"{seed}/further")
    done, of_options, peak_lr = (0.0, 0.0, 3e-3) if further is None else (1.0, 0.5, 2e-3)
    data = rows(tokenizer, (document(rng, Ease.at(done)) for _ in count()), 2048)
    print(f"language: {sum(p.numel() for p in model.parameters())} parameters")

    def loss(share: float) -> tuple[Tensor, str]:
        nonlocal done
        done = max(done, share)
        row = next(data)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = predicted(model, row).float()
            events, options = told(EVENT_LAYERS, row.events), told(OPTION_LAYERS, row.options)
        losses = F.cross_entropy(logits, row.targets, ignore_index=IGNORE, reduction="none")
        opening = row.answers & ~row.answers.roll(1)  # the first token of an answer
        right = (logits.argmax(-1) == row.targets)[opening].float().mean().item()
        answer, text = losses[row.answers].mean(), losses[~row.answers & (row.targets != IGNORE)].mean()
        # a caption has as many tokens as many answers, so those that decide are counted once more
        decided = losses[opening].mean()
        return (answer + decided + 0.1 * text + 0.3 * events + of_options * options,
                f"answers {answer.item():.3f} text {text.item():.3f} events {events.item():.3f} "
                f"options {options.item():.3f} right {right:.2f}")

    optimize(nn.ModuleList([model, *heads.values()]), loss, steps, peak_lr=peak_lr)
    for hook in hooks:
        hook.remove()
    save_half(model, folder / "rwkv6.safetensors")
    for (prompt, form), shares in sorted(right_answers(model.float(), tokenizer).items()):
        print(f"  {prompt} {form}: " + ", ".join(f"{family} {share:.0%}" for family, share in shares.items()))


@torch.no_grad()
def take_over(folder: Path, model: Any, tokenizer: Any) -> None:
    """Fills `model` with the weights of a folder, whose tokenizer may be another one: a token that it lacks begins as
    the mean of those that it reads instead."""
    theirs = TOKENIZER.build({"name": "hf", "path": str(folder / "tokenizer")})
    source = BACKBONE.build({"name": "rwkv6", **BACKBONE_OPTIONS}, vocab_size=theirs.vocab_size)
    source.load_base(str(folder / "rwkv6.safetensors"))
    weights = source.state_dict()
    pieces = [theirs.encode(tokenizer.decode([token])) for token in range(tokenizer.vocab_size)]
    for name in ("emb.weight", "head.weight"):
        own = model.state_dict()[name]
        weights[name] = torch.stack([weights[name][ids].mean(0) if ids else own[token]
                                     for token, ids in enumerate(pieces)])
    model.load_state_dict(weights)


def predicted(model: Any, row: Row) -> Tensor:
    """[T, V]: the logits after each position, where the words of one position are read as the sum of theirs."""
    read = (model.embed(row.words.clamp(min=0)) * (row.words >= 0).unsqueeze(-1)).sum(1)
    hidden, _ = model(read, row.cu_seqlens)
    return model.logits(hidden)


@torch.inference_mode()
def right_answers(model: Any, tokenizer: Any, each: int = 40) -> dict[tuple[str, str], dict[str, float]]:
    """By prompt and form of the options, for every family the share of questions of the validation split that the
    likeliest tokens answer rightly, about accounts of the videos."""
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for prompt, (form, ask), family in product(("sandwich", "generic"), CHOICES.items(), FAMILIES):
        documents = []
        for number in range(each):
            rng = random.Random(f"{family}/{number}")
            scene, question = heldout_question(family, rng, "validation")
            documents.append(laid_out(prompt, watched(rng, scene), [ask(question, rng)]))
        [row] = rows(tokenizer, documents, 10**9)
        right = (predicted(model, row).argmax(-1) == row.targets) | ~row.answers
        shares.setdefault((prompt, form), {})[family] = sum(
            bool(right[start:stop].all()) for start, stop in pairwise(row.cu_seqlens.tolist())) / each
    return shares


class PhraseTower(nn.Module):
    """Reads a phrase as the sum of its words for the contrastive loss; not kept."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[P, W], -1 where there are fewer words → [P, width]."""
        return F.normalize(self.mix((self.words(tokens.clamp(min=0)) * (tokens >= 0).unsqueeze(-1)).sum(1)), dim=-1)


def pictures(rng: random.Random, batch: int, alike: int) -> tuple[Tensor, list[list[str]]]:
    """Pictures and the phrases that tell them; `alike` of them have the same colours, so that shapes and places must be
    seen and read."""
    maker = SceneMaker(rng)
    images, phrases = [], []
    while len(images) < batch:
        scene = of_split("train", lambda: FAMILIES[rng.choice(sorted(FAMILIES))].make(maker) if rng.random() < 0.4
                         else maker.plain(rng.randint(1, 4)))
        for _ in range(alike):
            moment = rng.uniform(0, scene.duration - 0.1)
            images.append(torch.from_numpy(draw(scene, moment).copy()))
            phrases.append(glances(scene, moment))
            scene = of_split("train", partial(rearranged, maker, scene))
    return torch.stack(images).permute(0, 3, 1, 2).contiguous(), phrases


def train_vision(folder: Path, seed: int, steps: int) -> None:
    """A SigLIP by its own loss, a sigmoid for every pair of a picture and a text (arXiv 2303.15343), where a text is a
    phrase about one thing and its score that of the patch that fits it best (late interaction, arXiv 2111.07783): so
    each thing's color, shape and place come to stand in its own patches."""
    tokenizer = TOKENIZER.build({"name": "hf", "path": str(folder / "tokenizer")})
    torch.manual_seed(seed)
    rng = random.Random(seed)
    encoder = VISION.build({"name": "siglip", **VISION_OPTIONS, "feature_layer": -2})
    width = VISION_OPTIONS["width"]
    model = nn.ModuleDict({"encoder": encoder, "text": PhraseTower(tokenizer.vocab_size, width),
                           "head": nn.Linear(width, width)})
    model.scale = nn.Parameter(torch.tensor(math.log(10.0)))
    model.bias = nn.Parameter(torch.tensor(-8.0))
    merge, sort = MERGE.build({"name": "none"}), SORT.build({"name": "raster"})
    print(f"vision: {sum(p.numel() for p in encoder.parameters())} parameters")

    def loss(share: float) -> tuple[Tensor, str]:
        pixels, reported = pictures(rng, 96, alike=4)
        known = sorted({phrase for phrases in reported for phrase in phrases})
        ids = [tokenizer.encode(phrase) for phrase in known]
        longest = max(map(len, ids))
        read = model["text"](torch.tensor([phrase + [-1] * (longest - len(phrase)) for phrase in ids]))
        seen = F.normalize(model["head"](encoder(pixels, merge=merge, sort=sort, keep=64).features), dim=-1)
        scores = (seen.flatten(0, 1) @ read.T).view(len(pixels), -1, len(known)).amax(1)
        logits = scores * model.scale.exp() + model.bias
        fits = torch.tensor([[phrase in phrases for phrase in known] for phrases in reported])
        value = -F.logsigmoid(torch.where(fits, logits, -logits)).sum(1).mean()
        found = (logits > 0)[fits].float().mean()
        return value, f"contrastive {value.item():.3f} found {found.item():.2f}"

    optimize(model, loss, steps, peak_lr=2e-3)
    centre(encoder, pictures(rng, 256, alike=1)[0])
    save_half(encoder, folder / "siglip.safetensors")


def centre(encoder: nn.Module, pixels: Tensor) -> None:
    """Takes what the features of all patches have in common out of the last bias.

    It says nothing, and the head of the contrastive loss takes it out by itself; but a connector that starts from it
    hands over tokens that are nearly alike, and whether it gets away from there in its few steps is luck.
    """
    with torch.no_grad():
        tokens = encoder(pixels, merge=MERGE.build({"name": "none"}), sort=SORT.build({"name": "raster"}), keep=64)
        encoder.blocks[-1].mlp.down.bias -= tokens.features.mean((0, 1))


def optimize(model: nn.Module, loss: Callable[[float], tuple[Tensor, str]], steps: int, peak_lr: float) -> None:
    """Muon for the matrices inside blocks, AdamW for the rest; warm-up, and a cosine. `loss` is given the share of the
    steps that are done, and says what it found besides."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and "blocks." in name and "time_" not in name]
    chosen = {id(parameter) for parameter in inside}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    optimizers = [Muon(inside, lr=peak_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(rest, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01)]
    shown = time.monotonic()
    for step in range(steps):
        rate = peak_lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        value, reported = loss(step / steps)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"  step {step + 1} of {steps} {reported}", flush=True)


def save_half(model: nn.Module, path: Path) -> None:
    """Half precision halves the package; its error is far below that of so short a training."""
    model.half().save_base(str(path))
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="+", choices=("tokenizer", "language", "vision"))
    parser.add_argument("--out", type=Path, default=Path("aurora/assets/blocks"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps of each part that is trained")
    parser.add_argument("--further", type=Path, metavar="FOLDER",
                        help="train the language model of this folder further, such as that of --out")
    parser.add_argument("--precision", choices=("bf16-mixed", "32-true"), default="32-true",
                        help="of the language model; bfloat16 is faster where the processor multiplies it faster")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if "tokenizer" in arguments.parts:
        make_tokenizer(arguments.out / "tokenizer", arguments.seed)
    if "language" in arguments.parts:
        train_language(arguments.out, arguments.seed, arguments.steps, further=arguments.further,
                       precision=arguments.precision)
    if "vision" in arguments.parts:
        train_vision(arguments.out, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
