"""A grid becomes jobs, jobs become numbers, numbers become the paper's figures and tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aurora.cli import main
from aurora.errors import AuroraError
from aurora.evaluation.sweep import job as jobs
from aurora.evaluation.sweep.figures import draw, tables
from aurora.evaluation.sweep.plan import Job, Plan, make_plan
from aurora.evaluation.sweep.run import check, gather, holding, training_hours

SCORES = {"0.1": 60.0, "0.2": 80.0, "0.5": 100.0}


class Commands:
    """Stands in for the commands of a job: writes the result that `score` gives, or fails."""

    def __init__(self) -> None:
        self.run: list[list[str]] = []
        self.failing = ""

    def __call__(self, words: list[str], log: Path) -> str | None:
        self.run.append(words)
        if self.failing and self.failing in words:
            return "aurora eval ended with status 2: error: no such thing"
        if words[0] == "train":
            run = Path(next(word for word in words if word.startswith("run=")).removeprefix("run="))
            (run / "vision").mkdir(parents=True, exist_ok=True)
            (run / "vision/metrics.csv").write_text("step,seconds\n1,1800\n2,1800\n", encoding="utf-8")
            (run / "vision/config.yaml").write_text("trainer: {devices: 4}\n", encoding="utf-8")
            return None
        given = dict(word.split("=", 1) for word in words if "=" in word)
        score = SCORES.get(given.get("keep_ratio", ""), 50.0) + 2 * float(given.get("sort.seed", 0))
        folder = Path(words[words.index("--output") + 1])
        (folder / "result.json").write_text(json.dumps({"score": score, "metric": "accuracy"}), encoding="utf-8")
        return None


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(jobs, "_command", commands)
    return commands


def plan_of(*words: str, **options: Any) -> Plan:
    return make_plan(words, **{"data": "/data", "model": None, **options})[0]


def run_all(plan: Plan, output: Path, points: Sequence[dict[str, str]]) -> None:
    plan.write(output)
    for values in points:
        jobs.run(Job(plan, values), output)


def test_axes_are_in_hydras_syntax_and_what_is_hydras_own_goes_to_it() -> None:
    plan, hydra = make_plan(["keep_ratio=0.1,0.2", "sort=choice(size,raster)", "merge.schedule=floor",
                             "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], data="/data")
    assert plan.axes == {"keep_ratio": "0.1,0.2", "sort": "choice(size,raster)"}
    assert plan.fixed == ["merge.schedule=floor"]
    assert hydra == ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.parametrize(("words", "options", "said"), [
    (["keep_ratio=0.1"], {}, "nothing is swept"),
    (["keep_raito=0.1,0.2"], {}, "Did you mean 'keep_ratio'"),
    (["keep_ratio=0.1,0.2"], {"data": ""}, "--data FOLDER is needed"),
    (["seed=1,2"], {}, "seed is an option of training; give --train"),
    (["seed=1,2"], {"train": True, "model": "m"}, "exclude each other"),
    (["keep_ratio=0.1,0.2", "keep_ratio=0.5,1"], {}, "given twice"),
])
def test_a_sweep_that_makes_no_sense_is_refused(words: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(AuroraError, match=said):
        plan_of(*words, **options)


def test_a_job_is_a_command_of_its_own_values() -> None:
    plan = plan_of("model='/a b',/c", "set=['sort=size','sort.order=descending'],['sort=random']",
                   "benchmark=mlvu,blocks", "merge=pool", limit=5)
    point = {"model": "'/a b'", "set": "['sort=size','sort.order=descending']", "benchmark": "mlvu"}
    words = Job(plan, point).eval_words(Path("/out"))
    assert words[words.index("--model") + 1] == "/a b" and words[words.index("--benchmark") + 1] == "mlvu"
    assert words[-3:] == ["merge=pool", "sort=size", "sort.order=descending"]
    assert words[words.index("--limit") + 1] == "5"


def test_jobs_that_train_alike_share_one_training(tmp_path: Path, commands: Commands) -> None:
    plan = plan_of("experiment=auroralong,auroralong_a", "eval.keep_ratio=0.1,0.2", "stage=language_video", train=True)
    run_all(plan, tmp_path, [{"experiment": name, "eval.keep_ratio": ratio} for name in ("auroralong", "auroralong_a")
                             for ratio in ("0.1", "0.2")])
    trained = [words for words in commands.run if words[0] == "train"]
    assert len(trained) == 2 and not any("eval." in word or "keep_ratio" in word for words in trained for word in words)
    evaluated = [words for words in commands.run if words[0] == "eval"]
    assert [words[-1] for words in evaluated] == ["keep_ratio=0.1", "keep_ratio=0.2"] * 2
    assert all(words[words.index("--model") + 1].endswith("language_video/model") for words in evaluated)
    result = gather(tmp_path)
    assert [job["gpu_hours"] for job in result["jobs"]] == [4.0] * 4  # an hour on four devices
    assert {path.name for path in draw(result, tmp_path)} == {"keep-ratio.png", "keep-ratio.svg", "cost.png",
                                                              "cost.svg"}


def test_jobs_that_are_done_are_not_run_again_and_failed_ones_are(tmp_path: Path, commands: Commands) -> None:
    plan, points = plan_of("keep_ratio=0.1,0.2"), [{"keep_ratio": "0.1"}, {"keep_ratio": "0.2"}]
    commands.failing = "keep_ratio=0.2"
    run_all(plan, tmp_path, points)
    failed = next(job for job in gather(tmp_path)["jobs"] if job["score"] is None)
    assert failed["failure"].endswith("no such thing")
    commands.failing, commands.run = "", []
    run_all(plan, tmp_path, points)
    assert [words[-1] for words in commands.run] == ["keep_ratio=0.2"]
    assert all(job["failure"] is None for job in gather(tmp_path)["jobs"])


@pytest.fixture
def evaluated(tmp_path: Path, model_folder: Path, make_video: Callable[..., Path]) -> dict[str, str]:
    """A model and a question of its own."""
    shutil.copytree(model_folder, tmp_path / "model")
    make_video(tmp_path / "data/clip.mp4", 8)
    ask(tmp_path / "data", 1)
    return {"model": str(tmp_path / "model"), "data": str(tmp_path / "data")}


def ask(data: Path, questions: int) -> None:
    lines = [{"id": str(number), "video": "clip.mp4", "family": "colour", "question": "Which?",
              "options": ["red", "blue"], "answer": 0} for number in range(questions)]
    (data / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_a_job_whose_model_or_questions_have_changed_is_run_again(
    tmp_path: Path, evaluated: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[list[str]] = []

    def here(words: list[str], log: Path) -> str | None:  # in this process, which is faster
        run.append(words)
        return str(status) if (status := main(words)) else None

    monkeypatch.setattr(jobs, "_command", here)
    plan = plan_of("keep_ratio=0.5,1", **evaluated)
    path = Job(plan, {"keep_ratio": "0.5"}).folder(tmp_path / "out") / "result.json"

    def result() -> dict[str, Any]:
        run_all(plan, tmp_path / "out", [{"keep_ratio": "0.5"}])
        assert gather(tmp_path / "out")["jobs"][0]["failure"] is None
        return json.loads(path.read_text(encoding="utf-8"))

    first = result()
    assert result() == first and len(run) == 1
    with (tmp_path / "model/config.yaml").open("a", encoding="utf-8") as file:
        file.write("# another model\n")
    second = result()
    assert second["model"] != first["model"] and len(run) == 2
    ask(tmp_path / "data", 2)
    assert result()["n"] == 2 and len(run) == 3


def test_a_job_without_its_description_is_run_again(tmp_path: Path, commands: Commands) -> None:
    plan, points = plan_of("keep_ratio=0.1,0.2"), [{"keep_ratio": "0.1"}]
    run_all(plan, tmp_path, points)
    (Job(plan, points[0]).folder(tmp_path) / "job.json").unlink()
    run_all(plan, tmp_path, points)
    assert gather(tmp_path)["jobs"][0]["score"] == 60.0


@pytest.mark.parametrize(("words", "said"), [
    (["sort=size,sizes"], r"with sort=sizes: no sort named 'sizes'.*Did you mean 'size'"),
    (["merge.foo=1,2"], "with merge.foo=1: merge 'tome' has no option 'foo'"),
    (["keep_ratio=0.5,2"], "with keep_ratio=2: keep_ratio is 2"),
    (["sort=size,raster", "keep_ratio=3"], "with sort=size: keep_ratio is 3"),
    (["model=nofolder,other"], "with model=nofolder: nofolder is not a model folder"),
    (["benchmark=blocks,block"], r"with benchmark=block: no benchmark named 'block'"),
    (["benchmark.leters=true,false"], r"has no option 'leters'"),
    (["data=gone,blocks"], "with data=gone: gone is not a folder"),
    (["skip=none,all"], "no skip named 'all'"),
])
def test_a_value_that_no_job_can_run_with_is_said_before_any_job(
    words: list[str], said: str, tmp_path: Path, evaluated: dict[str, str]
) -> None:
    with pytest.raises(AuroraError, match=f"no job can run {said}" if said.startswith("with") else said):
        check(plan_of(*words, **evaluated), tmp_path / "out")
    check(plan_of("keep_ratio=0.1,0.5", "sort=size,raster", **evaluated), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_config_of_a_training_is_checked_before_any_job(tmp_path: Path) -> None:
    options = {"data": str(tmp_path), "train": True}
    for words, said in ((["experiment=blocks,block"], "experiment=block: .*block"),
                        (["stages.vision.peak_lr=-1,1"], "peak_lr"), (["eval.keep_ratio=0.1,2"], "keep_ratio is 2")):
        with pytest.raises(AuroraError, match=f"no job can run with .*{said}"):
            check(plan_of("seed=0,1", *words, **options), tmp_path / "out")
    with pytest.raises(AuroraError, match=r"no stage named 'vison'.*Did you mean 'vision'"):
        check(plan_of("seed=0,1", stage="vison", **options), tmp_path / "out")


def test_a_value_that_failed_and_is_no_longer_asked_for_is_forgotten(tmp_path: Path, commands: Commands) -> None:
    commands.failing = "sort=sizes"
    run_all(plan_of("sort=size,sizes"), tmp_path, [{"sort": "size"}, {"sort": "sizes"}])
    assert len(gather(tmp_path)["jobs"]) == 2
    run_all(plan_of("sort=raster,random"), tmp_path, [{"sort": "raster"}])
    assert [job["values"]["sort"] for job in gather(tmp_path)["jobs"]] == ["raster", "size"]


def test_a_job_that_was_killed_is_told_from_one_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(words: list[str], log: Path) -> str | None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "_command", killed)
    plan = plan_of("keep_ratio=0.1,0.2")
    with pytest.raises(KeyboardInterrupt):
        run_all(plan, tmp_path, [{"keep_ratio": "0.1"}])
    assert gather(tmp_path)["jobs"][0]["failure"] == "it was ended before it was done"


def test_means_are_taken_over_seeds_and_curves_say_what_holds(tmp_path: Path, commands: Commands) -> None:
    plan = plan_of("keep_ratio=0.1,0.2,0.5", "sort.seed=0,1,2", "sort=random,raster")
    run_all(plan, tmp_path, [{"keep_ratio": ratio, "sort.seed": seed, "sort": sort} for ratio in SCORES
                             for seed in "012" for sort in ("random", "raster")])
    result = gather(tmp_path)
    assert result["repeats"] == ["sort.seed"] and len(result["means"]) == 6
    point = next(point for point in result["means"] if point["values"] == {"keep_ratio": "0.2", "sort": "raster"})
    assert (point["mean"], point["deviation"], point["runs"]) == (82, 2, 3)
    assert [curve["holds"] for curve in result["curves"]] == [{"0.9": 0.5, "0.8": 0.2}] * 2
    table = tables(result)["sort"]
    assert table[0]["scores"]["blocks"] == pytest.approx({"mean": 82, "deviation": 2, "jobs": 9})


def test_what_holds_a_share_of_the_peak_holds_it_for_all_larger_ratios() -> None:
    points = [{"keep_ratio": ratio, "mean": mean} for ratio, mean in ((0.1, 95), (0.2, 70), (0.5, 99), (1.0, 100))]
    assert holding(points, 0.9) == 0.5 and holding(points, 0.7) == 0.1


def test_of_scores_that_are_all_0_no_ratio_holds_a_share(tmp_path: Path, commands: Commands,
                                                        monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(f"{__name__}.SCORES", dict.fromkeys(SCORES, 0.0))
    run_all(plan_of("keep_ratio=0.1,0.2,0.5"), tmp_path, [{"keep_ratio": ratio} for ratio in SCORES])
    assert gather(tmp_path)["curves"][0]["holds"] == {"0.9": None, "0.8": None}
    assert main(["sweep", "--output", str(tmp_path), "--gather"]) == 0
    assert "score: every score is 0" in capsys.readouterr().out


def test_jobs_stand_in_the_order_in_which_their_values_were_given(tmp_path: Path, commands: Commands) -> None:
    plan = plan_of("sort=size,raster,random", "keep_ratio=0.5,0.1", "benchmark=blocks")
    grid = [(sort, ratio) for sort in ("size", "raster", "random") for ratio in ("0.5", "0.1")]
    run_all(plan, tmp_path, [{"sort": sort, "keep_ratio": ratio, "benchmark": "blocks"} for sort, ratio in grid])
    result = gather(tmp_path)
    assert [(job["values"]["sort"], job["values"]["keep_ratio"]) for job in result["jobs"]] == grid
    assert [row["value"] for row in tables(result)["sort"]] == ["size", "raster", "random"]


def test_a_curve_that_falls_says_that_no_ratio_holds_the_peak(tmp_path: Path) -> None:
    points = [{"keep_ratio": ratio, "mean": mean, "deviation": 0.0} for ratio, mean in ((0.1, 25.0), (1.0, 0.0))]
    curve = {"values": {}, "points": points, "holds": {"0.9": holding(points, 0.9), "0.8": holding(points, 0.8)}}
    assert curve["holds"] == {"0.9": None, "0.8": None}
    _, svg = draw({"curves": [curve], "means": []}, tmp_path)
    assert "90 % not held" in svg.read_text(encoding="utf-8")


@pytest.mark.process
def test_a_failure_is_named_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("error: of an attempt before\n", encoding="utf-8")
    said = jobs._command(["eval", "--data", str(tmp_path), "--benchmark", "nothing"], tmp_path / "log.txt")
    assert said is not None and "status 2" in said and "no benchmark named 'nothing'" in said
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").startswith("error: of an attempt before")


def test_a_judged_score_counts_once_there_is_one(tmp_path: Path, commands: Commands) -> None:
    plan = plan_of("keep_ratio=0.1,0.2")
    run_all(plan, tmp_path, [{"keep_ratio": "0.1"}])
    folder = Job(plan, {"keep_ratio": "0.1"}).folder(tmp_path)
    (folder / "result.json").write_text('{"score": null, "judge_needed": "yes_no"}', encoding="utf-8")
    assert "aurora judge" in gather(tmp_path)["jobs"][0]["failure"]
    (folder / "result.json").write_text('{"score": 43.5}', encoding="utf-8")  # `aurora judge` writes there
    assert gather(tmp_path)["jobs"][0]["score"] == 43.5


def test_a_job_without_a_score_says_why(tmp_path: Path, commands: Commands) -> None:
    run_all(plan_of("keep_ratio=0.1,0.2"), tmp_path, [{"keep_ratio": "0.1"}])
    path = Job(plan_of("keep_ratio=0.1,0.2"), {"keep_ratio": "0.1"}).folder(tmp_path) / "result.json"
    result = {"score": None, "judge_needed": None, "not_scored": "no mean, for nothing was asked of ego"}
    path.write_text(json.dumps(result), encoding="utf-8")
    assert gather(tmp_path)["jobs"][0]["failure"] == "no mean, for nothing was asked of ego"


def test_another_sweep_does_not_write_into_the_folder(tmp_path: Path) -> None:
    plan_of("keep_ratio=0.1,0.2").write(tmp_path)
    plan_of("keep_ratio=0.1,0.2,0.5").write(tmp_path)  # more values go on
    with pytest.raises(AuroraError, match="other data"):
        plan_of("keep_ratio=0.1,0.2", data="/other").write(tmp_path)
    with pytest.raises(AuroraError, match="other axes"):
        plan_of("sort=size,raster").write(tmp_path)


def test_a_training_that_has_not_begun_cost_nothing_known(tmp_path: Path) -> None:
    assert training_hours(tmp_path / "gone") is None


@pytest.mark.parametrize("option", ["--data", "--model"])
def test_a_folder_that_is_not_there_is_said_before_any_job(option: str, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--output", str(tmp_path / "out"), option, str(tmp_path / "gone"), "keep_ratio=0.1,0.2"]
    assert main(words) == 2
    assert f"{option} {tmp_path / 'gone'} is not a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_gathering_shows_tables_and_names_what_failed(tmp_path: Path, commands: Commands,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    commands.failing = "keep_ratio=0.2"
    run_all(plan_of("keep_ratio=0.1,0.2,0.5"), tmp_path, [{"keep_ratio": ratio} for ratio in SCORES])
    assert main(["sweep", "--output", str(tmp_path), "--gather"]) == 1
    shown = capsys.readouterr().out
    assert "60.0 ± 0.0" in shown and "2 of 3 jobs have a score" in shown and "no such thing" in shown


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("launcher", "ratios"), [("basic", ["0.25", "0.5"]), ("joblib", ["0.5"])])
def test_hydra_runs_every_point_of_the_grid(
    launcher: str, ratios: list[str], tmp_path: Path, model_folder: Path, make_video: Any,
    capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(tmp_path / "data/clip.mp4", 8)
    question = {"id": "1", "video": "clip.mp4", "family": "colour", "question": "Which?",
                "options": ["red", "blue"], "answer": 0}
    (tmp_path / "data/questions.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
    words = ["sweep", "--model", str(model_folder), "--data", str(tmp_path / "data"), "--output",
             str(tmp_path / "out"), f"keep_ratio=choice({','.join(ratios)})", "sort=size,raster",
             f"hydra/launcher={launcher}", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert {tuple(job["values"].values()) for job in result["jobs"]} == {
        (ratio, sort) for ratio in ratios for sort in ("size", "raster")}
    assert all(job["score"] is not None for job in result["jobs"])
