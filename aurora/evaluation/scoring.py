"""Which option an answer means: by what the model wrote, or by how likely each option is as its answer.

Shape letters: T tokens of all options, D backbone width, V vocabulary.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from aurora.evaluation.verdicts import said
from aurora.inference.reading import Memory, fork
from aurora.interfaces import Runner, Text, Turn
from aurora.model import AuroraModel

LOGIT_ROWS = 256
"""Positions whose logits [V] are held at a time."""


class OptionScore(NamedTuple):
    """How likely an option is as the answer."""

    log_prob: float  # natural logarithm, summed over the tokens
    tokens: int

    @property
    def per_token(self) -> float:
        """The mean log-probability of a token: long options are not at a disadvantage."""
        return self.log_prob / self.tokens


@torch.inference_mode()
def score_options(model: AuroraModel, runner: Runner, memory: Memory, options: Sequence[str]) -> list[OptionScore]:
    """log P(option | what was read) of each option's text as the prompt's form writes an answer, without its stop.

    `memory` is one sequence after a question, as `Film.read_all` gives it; the options are read side by side from
    copies of its state.
    """
    ids = [model.tokenizer.encode(_as_answer(model, option)) for option in options]
    device = memory.last_hidden().device
    lengths = [len(tokens) for tokens in ids]
    bounds = torch.tensor([0, *lengths], device=device).cumsum(0)
    targets = torch.tensor([token for tokens in ids for token in tokens], device=device)  # [T]
    start = fork(memory, [0] * len(options))
    hidden, _ = runner.read(model.backbone.embed(targets), bounds, start.state)  # [T, D]
    # what predicts a token is the hidden state before it: for the first one, that after the question
    before = hidden.roll(1, dims=0)
    before[bounds[:-1]] = start.last_hidden().to(before)
    log_probs = []
    for part, wanted in zip(torch.split(before, LOGIT_ROWS), torch.split(targets, LOGIT_ROWS), strict=True):
        logits = model.backbone.logits(part).float()  # [LOGIT_ROWS, V]
        log_probs.append(logits.log_softmax(dim=-1).gather(1, wanted[:, None]).squeeze(1))
    return [OptionScore(float(part.sum()), len(part)) for part in torch.split(torch.cat(log_probs).double(), lengths)]


def likeliest(model: AuroraModel, runner: Runner, memory: Memory, options: Sequence[str], *, per_token: bool
              ) -> tuple[int, list[float]]:
    """The index of the likeliest option, and the log-probability of each, or its mean over the tokens."""
    scores = score_options(model, runner, memory, options)
    values = [score.per_token if per_token else score.log_prob for score in scores]
    return values.index(max(values)), values


def _as_answer(model: AuroraModel, option: str) -> str:
    pieces = model.prompt.layout([Turn("", option)], visual=False)
    learned = "".join(piece.text for piece in pieces if isinstance(piece, Text) and piece.learned)
    return learned.removesuffix(model.prompt.stop)


# ---- what was written ---------------------------------------------------------------------------------------------

_SEVERAL = -1  # options are named, but not a single one of those that there are

_QUOTES = "\"'“”‘’«»"
_EDGES = _QUOTES + "*_~`$.,;!…{} \t\r\n"
_WIDE_SIGNS = str.maketrans({"。": ". ", "、": ", ", "，": ", ", "：": ": ", "；": "; ", "！": "! "})
_END_TOKENS = re.compile(r"<\|[^<|>]*\|>|</\w+>|<(?:eos|end_of_turn)>")  # what a tokenizer left: <|im_end|>, </s>
_COPULA = re.compile(r"(?<![A-Za-z])([A-Za-z][)\]⟩]?)\s?(?:입니다|です)")  # "is", behind what it is said of
_COMMAND = re.compile(r"\\(?:boxed|fbox|text\w*|math\w+)\s*\{([^{}]*)\}|<(\w+)>([^<>]*)</\2>")
# a letter alone between signs of emphasis or quotes is as good as one in brackets: **b**, "b", \boxed{b} become ⟨b⟩
_WRAPPED = re.compile(rf"(?<!\w)[*_~`${_QUOTES}]+\s*([A-Za-z])\s*[*_~`${_QUOTES}]+(?!\w)")
_EMPHASIS = re.compile(rf"[*$~`]|(?<!\w)[_{_QUOTES}]+|[_{_QUOTES}]+(?!\w)|^[ \t]*(?:[#>•-][ \t]*)+", re.MULTILINE)

_BRACKETED = r"[(\[{<⟨]+\s*(?P<bracketed>[A-Za-z])\s*[)\]}>⟩]+[.):]?"
_MARKED = r"(?P<marked>[A-Za-z])(?:\s?[.:](?=\s|$)|\s?\)|(?<=[A-Z])\s[-–—](?=\s))"
_VERDICT = r"\s+(?:is|would be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
_FIRST = re.compile(rf"{_BRACKETED}|{_MARKED}|(?P<bare>[A-Z])(?=[!,;]?[ \t]*(?:\n|$)|{_VERDICT})"
                    r"|(?P<all>[b-z])[!,;]?$")  # "a" is also an article that was cut off
# after "Answer:" a letter needs no mark, unless it may be the article of what follows
_LED = re.compile(rf"{_BRACKETED}|{_MARKED}|(?P<bare>[A-Za-z])(?=\s*(?:$|\n|[,;!](?=\s|$)|[-–—]\s)"
                  rf"|\s+(?:because|since|as)\b|{_VERDICT})")
_NOUN = (r"(?:(?:(?:the|my)\s+)?(?:(?:best|correct|right|final|most\s+\w+)\s+)*(?:answer|ans|option|choice|letter)\b"
         r"|(?:正确|最佳)?答案|选择?项?|정답|답|答え|正解)")
_SAYS = r"\s*(?:(?:is|would\s+be|should\s+be)\b\s*[:=]?|[:=]|[-–—](?=\s)|\n|[是为은は])"
_LEAD = re.compile(rf"(?:^|(?<=[.!?:,{{\n]))\s*(?:(?:so|thus|hence|therefore|and)\b,?\s*)?{_NOUN}(?P<says>{_SAYS})?\s*"
                   rf"(?:{_NOUN}(?:{_SAYS})?\s*)?", re.IGNORECASE)
_CHOOSES = r"(?:it\s+is|it['’]s|i\s+(?:choose|pick|select))\b"
_OPENING = re.compile(rf"^(?P<says>{_CHOOSES})(?!\s+(?-i:a)\W*$)\s*(?:{_NOUN}\s*)?", re.IGNORECASE)
_TRAILING = re.compile(r"[\s,]*[(\[](?:(?:option|answer)\s+)?[A-Za-z][)\]][\s.]*$", re.IGNORECASE)
# what names another option behind the first letter: right after it, or anywhere
_END = r"(?=\s*(?:$|[\n,;/&|.:!?)\]⟩+=]|[-–—]\s))"
_JOINED = r"\b(?:and|or|nor)\b"
_NEXT = re.compile(rf"[\s,;/&|.:!)\]⟩+-]*(?:{_JOINED}[\s(\[]*)?([A-Z])(?:{_END}|(?=\s+{_JOINED}|{_VERDICT}))")
_LATER = re.compile(r"(?<!\w)[(\[{<⟨]\s*([A-Za-z])\s*[)\]}>⟩]|(?<![\w(\[{<⟨])([A-Za-z])(?:\)|:(?=\s))"
                    rf"|^\s*([A-Z]){_END}|{_JOINED}\s+([B-HJ-Z])(?!\w)|[.,;/!?]\s*([A-Z])\W*$|\b([A-Z])(?={_VERDICT})"
                    rf"|(?i:{_NOUN}(?:{_SAYS})?\s*([a-z])){_END}|(?i:{_NOUN}{_SAYS})\s*([B-HJ-Z])(?!\w)"
                    rf"|(?i:{_CHOOSES})\s+([A-Z]){_END}", re.MULTILINE)
# what takes the letter before it back: "is wrong", "cannot be right", "no."
_SMALL = (r"(?:(?:an?|the|which|is|was|be|would|could|can|must|seems|looks|appears|to|also|clearly|definitely|probably|"
          r"option|answer|choice)\s+)*")
_ENDS = r"(?=\s*(?:$|[\n.,;:!?)])|\s+(?:answer|option|choice|one|because|since|as)\b)"
_REJECTED = re.compile(rf"\W*(?:(?:is|was)(?:\s+not|n['’]t)\b|{_SMALL}(?:wrong|incorrect|false|untrue|no){_ENDS}"
                       rf"|{_SMALL}(?:not|never|cannot|\w+n['’]t)\s+{_SMALL}(?:correct|right|true|best|it){_ENDS})",
                       re.IGNORECASE)
_STRAY = re.compile(rf"[B-HJ-Z](?![\w'’])|[AI](?=\s*[^\w\s'’]|\s+{_JOINED})")


def chosen_option(answer: str, options: Sequence[str]) -> int | None:
    """The index of the option that an answer names, by its whole text or by its letter; None when it names none,
    several, or one that does not exist. What the model thought aloud does not count.

    An option's whole text wins over a letter: "A. Smith" is that option wherever it stands. Letters are read as people
    write them, at the beginning or after "the answer is": "(b)", "**B**", "B. blue", "B" and a line end; not where they
    are taken back, as in "(B) is wrong".
    """
    whole = _same(answer, options)
    if whole is not None:
        return whole
    text = _plain(answer)
    found = _named(text, options, _FIRST)
    if found is None:
        leads = [*_OPENING.finditer(text), *_LEAD.finditer(text)]
        named = {_led(text, lead, options) for lead in leads} - {None}
        found = named.pop() if len(named) == 1 else None
    return None if found == _SEVERAL else found


def _same(text: str, options: Sequence[str]) -> int | None:
    """The first option whose whole text this is, if need be but for case, white space, quotes, emphasis and a closing
    mark; None where options of other texts are it too."""
    for form in (str.strip, _bare):
        wanted = form(text)
        found = [index for index, option in enumerate(options) if wanted and form(option) == wanted]
        if found:
            return found[0] if len({options[index].strip() for index in found}) == 1 else None
    return None


def _bare(text: str) -> str:
    return " ".join(_unwrapped(text, str).casefold().strip(_EDGES).split())


def _plain(text: str) -> str:
    """The text without thoughts and typography; a letter that this set apart stands in brackets."""
    text = _unwrapped(said(text),
                      lambda inner: f"⟨{inner.strip()}⟩" if re.fullmatch(r"\s*[A-Za-z]\s*", inner) else inner)
    text = _WRAPPED.sub(r"⟨\1⟩", _END_TOKENS.sub("\n", text))
    return _COPULA.sub(r"\1", _EMPHASIS.sub("", text)).strip()


def _unwrapped(text: str, inside: Callable[[str], str]) -> str:
    r"""Without \boxed{…} and <answer>…</answer>, whose contents `inside` rewrites."""
    text, before = unicodedata.normalize("NFKC", text.translate(_WIDE_SIGNS)), ""
    while text != before:
        text, before = _COMMAND.sub(lambda match: inside(match[1] or match[3] or ""), text), text
    return text


def _led(text: str, lead: re.Match[str], options: Sequence[str]) -> int | None:
    """What stands after "the answer is", or a letter right after "option", where an "A" is no article."""
    if not lead["says"]:
        found = _labelled(text[lead.end():], options, _LED)
        letter = lead[0].strip().casefold().endswith(("option", "choice", "letter"))
        return _SEVERAL if found is None and letter and re.match(r"A\s", text[lead.end():]) else found
    found = _named(text[lead.end("says"):].lstrip(), options, _LED)
    return _named(text[lead.end():], options, _LED) if found is None else found


def _named(text: str, options: Sequence[str], labels: re.Pattern[str]) -> int | None:
    """What the text begins with: an option's text up to the end, alone or in "B (blue)" or "blue (B)", or a label."""
    behind = re.sub(r"^[(\[](.*)[)\]]$", r"\1", text[bare.end():]) if (bare := re.match(r"[A-Z][\s,]+", text)) else ""
    for other in (text, behind, _TRAILING.sub("", text)):
        if (whole := _same(other, options)) is not None:
            return whole
    return _labelled(text, options, labels)


def _labelled(text: str, options: Sequence[str], labels: re.Pattern[str]) -> int | None:
    """The option of the letter at the beginning; `_SEVERAL` if it says no more than that, None without a letter."""
    match = labels.match(text)
    if match is None:
        return _SEVERAL if _STRAY.match(text) else None
    letter = next(found for found in match.groups() if found).upper()
    index, rest = ord(letter) - ord("A"), text[match.end():]
    if index >= len(options):
        return _SEVERAL
    if (whole := _same(rest, options)) is not None:
        return whole
    own, rest = options[index].strip(), rest.lstrip()
    if rest.casefold().startswith(own.casefold()):
        rest = rest[len(own):]
    if _REJECTED.match(rest):
        return _SEVERAL
    following = _NEXT.match(rest)
    named = {following[1]} if following else set()
    named |= {name.upper() for found in _LATER.finditer(rest) for name in found.groups()
              if name and ord(name.upper()) - ord("A") < len(options)}
    return index if named <= {letter} else _SEVERAL


# ---- answers that are a word or a number --------------------------------------------------------------------------

_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_BEGINS = re.compile(r"(?:(?:the\s+)?answer(?:\s+is)?\s*[:,]?\s*)?(yes|no)\b(?!-)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,-])\d+(?![\w]|[.,]\d)")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_WORD = re.compile(rf"(?<![\w-])(?<!no )(?:{'|'.join(_WORDS)})(?![\w-])", re.IGNORECASE)
_OTHER_NUMBER = re.compile(r"\d|\b(?:(?:thir|four|fif|six|seven|eigh|nine)teen"
                           r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
                           r"|dozen|hundred|thousand|million|half|third|quarter)s?\b", re.IGNORECASE)


def said_yes(answer: str) -> bool | None:
    """True when an answer begins with "yes" and does not say "no" as well, False for the opposite, else None."""
    text = _plain(answer)
    match = _BEGINS.match(text.lstrip(_EDGES))
    if match is None or len({word.lower() for word in _YES_NO.findall(text)}) != 1:
        return None
    return match[1].lower() == "yes"


def said_number(answer: str) -> int | None:
    """The one whole number that an answer holds, in digits or as a word up to twelve; None without or with several."""
    text = _plain(answer)
    found = {int(digits) for digits in _NUMBER.findall(text)}
    found |= {_WORDS.index(word.lower()) for word in _NUMBER_WORD.findall(text)}
    # above twelve in words, part of a fraction, a range or a name, or below 0
    others = _OTHER_NUMBER.search(_NUMBER.sub("", text)) or re.search(r"(?<!\w)[-−–]\d", said(answer))
    return found.pop() if len(found) == 1 and not others else None
