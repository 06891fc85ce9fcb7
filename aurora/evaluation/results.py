"""Results of evaluations, read back: what was scored, how sure a score is, and what may be compared with what."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AllowInfNan, Strict, StrictInt, StrictStr, TypeAdapter, ValidationError
from typing_extensions import NotRequired, Required, TypedDict

from aurora.config import differences, named_part
from aurora.errors import AuroraError
from aurora.evaluation.judging import judged_outcomes, read_verdicts
from aurora.evaluation.predictions import PREDICTIONS_FILE, read_answers
from aurora.evaluation.run import RESULT_FILE
from aurora.evaluation.statistics import Comparison, Interval, compare, score_interval
from aurora.files import read_json
from aurora.interfaces import Benchmark, Item
from aurora.registry import BENCHMARK

_PLACES = ("annotations", "videos")  # options that say where something is, not what is asked
_Number = Annotated[float, Strict(), AllowInfNan(False)]


class _Benchmark(TypedDict):
    name: StrictStr


class _Family(TypedDict, total=False):
    n: StrictInt | None
    accuracy: _Number | None
    chance: _Number | None


class _Sampling(TypedDict, total=False):
    fps: _Number | None
    frames: StrictInt | None
    max_frames: StrictInt | None


class _Judge(TypedDict, total=False):
    served: list[StrictStr]
    parameters: dict[str, Any] | None


class _Compat(TypedDict, total=False):
    score: _Number | None


class _Captions(TypedDict, total=False):
    intervals: dict[str, tuple[_Number, _Number] | None]


class _Open(TypedDict, total=False):
    n: Required[StrictInt]
    exact_match: _Number | None
    token_f1: _Number | None
    bleu_1: _Number | None
    bleu_4: _Number | None


class _OpenQuestions(_Open):
    families: NotRequired[dict[str, _Open]]


class _Facts(TypedDict):
    """What is read of a result; it may hold more."""

    benchmark: _Benchmark
    metric: StrictStr
    scorer: StrictStr
    score: _Number | None
    n: StrictInt
    families: dict[str, _Family]
    versions: dict[str, Any]
    hardware: dict[str, Any]
    sampling: NotRequired[_Sampling | None]
    sort: NotRequired[dict[str, Any] | None]
    seeds: NotRequired[dict[str, Any] | None]
    judge: NotRequired[_Judge | None]
    lmms_compat: NotRequired[_Compat | None]
    captions: NotRequired[_Captions]
    open: NotRequired[_OpenQuestions]
    not_scored: NotRequired[StrictStr]
    limit: NotRequired[StrictInt | None]
    missing_videos: NotRequired[list[StrictStr]]
    failed: NotRequired[StrictInt]
    unparsed: NotRequired[StrictInt]
    empty: NotRequired[StrictInt]
    unjudged: NotRequired[StrictInt]


_FACTS = TypeAdapter(_Facts)


@dataclass(frozen=True)
class Result:
    """A result and, where its predictions are beside it, what was asked and answered."""

    path: Path
    facts: Mapping[str, Any]
    items: Sequence[Item] = ()
    answers: Mapping[str, str | None] = field(default_factory=dict)
    problem: str | None = None  # why there are no answers

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return str(self.facts["benchmark"]["name"])

    @property
    def options(self) -> dict[str, Any]:
        """Those of the benchmark that decide what is asked."""
        return {key: value for key, value in self.facts["benchmark"].items() if key not in (*_PLACES, "name")}

    @property
    def questions(self) -> int:
        """How many were asked: those of the score, and open ones beside choices."""
        return int(self.facts["n"]) + int(self.facts.get("open", {}).get("n", 0))

    @cached_property
    def benchmark(self) -> Benchmark | None:
        """The part that scores; None where it is not installed, or has other options today."""
        try:
            return BENCHMARK.build(self.facts["benchmark"])
        except AuroraError:
            return None

    @cached_property
    def outcomes(self) -> Mapping[str, float]:
        """What every item adds to the score, as a hundredth of it."""
        if self.benchmark is None or not self.items:
            return {}
        if "judge" in self.facts:
            return {id: one.right for id, one in judged_outcomes(read_verdicts(self.path.parent)).items()}
        return self.benchmark.outcomes(self.items, self.answers)

    @property
    def scored(self) -> list[Item]:
        """The items that make the score."""
        return [item for item in self.items if item.id in self.outcomes]

    def interval(self, family: str | None = None) -> Interval | None:
        """The 95 % interval of the score, or of a family's mean, in percent; captions have theirs in the result."""
        if family is None and (stored := self.facts.get("captions", {}).get("intervals")):
            bounds = stored.get(getattr(self.benchmark, "main", ""))
            return None if bounds is None else Interval(*bounds).percent
        items = [item for item in self.scored if family in (None, item.family)]
        weights = self.weights(items) if family is None else None
        found = score_interval([self.outcomes[item.id] for item in items], clusters=[item.video for item in items],
                               groups=None if weights is None else [item.family for item in items], weights=weights)
        return None if found is None else found.percent

    def weights(self, items: Sequence[Item]) -> Mapping[str, float] | None:
        """Of the families of these items; None where every item counts alike."""
        return None if self.benchmark is None or not items else self.benchmark.weights(_families(items))


def read_result(path: str | Path) -> Result:
    """A result by its file or the folder it is in. AuroraError for whatever `aurora eval` has not written."""
    path = Path(path)
    file = path / RESULT_FILE if path.is_dir() else path
    if not file.is_file():
        raise AuroraError(f"{path} holds no {RESULT_FILE}; give the --output of `aurora eval`, or its {RESULT_FILE}")
    facts = read_json(file)
    try:
        _FACTS.validate_python(facts)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        key = ".".join(map(str, wrong["loc"]))
        why = "is missing" if wrong["type"] == "missing" else f"is {str(wrong['input'])[:80]!r}"
        raise AuroraError(f"{file} is not a result of `aurora eval`: {key!r} {why}") from error
    return _with_answers(Result(file, facts))


def _with_answers(result: Result) -> Result:
    folder = result.path.parent
    try:
        if not (folder / PREDICTIONS_FILE).is_file():
            raise AuroraError(f"no {PREDICTIONS_FILE} beside it")
        if result.benchmark is None:
            raise AuroraError(f"the benchmark {result.name!r} cannot be built here")
        items, answers = read_answers(folder, result.facts)
        if "judge" in result.facts:
            read_verdicts(folder)
        elif result.facts.get("judge_needed") is not None:
            raise AuroraError("it is not judged yet")
    except AuroraError as error:
        return Result(result.path, result.facts, problem=str(error))
    return Result(result.path, result.facts, items, answers)


def _families(items: Sequence[Item]) -> list[str]:
    return sorted({item.family for item in items})


# ---- two results ---------------------------------------------------------------------------------------------------


def obstacles(first: Result, second: Result) -> list[str]:
    """Why the scores of two results of one benchmark do not stand for the same thing; empty where they do."""
    one, two = first.facts, second.facts
    found = []
    if first.options != second.options or any(one.get(key) != two.get(key) for key in ("questions", "limit")):
        found.append("other items" + _between(_items(first), _items(second)))
    if one["scorer"] != two["scorer"] or one["metric"] != two["metric"]:
        found.append("another scorer" + _between(*(f"{facts['scorer']}: {facts['metric']}" for facts in (one, two))))
    if _judge(one) != _judge(two):
        found.append("another judge" + _between(_judged_by(one), _judged_by(two)))
    if one.get("protocol") != two.get("protocol"):
        found.append("another way of answering" + _between(one.get("protocol"), two.get("protocol")))
    return found


def other_frames(first: Result, second: Result) -> str | None:
    """What frames two results were made of, where these differ: a comparison then is of that as well."""
    one, two = (frames(result.facts.get("sampling")) for result in (first, second))
    return None if one == two else f"other frames ({one}; {two})"


def frames(sampling: Mapping[str, Any] | None) -> str:
    """How frames were chosen, in words; answers that were imported do not say it."""
    if sampling is None:
        return "unknown frames"
    found = [f"{sampling['fps']:g} frame{'' if sampling['fps'] == 1 else 's'} a second"] if sampling.get("fps") else []
    found += [f"{sampling['frames']} frames"] if sampling.get("frames") else []
    found += [f"at most {sampling['max_frames']}"] if sampling.get("max_frames") else []
    return ", ".join(found) or "all frames"


def setting_differences(first: Result, second: Result) -> list[str]:
    """The settings in which two runs differ, of those that both record: answers that were imported record few."""
    used = ("model", "keep_ratio", "sampling", "prompt", "merge", "sort", "skip", "reader", "dtype", "quantize")
    both = [key for key in used if key in first.facts and key in second.facts]
    return list(differences(*({key: result.facts[key] for key in both} for result in (first, second))))


def compared(first: Result, second: Result) -> dict[str, Comparison]:
    """The paired comparison of two results, of all items and by family. AuroraError when they cannot be compared."""
    if first.name != second.name:
        raise AuroraError(f"{first.path} and {second.path} cannot be compared: {first.name} is not {second.name}")
    if reasons := obstacles(first, second):
        raise AuroraError(f"{first.path} and {second.path} cannot be compared: {'; '.join(reasons)}")
    for result in (first, second):
        if result.problem is not None:
            raise AuroraError(f"{result.path} cannot be compared item by item: {result.problem}")
    items = [item for item in first.scored if item.id in second.outcomes]
    found = {"all": _compared(first, second, items, None)}
    families = _families(items)
    if len(families) > 1:
        found |= {name: _compared(first, second, [item for item in items if item.family == name], name)
                  for name in families}
    return found


def _compared(first: Result, second: Result, items: Sequence[Item], family: str | None) -> Comparison:
    one, two = ({item.id: result.outcomes[item.id] for item in items} for result in (first, second))
    weights = first.weights(items) if family is None else None
    return compare(one, two, clusters={item.id: item.video for item in items}, weights=weights,
                   groups=None if weights is None else {item.id: item.family for item in items})


def _between(one: object, two: object) -> str:
    return f" ({one}; {two})" if one != two else ""


def _items(result: Result) -> str:
    options = ", ".join(f"{key} {value}" for key, value in result.options.items())
    limit = result.facts.get("limit")
    return f"{options or result.name}{'' if limit is None else f', limit {limit}'}, {result.questions} questions"


def _judge(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    about = facts.get("judge") or {}
    return tuple(about.get(key) for key in ("model", "kind", "prompt", "parameters"))


def _judged_by(facts: Mapping[str, Any]) -> str:
    about = facts.get("judge")
    prompt = str(about.get("prompt"))[:8] if about else ""
    return f"{about.get('model')}, {about.get('parameters')}, prompt {prompt}" if about else "none"


def default_options(name: str) -> Mapping[str, Any]:
    """Of a benchmark's yaml; empty for one that is not there."""
    try:
        return named_part("benchmark", name)
    except AuroraError:
        return {}


class Apart(NamedTuple):
    """Results of one benchmark that do not all stand for the same thing."""

    rows: list[list[int]]  # their places, from 1; those in a list stand for the same
    reasons: list[str]


def apart(results: Sequence[Result]) -> Iterator[Apart]:
    """For each benchmark, which of its results do not stand for the same thing, and why not."""
    alike: dict[str, list[list[int]]] = {}
    for place, result in enumerate(results):
        groups = alike.setdefault(result.name, [])
        same = next((group for group in groups if not _reasons(results[group[0]], result)), None)
        groups.append([place]) if same is None else same.append(place)
    for groups in alike.values():
        firsts = [results[group[0]] for group in groups]
        reasons = [why for two in combinations(firsts, 2) for why in _reasons(*two)]
        if len(groups) > 2:  # without what every two of them have instead
            reasons = [why.partition(" (")[0] for why in reasons]
        if reasons:
            yield Apart([[place + 1 for place in group] for group in groups], list(dict.fromkeys(reasons)))


def _reasons(first: Result, second: Result) -> list[str]:
    return obstacles(first, second) + [why for why in [other_frames(first, second)] if why]
