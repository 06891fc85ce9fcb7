"""Scores of captions against references by pycocoevalcap: BLEU, METEOR, ROUGE-L and CIDEr, with intervals.

Java runs the tokenizer and METEOR. Without it `aurora.evaluation.ptb` splits words, and METEOR is left out.
"""

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np

from aurora.errors import AuroraError
from aurora.evaluation import ptb
from aurora.evaluation.statistics import RESAMPLES, Floats, Interval, bootstrap, bootstrap_mean

Tokenizer: TypeAlias = Literal["auto", "java", "python"]
Texts: TypeAlias = dict[str, list[str]]
_PIPE_BYTES = 16_000  # what is written before an answer is read; a pipe holds 64 KiB
METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")


@dataclass(frozen=True)
class CaptionScores:
    """The scores of a corpus: CIDEr from 0 to 10, the others from 0 to 1. METEOR is None without Java."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    meteor: float | None
    rouge_l: float
    cider: float
    tokenizer: str  # what made it: "java" or "python"
    intervals: Mapping[str, Interval | None]  # by metric
    items: Mapping[str, Mapping[str, float]]  # by id, then metric: BLEU and METEOR of one caption alone


def caption_metrics(pairs: Mapping[str, tuple[str, Sequence[str]]], tokenizer: Tokenizer = "auto", *,
                    resamples: int = RESAMPLES, seed: int = 0) -> CaptionScores:
    """Scores (caption, references) by id. AuroraError without pairs, references, pycocoevalcap, or a Java asked for."""
    used = _checked(pairs, tokenizer)
    answers, references = _tokenized(pairs, used)
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rouge, each_rouge = Rouge().compute_score(references, answers)
    cider, each_cider = Cider().compute_score(references, answers)
    bleus, each_bleu, sums = _bleu(answers, references)
    each = {**{f"bleu_{n + 1}": values for n, values in enumerate(each_bleu)}, "rouge_l": each_rouge,
            "cider": each_cider}
    intervals = {f"bleu_{n}": bootstrap(sums, lambda drawn, n=n: _bleu_of(drawn, n),  # type: ignore[misc]
                                        resamples=resamples, seed=seed)
                 for n in range(1, 5)}
    intervals |= {name: bootstrap_mean(each[name], resamples=resamples, seed=seed) for name in ("rouge_l", "cider")}
    meteor = None
    if used == "java":
        meteor, each["meteor"], intervals["meteor"] = _meteor(answers, references, resamples, seed)
    items = {item: {name: float(values[place]) for name, values in each.items()} for place, item in enumerate(pairs)}
    one, two, three, four = bleus
    return CaptionScores(one, two, three, four, meteor, float(rouge), float(cider), used, intervals, items)


def java_tokens(texts: Sequence[str]) -> list[str]:
    """The words of each text as pycocoevalcap's PTBTokenizer splits them: lower case, without punctuation.

    Its class writes a file into its own package and takes every kind of line break for a new caption; here the same
    program reads from a pipe.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    # a break of any kind would make two captions of one
    lines = [" ".join(text.split()) for text in texts]
    words = ["-cp", str(_package("tokenizer") / STANFORD_CORENLP_3_4_1_JAR),
             "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run([*_java(), *words], input="".join(f"{line}\n" for line in lines).encode(),
                          capture_output=True, check=False)
    found = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(found) != len(lines):
        raise AuroraError(f"Java's tokenizer failed on {len(lines)} captions: {_last_line(done.stderr)}; "
                          "tokenizer='python' needs no Java")
    return [" ".join(word for word in line.split(" ") if word and word not in PUNCTUATIONS) for line in found]


def _checked(pairs: Mapping[str, tuple[str, Sequence[str]]], tokenizer: Tokenizer) -> str:
    """The tokenizer to use."""
    if not pairs:
        raise AuroraError("there are no captions to score")
    for item, (_, references) in pairs.items():
        if isinstance(references, str) or not any(reference.split() for reference in references):
            raise AuroraError(f"item {item!r} needs a list of references with at least one word, not {references!r}")
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise AuroraError("caption metrics need pycocoevalcap: pip install 'auroralong[eval]'")
    found = shutil.which("java") is not None
    if tokenizer == "java" and not found:
        raise AuroraError("tokenizer 'java': there is no `java` on PATH; install a Java runtime (Debian: "
                          "default-jre-headless), or take 'python', without METEOR")
    return "java" if tokenizer == "java" or (tokenizer == "auto" and found) else "python"


def _tokenized(pairs: Mapping[str, tuple[str, Sequence[str]]], tokenizer: str) -> tuple[Texts, Texts]:
    flat = [text for answer, references in pairs.values() for text in (answer, *references)]
    words = iter(java_tokens(flat) if tokenizer == "java" else map(ptb.tokenize, flat))
    answers: Texts = {}
    references: Texts = {}
    for item, (_, given) in pairs.items():
        answers[item] = [next(words)]
        references[item] = [next(words) for _ in given]
    return answers, references


# ---- BLEU ---------------------------------------------------------------------------------------------------------


def _bleu(answers: Texts, references: Texts) -> tuple[list[float], list[list[float]], Floats]:
    """BLEU-1 to 4 of the corpus, of each caption, and the sums [N, 10] that they are made of."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for item, (answer,) in answers.items():
        scorer += (answer, references[item])
    score, each = scorer.compute_score(option="closest")
    sums = [[*made["correct"], *made["guess"], made["testlen"],
             min(made["reflen"], key=lambda length, wanted=made["testlen"]:  # type: ignore[misc]
                 (abs(length - wanted), length))]
            for made in scorer.ctest]
    return score, each, np.array(sums, dtype=float)


def _bleu_of(sums: Floats, n: int) -> Floats:
    """[R] BLEU-n of sums [R, 10], with pycocoevalcap's small numbers."""
    precisions = (sums[:, :n] + 1e-15) / (sums[:, 4 : 4 + n] + 1e-9)
    ratio = (sums[:, 8] + 1e-15) / (sums[:, 9] + 1e-9)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    scores: Floats = precisions.prod(axis=1) ** (1 / n) * brevity
    return scores


# ---- METEOR -------------------------------------------------------------------------------------------------------


def _meteor(answers: Texts, references: Texts, resamples: int, seed: int) -> tuple[float, list[float], Interval | None]:
    """METEOR of the corpus, of each caption, and the corpus' interval.

    The program makes statistics of each caption and a score of their sums, so that resamples cost a line each.
    """
    with _meteor_program() as ask:
        # the program would take its own sign in a caption for the end of it
        stats = ask([" ||| ".join(["SCORE", *references[item], answer.replace("|||", "").replace("  ", " ")])
                     for item, (answer,) in answers.items()])
        *each, score = map(float, ask([" ||| ".join(["EVAL", *stats])], len(stats) + 1))

        def of_sums(sums: Floats) -> Floats:
            lines = [f"EVAL ||| {' '.join(f'{value:.1f}' for value in row)}" for row in sums]
            return np.array(ask(lines, 2)[1::2], dtype=float)

        sums = meteor_sums(stats)
        return score, each, bootstrap(sums, of_sums, resamples=resamples, seed=seed)


def meteor_sums(stats: Sequence[str]) -> Floats:
    """[N, 23], what adds up to the statistics of a corpus. In a corpus the one chunk of a caption whose every word
    matches is not counted."""
    sums = np.array([line.split() for line in stats], dtype=float)
    whole = (sums[:, 20] == 1) & (sums[:, 21] == sums[:, 0]) & (sums[:, 22] == sums[:, 1])
    sums[whole, 20] = 0
    return sums


@contextlib.contextmanager
def _meteor_program() -> "Iterator[Ask]":
    """METEOR 1.5 as pycocoevalcap ships and starts it: a function from a line to the lines of its answer."""
    command = [*_java(), "-Xmx2G", "-jar", str(_package("meteor") / "meteor-1.5.jar"), "-", "-", "-stdio", "-l", "en",
               "-norm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as program:
        try:
            yield Ask(program)
        finally:
            program.kill()
            with contextlib.suppress(BrokenPipeError):  # what was not read yet
                assert program.stdin is not None
                program.stdin.close()


class Ask:
    """Writes lines to a program and reads the lines of its answers, as many at a time as pipes hold."""

    def __init__(self, program: "subprocess.Popen[bytes]") -> None:
        assert program.stdin is not None and program.stdout is not None
        self._to: IO[bytes] = program.stdin
        self._from: IO[bytes] = program.stdout

    def __call__(self, lines: Sequence[str], answers: int = 1) -> list[str]:
        found: list[str] = []
        try:
            for together in _in_pieces(lines, _PIPE_BYTES):
                self._to.write("".join(f"{line}\n" for line in together).encode())
                self._to.flush()
                found += [self._from.readline().decode().strip() for _ in range(answers * len(together))]
        except BrokenPipeError:
            found = [""]
        if not all(found):
            raise AuroraError("METEOR's program ended early; it needs Java and 2 GB of memory. tokenizer='python' "
                              "leaves METEOR out")
        return found


def _in_pieces(lines: Sequence[str], most: int) -> Iterator[list[str]]:
    """Lines in groups of about so many characters, or one longer line."""
    piece: list[str] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > most:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield piece


def _java() -> list[str]:
    return [shutil.which("java") or "java", "-Dfile.encoding=UTF-8"]


def _package(part: str) -> Path:
    spec = importlib.util.find_spec("pycocoevalcap")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / part


def _last_line(error: bytes) -> str:
    return (error.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
