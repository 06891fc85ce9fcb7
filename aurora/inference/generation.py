"""From logits to text: which token is next, and which part of the text may already be shown.

Shape letters: S sequences, V vocabulary, D backbone width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Annotated, get_type_hints

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from aurora.errors import AuroraError
from aurora.inference.reading import Memory
from aurora.inference.steps import Steps
from aurora.interfaces import Runner, Tokenizer
from aurora.model import AuroraModel
from aurora.options import PositiveInt, check_kind

COLDEST = 1e-6
"""What lower temperatures are taken as: logits divided by less overflow, and only ties are drawn differently."""
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Generation:
    """How an answer is drawn. `temperature` 0 takes the likeliest token; the prompt's stop always ends an answer, and
    so does any of `stop` in what is shown of it, which begins without white space."""

    max_new_tokens: PositiveInt = 256
    temperature: Annotated[float, Ge(0)] = 0.0
    top_p: Annotated[float, Gt(0), Le(1)] = 1.0
    top_k: PositiveInt | None = None
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Generation, include_extras=True).items():
            check_kind(name, getattr(self, name), kind)
        if "" in self.stop:
            raise AuroraError("an empty stop string would end every answer before it begins")


def filter_logits(logits: Tensor, options: Sequence[Generation]) -> Tensor:
    """[S, V] → [S, V] float32: each row divided by its temperature, with tokens outside its top_k and top_p at -inf."""
    wide, vocab = logits.float(), logits.shape[-1]
    wide = wide / wide.new_tensor([max(one.temperature, COLDEST) for one in options]).unsqueeze(-1)
    if all(one.top_k is None and one.top_p == 1 for one in options):
        return wide
    ordered, order = wide.sort(dim=-1, descending=True, stable=True)
    last = torch.tensor([min(one.top_k or vocab, vocab) - 1 for one in options], device=wide.device).unsqueeze(-1)
    least = ordered.gather(-1, last)
    probabilities = ordered.masked_fill(ordered < least, -torch.inf).softmax(dim=-1)
    # A token stays while those before it have not reached top_p; the first one always does. Rounding may sum up to 1
    # before the end, so a top_p of 1 is none.
    enough = wide.new_tensor([one.top_p if one.top_p < 1 else torch.inf for one in options]).unsqueeze(-1)
    outside = probabilities.cumsum(dim=-1) - probabilities >= enough
    outside = torch.zeros_like(outside).scatter(-1, order, outside) | (wide < least)
    return wide.masked_fill(outside, -torch.inf)


def next_tokens(logits: Tensor, options: Sequence[Generation], generators: Sequence[torch.Generator]) -> Tensor:
    """[S, V] → [S] int64; each sequence has its own options and draws from its own generator, so that company changes
    nothing. ArithmeticError, before anything is drawn, for logits that are not numbers."""
    tokens = logits.argmax(dim=-1)
    drawing = [row for row, one in enumerate(options) if one.temperature > 0]
    if drawing:
        chosen = logits if len(drawing) == len(options) else logits[drawing]
        probabilities = filter_logits(chosen, [options[row] for row in drawing]).softmax(dim=-1).cpu()
        if probabilities[:, 0].isnan().any():  # one that is not a number makes all of its row so
            raise ArithmeticError("the logits of a sequence are not numbers")
        drawn = [torch.multinomial(shares, 1, generator=generators[row])
                 for row, shares in zip(drawing, probabilities, strict=True)]
        tokens[drawing] = torch.cat(drawn).to(tokens.device)
    return tokens


class TextStream:
    """Turns ids into text as they come, holding back what may still change or may become a stop string. `stops` end it
    anywhere, `shown_stops` only behind the white space at its beginning, which is shown to nobody."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], shown_stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops, self._shown_stops = tuple(stops), tuple(shown_stops)
        self._begun = False  # something other than white space was passed on
        self._ids: list[int] = []
        self._start = 0  # decoding begins one settled piece early: some tokenizers drop a text's first space
        self._settled = 0
        self._given = 0  # characters of the decoded window already passed on
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` settles; sets `stopped` at a stop string or the end of text."""
        if token == self._tokenizer.end_of_text:
            self.stopped = True
            return self._release()
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._start :])
        # up to three characters at the end may be the beginning of one of up to four bytes
        whole = max(len(text) - 3, len(text.rstrip(UNKNOWN)))
        new, self._given = text[self._given : whole], max(self._given, whole)
        if whole == len(text):
            self._start, self._settled = self._settled, len(self._ids)
            self._given = len(self._tokenizer.decode(self._ids[self._start :]))
        return self._pass_on(new)

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        rest = self._tokenizer.decode(self._ids[self._start :])[self._given :]
        shown = self._pass_on(rest)
        return shown if self.stopped else shown + self._release()

    def _pass_on(self, new: str) -> str:
        self._held += new
        begin = 0 if self._begun else len(self._held) - len(self._held.lstrip())
        stops = [*((stop, 0) for stop in self._stops), *((stop, begin) for stop in self._shown_stops)]
        found = [place for stop, first in stops if (place := self._held.find(stop, first)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            self.stopped = True
            return self._release()
        # what may become a stop string is held back
        cut = next((place for place in range(len(self._held))
                    if any(place >= first and stop.startswith(self._held[place:]) for stop, first in stops)),
                   len(self._held))
        shown, self._held = self._held[:cut], self._held[cut:]
        self._begun = self._begun or shown.strip() != ""
        return shown

    def _release(self) -> str:
        shown, self._held = self._held, ""
        return shown


def stream(model: AuroraModel, runner: Runner, memory: Memory, options: Generation) -> Iterator[str]:
    """The answer of one sequence without white space before it, in pieces that are final when they are given."""
    if memory.sequences != 1:
        raise ValueError(f"stream answers one sequence, not {memory.sequences}")
    begun = False
    for _, piece in _pieces(model, runner, memory, options):
        shown = piece if begun else piece.lstrip()
        if shown:
            begun = True
            yield shown


def complete(model: AuroraModel, runner: Runner, memory: Memory, options: Generation) -> list[str]:
    """The same for S sequences that are stepped together; a finished one is dropped from the rest's work."""
    answers = [""] * memory.sequences
    for s, piece in _pieces(model, runner, memory, options):
        answers[s] += piece
    return [answer.lstrip() for answer in answers]


@torch.inference_mode()
def _pieces(model: AuroraModel, runner: Runner, memory: Memory, options: Generation) -> Iterator[tuple[int, str]]:
    """(number of a sequence, text that follows in its answer)."""
    texts = [TextStream(model.tokenizer, (model.prompt.stop,), options.stop) for _ in range(memory.sequences)]
    generators = [torch.Generator().manual_seed(options.seed) for _ in texts]
    active = list(range(memory.sequences))
    steps = Steps(runner, memory)
    for produced in count(1):
        tokens = next_tokens(steps.logits, [options] * len(active), [generators[s] for s in active])
        for s, token in zip(active, tokens.tolist(), strict=True):
            if piece := texts[s].push(token):
                yield s, piece
        going = [row for row, s in enumerate(active) if not texts[s].stopped]
        if not going or produced == options.max_new_tokens:
            break
        if len(going) < len(active):
            steps.keep(going)
            tokens = tokens[going]
            active = [active[row] for row in going]
        steps.read(tokens)
    for s, text in enumerate(texts):
        if rest := text.finish():
            yield s, rest
