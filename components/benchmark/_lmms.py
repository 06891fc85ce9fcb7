"""What lmms-eval 0.7.3 and the benchmarks' own scripts take an answer for, with their faults: for comparison only.

Written from what those functions do; tools/check_lmms_scores.py compares them with the real package.
"""

import re
from collections.abc import Callable, Sequence

# ---- mlvu, video_mme, lvbench: the letter in the most trusted place ------------------------------------------------

_STRIPPED = ",.!?;:'\""  # from both ends, one kind after the other, once
_AFTER = {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}
_PHRASE, _FIRST, _LAST, _ANYWHERE = 7, 10, 9, 0
_PHRASES = tuple(
    [f"{the}{kind} {noun} is" if kind else f"{the}{noun} is"
     for noun in ("answer", "option", "choice") for kind in ("", "correct", "best") for the in ("the ", "")
     if not (noun == "option" and kind == "") and not (noun == "choice" and kind == "best")]
    + ["i choose", "i select", "i pick", "my answer is", "my choice is",
       "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"]
)


def ranked_letter(answer: str, letters: str = "ABCD") -> str:
    """The capital letter in the most trusted place, the last one of several there; "" without any capital."""
    if not answer.strip():
        return ""
    text = answer.strip()
    for sign in _STRIPPED:
        text = text.strip(sign)
    padded, bare = f" {text} ", text.strip()
    found: list[tuple[int, int, str]] = []  # trust, place, letter
    for form, trust in _AFTER.items():
        found += [(trust, padded.rfind(form.format(letter)), letter) for letter in letters
                  if form.format(letter) in padded]
    lower = padded.lower()
    for phrase in _PHRASES:
        if phrase in lower:
            behind = lower.index(phrase) + len(phrase)
            found += [(_PHRASE, padded.find(letter, behind), letter) for letter in letters
                      if padded.find(letter, behind) >= 0]
    if bare[:1] and bare[0] in letters and not bare[1:2].isalpha():
        found.append((_FIRST, 0, bare[0]))
    if bare[-1:] and bare[-1] in letters and not bare[-2:-1].isalpha():
        found.append((_LAST, len(padded) - 1, bare[-1]))
    if not found:
        found = [(_ANYWHERE, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(found, key=lambda one: one[:2])[2] if found else ""


# ---- timescope, longvideobench: the first capital letter anywhere --------------------------------------------------

_LEADS = ("The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is",
          "The correct option is", "Best answer:", "Best option:")
# two commas are missing there, so that four of the phrases are two
_LONG_LEADS = (*_LEADS[:4], "The best option isThe correct option is", "Best answer:Best option:")


def first_letter(answer: str, letters: str, *, long: bool = False) -> str:
    """The first of the letters that stands anywhere once the usual phrases are taken out; "" without any."""
    text = answer.strip()
    for lead in _LONG_LEADS if long else _LEADS:
        text = text.replace(lead, "")
    match = re.search(f"[{letters}]", text)
    return match[0] if match else ""


# ---- mvbench: any letter that stands alone, the article too --------------------------------------------------------

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_LEADING_LETTER = re.compile(r"^([A-E])\.\s*(.+)$", re.IGNORECASE)
_LONE_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_DIGITS_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)  # a flag stands where the number of replacements belongs


def lone_letter(answer: str) -> str:
    """A capital letter, where one stands alone in any case; the answer in lower case otherwise."""
    if match := _LEADING_LETTER.match(answer.strip()):
        return match[1].upper()
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    numbers, spaced = bool(_DIGITS_COMMA.search(text)), text
    for sign in _PUNCTUATION:
        apart = numbers or f"{sign} " in text or f" {sign}" in text
        spaced = spaced.replace(sign, "" if apart else " ")
    spaced = _PERIOD.sub("", spaced, count=_MOST_PERIODS)
    for sign in "'\")(":
        spaced = spaced.strip(sign)
    spaced = spaced.strip().lower()
    match = _LONE_LETTER.search(spaced)
    return match[1].upper() if match else spaced


# ---- ovo_bench ----------------------------------------------------------------------------------------------------


def all_digits(answer: str) -> str:
    """Every digit of the answer in a row: "between 1 and 2" is 12."""
    return "".join(re.findall(r"\d+", answer))


def says(answer: str, word: str) -> bool:
    """Whether a word that is "Yes" or "No" stands anywhere, or the answer is its first letter."""
    return answer == word[0] or word in answer


def mean_by_family(
    families: Sequence[str], right: Sequence[bool], mean: Callable[[int, int], float]
) -> dict[str, float]:
    """What `mean` makes of right answers and all answers of each family, in the order in which they come."""
    counts: dict[str, list[int]] = {}
    for family, one in zip(families, right, strict=True):
        count = counts.setdefault(family, [0, 0])
        count[0] += one
        count[1] += 1
    return {family: mean(correct, asked) for family, (correct, asked) in counts.items()}
