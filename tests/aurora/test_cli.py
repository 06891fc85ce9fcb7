from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from aurora.cli import app, find_commands, main
from aurora.commands._options import split_overrides, split_words
from aurora.errors import AuroraError
from aurora.evaluation.prompts import multiple_choice
from aurora.evaluation.scoring import likeliest
from aurora.inference.generation import Generation
from aurora.inference.video_model import VideoModel
from aurora.interfaces import Sampling
from aurora.registry import READER, SLOTS

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(find_commands())
BELOW = {"shards": ("list", "build", "work", "index", "validate", "stats", "preview"),
         "index": ("build", "list", "show", "remove")}
EVERY = [*COMMANDS, *(f"{command} {below}" for command in BELOW for below in BELOW[command])]
SHORT = ("--max-new-tokens", "12")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """(exit status, stdout, stderr) of a command."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


def answer(model, config, question: str, *visuals: Path, **options) -> str:
    film = VideoModel(model, config).watch(*visuals, prompt={"name": type(model.prompt).__module__.rpartition(".")[2]})
    return film.ask(question, options=Generation(max_new_tokens=12, **options))


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "aurora", *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment})


# ---- help


@pytest.mark.parametrize("command", EVERY)
def test_every_command_explains_itself_with_an_example(run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0 and f"aurora {command}" in out.partition("example:")[2]


@pytest.mark.parametrize("command", EVERY)
def test_every_option_has_a_help_text(command: str) -> None:
    name, *below = command.split()
    found = typer.main.get_command(app).get_command(None, name)
    found = found.commands[below[0]] if below else found
    assert not [option.name for option in found.params if not option.help]


def test_the_help_lists_every_command(run) -> None:
    assert all(f"\n  {command} " in run()[1] for command in COMMANDS)


@pytest.mark.parametrize(("arguments", "kept_out"), [
    (("--help",), {"torch", "hydra", "rich", "numpy", "lightning"}),
    (("ask", "--help"), {"torch", "hydra", "numpy", "lightning"}),
    (("shards", "build", "--help"), {"torch", "hydra", "numpy", "lightning"}),
])
def test_help_imports_nothing_that_takes_time(arguments, kept_out) -> None:
    code = (f"import sys; from aurora.cli import main; main({arguments}); "
            f"sys.stderr.write(str({kept_out} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout and done.stderr == "set()"


def test_a_command_is_imported_when_it_is_called() -> None:
    code = ("import sys; from aurora.cli import main; main(['version']); "
            "sys.stderr.write(str([name for name in sys.modules if '.commands.' in name]))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "['aurora.commands.version']"


# ---- commands of other packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Installs a package with one command."""
    def install(name: str, source: str) -> None:
        info = tmp_path / "greetings-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greetings\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[aurora.command]\n{name} = greetings:{name}\n")
        (tmp_path / "greetings.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "greetings", raising=False)
        find_commands.cache_clear()

    yield install
    find_commands.cache_clear()


def test_an_installed_package_adds_a_command(run, install) -> None:
    install("greet", 'def greet(name: str) -> None:\n    """Greet."""\n    print(f"hello {name}")\n')
    assert run("greet", "you") == (0, "hello you\n", "")
    assert re.search(r"^  greet +Greet\.$", run("--help")[1], re.MULTILINE)


def test_a_command_that_cannot_be_imported_is_listed_with_the_reason(run, install) -> None:
    install("greet", "import not_installed\n")
    assert "Unavailable: No module named 'not_installed'" in run("--help")[1]
    status, _, err = run("greet", "you", "--twice")
    assert status == 2 and "greetings:greet cannot be imported: No module named 'not_installed'" in err


def test_a_name_that_is_taken_is_refused(run, install) -> None:
    install("ask", "def ask() -> None: ...\n")
    assert "command 'ask' is taken by aurora.commands.ask:ask; greetings:ask needs another name" in run("version")[2]


# ---- completion


def completions(*words: str) -> list[str]:
    """What bash is given for the last word."""
    asked = {"_AURORA_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("aurora", *words)),
             "COMP_CWORD": str(len(words))}
    done = subprocess.run([sys.executable, "-m", "aurora"], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, **asked})
    assert not done.stderr
    return done.stdout.split()


def test_commands_and_options_are_completed() -> None:
    assert completions("ca") == ["caption", "caption-many"]
    assert completions("ask", "--ke") == ["--keep-ratio"]
    assert completions("shards", "va") == ["validate"]
    assert completions("nothing", "-") == []


def test_completion_is_installed_for_a_shell(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "aurora", "--show-completion", "bash"], cwd=ROOT, timeout=60,
                          capture_output=True, text=True, env={**os.environ, "HOME": str(tmp_path),
                                                               "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert "_AURORA_COMPLETE=complete_bash" in done.stdout


# ---- overrides among other words


def test_an_override_is_told_from_a_question_by_its_key() -> None:
    questions = ["What moves?", "Is x=1?", "x=1?", "Why is a = b?", "a=1 or b", "keep_ratio"]
    overrides = ["keep_ratio=0.5", "merge.schedule=floor", "+stages.vision.adapters={}", "~logger", "trainer=cpu"]
    assert split_overrides([*questions, *overrides]) == (questions, overrides)


@pytest.mark.parametrize("word", ["keep_raito=1", "x=1", "+x.y=1", "~keep_raito"])
def test_an_unknown_override_is_not_taken_for_a_question(word: str) -> None:
    with pytest.raises(AuroraError, match=rf"'{re.escape(word)}': the config has no '(keep_raito|x)'"):
        split_overrides([word])


def test_a_path_that_is_there_is_not_taken_for_an_override(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data=1").mkdir()
    assert split_overrides(["data=1", "data=2"]) == (["data=1"], ["data=2"])


@pytest.mark.parametrize("words", [
    ("blocks", "scale=0.1"), ("convert", "w.pth", "dtype=bfloat16", "--backbone", "rwkv6"),
    ("shards", "build", "table", ".", "source.files=rows.csv")])
def test_an_override_is_not_taken_for_a_path(run, tmp_path, monkeypatch, words) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*words)
    assert status == 2 and "looks like an override" in err and not list(tmp_path.iterdir())


def test_files_are_told_from_questions(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two.mp4", "a film.mp4"):
        (tmp_path / name).write_bytes(b"x")
    words = ["keep_ratio=1", "one", "Why?", "two.mp4", "Is it 3.5 or e.g. 4?", "a film.mp4", "https://a/b?c=d", "Red."]
    assert split_words(words) == (["one", "two.mp4", "a film.mp4", "https://a/b?c=d"],
                                  ["Why?", "Is it 3.5 or e.g. 4?", "Red."], ["keep_ratio=1"])


@pytest.mark.parametrize(("words", "message"), [
    (["one", "three.mp4", "Why?"], "three.mp4 does not exist"),
    (["What moves?", "one"], "What moves? does not exist"),
    (["one", "Why?", "--with", "three.mp4"], "three.mp4 does not exist"),
    (["one", "   "], "a question is empty"),
    (["one", "Why?", ""], "a question is empty"),
    (["one", ".", "Why?"], "is a folder"),
    (["keep_ratio=1"], "no video or image file"),
])
def test_a_stray_word_is_not_taken_for_a_question(run, tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").write_bytes(b"x")
    status, out, err = run("ask", "--chat", *words)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err


@pytest.mark.parametrize("place", [0, 1, 2, 4, 6])
def test_overrides_stand_anywhere_among_the_options(run, model, config, model_folder, video, place: int) -> None:
    words = [video, "What moves?", "--model", str(model_folder), *SHORT]
    words.insert(place, "keep_ratio=0.25")
    out = run("ask", *words)[1]
    assert out == answer(model, replace(config, keep_ratio=0.25), "What moves?", video) + "\n"


# ---- ask and caption


def test_the_answer_and_nothing_else_is_on_stdout(run, model, config, model_folder, video) -> None:
    assert run("ask", video, "What moves?", "--model", model_folder, *SHORT) == (
        0, answer(model, config, "What moves?", video) + "\n", "")


def test_options_may_stand_between_the_video_and_the_question(run, model, config, model_folder, video) -> None:
    assert run("ask", video, "--model", model_folder, *SHORT, "What moves?")[:2] == (
        0, answer(model, config, "What moves?", video) + "\n")


def test_several_questions_are_answered_each_on_its_own(run, model, config, model_folder, video) -> None:
    questions = ["What moves?", "Where?"]
    out = run("ask", video, *questions, "--model", model_folder, *SHORT)[1]
    assert out == "".join(answer(model, config, question, video) + "\n" for question in questions)


def test_several_questions_read_the_video_once(run, model_folder, video, monkeypatch) -> None:
    opened, read = [], READER.get("pyav").read
    monkeypatch.setattr(READER.get("pyav"), "read", lambda self, *given: opened.append(given) or read(self, *given))
    assert run("ask", video, "What moves?", "Where?", "--model", model_folder, *SHORT)[0] == 0
    assert len(opened) == 1


def test_options_are_asked_as_in_the_evaluation(run, model, config, model_folder, video) -> None:
    out = run("ask", video, "Which?", "--option", "red", "--option", "blue", "--model", model_folder, *SHORT)[1]
    assert out == answer(model, config, multiple_choice("Which?", ["red", "blue"]), video) + "\n"


@pytest.mark.parametrize("score", ["likelihood", "likelihood_per_token"])
def test_the_likeliest_option_is_the_answer(run, model, config, model_folder, video, score: str) -> None:
    options, questions = ["red", "a very long option indeed", "blue"], ["Which?", "And where?"]
    flags = [word for option in options for word in ("--option", option)]
    status, out, err = run("ask", video, *questions, *flags, "--score", score, "--model", model_folder)
    film = VideoModel(model, config).watch(video, prompt="sandwich")
    for question, answered, line in zip(questions, out.splitlines(), err.splitlines(), strict=True):
        memory = film.read_all([multiple_choice(question, options)])
        best, values = likeliest(model, film.model.runner, memory, options,
                                 per_token=score == "likelihood_per_token")
        assert (status, answered) == (0, options[best])
        assert line.startswith("log-probability: red ")
        assert [float(value) for value in re.findall(r"-?\d+\.\d+", line)] == pytest.approx(values, abs=0.02)


def test_several_images_are_seen_in_their_order(run, model, config, model_folder, image, video) -> None:
    for words in ((image, "What changed?", "--with", video), (image, video, "What changed?")):
        out = run("ask", *words, "--model", model_folder, *SHORT)[1]
        assert out == answer(model, config, "What changed?", image, video) + "\n"


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        (("--keep-ratio", "0.25"), {"keep_ratio": 0.25}),
        (("--fps", "4"), {"sampling": Sampling(fps=4.0)}),
        (("--frames", "3"), {"sampling": Sampling(frames=3)}),
        (("--max-frames", "2"), {"sampling": Sampling(fps=2.0, max_frames=2)}),
    ],
)
def test_flags_say_what_is_read(run, model, config, model_folder, video, flags, changes) -> None:
    out = run("ask", video, "What moves?", "--model", model_folder, *SHORT, *flags)[1]
    assert out == answer(model, replace(config, **changes), "What moves?", video) + "\n"


@pytest.mark.parametrize("slot", [("prompt", "image_first"), ("merge", "pool"), ("sort", "raster")])
def test_flags_replace_parts_without_weights(run, make_model, config, model_folder, video, slot) -> None:
    flag, name = slot
    out = run("ask", video, "What moves?", "--model", model_folder, *SHORT, f"--{flag}", name)[1]
    assert out == answer(make_model(**{flag: {"name": name}}), config, "What moves?", video) + "\n"


def test_a_temperature_draws_by_the_seed(run, model, config, model_folder, video) -> None:
    flags = ("--temperature", "1.5", "--top-p", "0.9", "--top-k", "50", "--seed", "3")
    out = run("ask", video, "What moves?", "--model", model_folder, *SHORT, *flags)[1]
    assert out == answer(model, config, "What moves?", video, temperature=1.5, top_p=0.9, top_k=50, seed=3) + "\n"


def test_a_stop_string_ends_the_answer(run, model, config, model_folder, video) -> None:
    whole = answer(model, config, "What moves?", video)
    out = run("ask", video, "What moves?", "--model", model_folder, *SHORT, "--stop", whole[4])[1]
    assert out == whole.split(whole[4])[0] + "\n"


def test_a_chat_is_one_conversation(run, model, config, model_folder, video, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Where?\n\n"))
    out = run("ask", video, "What moves?", "--chat", "--model", model_folder, *SHORT)[1]
    film = VideoModel(model, config).watch(video, prompt="sandwich")
    reported = [film.ask(question, options=Generation(max_new_tokens=12), remember=True)
            for question in ("What moves?", "Where?")]
    assert out == "".join(text + "\n" for text in reported)


def test_a_caption_needs_no_question(run, model, config, model_folder, video, image) -> None:
    for visual, kind in ((video, "video"), (image, "image")):
        out = run("caption", visual, "--model", model_folder, *SHORT)[1]
        assert out == answer(model, config, f"Describe the {kind} in detail.", visual) + "\n"


SMALL = ("vision.image_size=32", "vision.patch_size=8", "vision.width=32", "vision.layers=2", "vision.heads=2",
         "vision.mlp_width=32", "backbone.hidden_size=32", "backbone.layers=1", "backbone.head_size=16",
         "tokenizer=bytes", "dtype=bfloat16")


def test_an_untrained_model_answers_and_reports_its_parameters(run, video) -> None:
    flags = ("--random-weights", "--frames", "2", "--keep-ratio", "1", *SHORT)
    status, out, err = run("ask", video, "What?", *flags, "--", *SMALL)
    assert status == 0 and out.endswith("\n")
    assert [line.split(":")[0] for line in err.splitlines()] == ["vision", "connector", "backbone"]
    assert "random weights" in err


def test_the_only_trained_model_here_is_the_default(run, model_folder, video, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the tiny model that comes with Aurora answers, which knows only Blocks world" in run("ask", video, "?")[2]
    for number, name in enumerate(("one", "two")):
        shutil.copytree(model_folder, tmp_path / "runs" / name / "language_video" / "model")
        status, _, err = run("ask", video, "What?", *SHORT)
        assert status == (0, 2)[number]
    assert "runs/one/language_video/model, runs/two/language_video/model" in err


# ---- errors


@pytest.fixture
def bad(tmp_path: Path, video: Path, image: Path) -> Path:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"no video " * 50)
    (tmp_path / "cut.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 3])
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:500])
    return tmp_path


@pytest.mark.parametrize("name", ["missing.mp4", "empty.mp4", "text.mp4", "cut.mp4", "cut.png", "."])
def test_a_bad_file_is_one_line_and_status_2(run, model_folder, bad, name: str) -> None:
    status, out, err = run("ask", bad / name, "What?", "--model", model_folder)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("aurora: error: ") and str(bad / name) in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--top-p", "2"), "top_p is 2.0"),
        (("--keep-ratio", "0"), "keep_ratio is 0.0"),
        (("--fps", "1", "--frames", "2"), "--fps and --frames exclude each other"),
        (("--fps", "0"), "fps 0"),
        (("--frames", "2", "--max-frames", "1"), "max_frames 1"),
        (("--merge", "tomme"), "Did you mean 'tome'"),
        (("--device", "abacus"), "device 'abacus'"),
        (("--threads", "0"), "--threads 0"),
        (("--option", "red"), "give two or more"),
        (("--score", "likelihood"), "give options"),
        (("--score", "likely"), "'likely'"),
        (("--random-weights",), "exclude each other"),
        (("--keep_ratio", "1"), "No such option: --keep_ratio. Did you mean '--keep-ratio'"),
        (("--temperature", "hot"), "'hot'"),
        (("--", "backbone.layers=3"), "another model"),
        (("--", "merge.shedule=floor"), "Did you mean 'schedule'"),
        (("--", "trainer=cpu"), "no 'trainer' to override"),
        (("keep_raito=0.5",), "Did you mean 'keep_ratio'"),
        (("--modle", "m"), "Did you mean '--model'"),
        (("--mod", "m"), "No such option: --mod"),
    ],
)
def test_a_bad_option_is_one_line_and_status_2(run, model_folder, video, arguments, message) -> None:
    status, out, err = run("ask", video, "What?", "--model", model_folder, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err


def test_no_question_is_an_error(run, model_folder, video) -> None:
    assert "no question" in run("ask", video, "--model", model_folder)[2]


def test_a_folder_that_is_no_model_is_an_error(run, video, tmp_path) -> None:
    assert "is not a model folder" in run("ask", video, "What?", "--model", tmp_path)[2]


def test_a_demo_is_not_written_into_a_folder_called_like_an_override(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no 'keep_raito'. Did you mean 'keep_ratio'" in run("demo", "keep_raito=1")[2]
    assert "one two: give one FOLDER" in run("demo", "keep_ratio=1", "one", "two")[2]
    assert not [*tmp_path.iterdir()]


def test_an_unknown_command_is_one_line(run) -> None:
    status, _, err = run("aks")
    assert (status, err.count("\n")) == (2, 1) and "no command named 'aks'. Did you mean 'ask'?" in err
    status, _, err = run("shards", "biuld")
    assert (status, err.count("\n")) == (2, 1) and "Did you mean 'build'?" in err


def test_overrides_are_refused_where_there_is_nothing_to_override(run) -> None:
    for words in (("keep_ratio=1",), ("--", "keep_ratio=1")):
        status, _, err = run("version", *words)
        assert (status, err.count("\n")) == (2, 1) and "takes no overrides, but was given 'keep_ratio=1'" in err


def test_what_is_not_an_override_is_refused(run, model_folder) -> None:
    assert "'nonsense' is not an override" in run("info", "--model", model_folder, "--", "nonsense")[2]


def test_unsafe_loading_of_weights_is_refused(run, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" in run("list")[2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_replaced(run, monkeypatch, encoding: str) -> None:
    monkeypatch.setattr(SLOTS["sort"].get("size"), "__doc__", "Größe → 大")
    shown = json.loads(run("list", "sort", "--json")[1])
    for flags in ((), ("--json",)):
        written = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", written)
        assert main(["list", "sort", *flags]) == 0
        text = written.buffer.getvalue().decode(encoding)
        assert json.loads(text) == shown if flags else {"ascii": "Gr??e ? ?", "latin-1": "Größe ? ?"}[encoding] in text


def test_debugging_shows_the_traceback(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AURORA_DEBUG", "1")
    with pytest.raises(AuroraError):
        run("ask", tmp_path / "missing.mp4", "What?")


@pytest.mark.slow
def test_an_interrupted_command_ends_with_130_and_no_traceback(endless_folder, video) -> None:
    process = start("ask", video, "What?", "--model", endless_folder, "--max-new-tokens", "1000000")
    assert process.stdout.read(1)  # it has begun to answer
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "aurora: interrupted\n")


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_command_quietly(endless_folder, video) -> None:
    process = start("ask", video, "What?", "--model", endless_folder, "--max-new-tokens", "1000000")
    process.stdout.close()  # before it answers: later it might have ended by itself
    process.wait(timeout=60)
    assert (process.stderr.read(), process.returncode) == ("", 1)
    process.stderr.close()


# ---- list, info, version


@pytest.mark.parametrize("slot", SLOTS)
def test_a_slot_is_listed_with_its_options_and_defaults(run, slot: str) -> None:
    listed = json.loads(run("list", slot, "--json")[1])
    assert list(listed) == [slot] and list(listed[slot]) == SLOTS[slot].known()
    assert not [name for name, part in listed[slot].items() if part["error"]]


def test_every_part_says_in_words_what_it_is(run) -> None:
    listed = json.loads(run("list", "--json")[1])
    assert not [name for parts in listed.values() for name, part in parts.items() if "`" in part["summary"][:1]]


def test_defaults_and_required_options_are_told_apart(run) -> None:
    listed = json.loads(run("list", "--json")[1])
    assert listed["sort"]["size"]["options"]["order"]["default"] == "ascending"
    assert listed["tokenizer"]["hf"]["options"]["path"]["required"]
    assert "in_width" not in listed["connector"]["mlp"]["options"]
    text = run("list")[1]
    assert "order=ascending" in text and "path=(required)" in text


def test_a_part_that_cannot_be_imported_is_shown_with_the_reason(run, tmp_path, monkeypatch) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[aurora.sort]\nspiral = not_installed:Spiral\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, out, _ = run("list", "sort", "--json")
    listed = json.loads(out)["sort"]
    assert status == 0 and listed["raster"]["error"] is None
    assert "No module named 'not_installed'" in listed["spiral"]["error"]
    assert "cannot be used" in run("list", "sort")[1]


def test_an_unknown_slot_is_an_error(run) -> None:
    assert "Did you mean 'merge'" in run("list", "marge")[2]


def test_a_saved_model_is_described(run, model, model_folder) -> None:
    described = json.loads(run("info", "--model", model_folder, "--json")[1])
    assert described["parameters"]["backbone"] == sum(p.numel() for p in model.backbone.parameters())
    assert (described["patches_per_frame"], described["tokens_per_frame"]) == (16, 8)
    assert described["state_bytes"] == sum(t.nbytes for t in model.backbone.init_state(1).values())


def test_a_config_is_described_without_taking_its_memory(run) -> None:
    out = run("info", "dtype=bfloat16")[1]
    assert "1,599,873,024" in out and "576 patches, 58 tokens" in out


def test_versions_are_told(run) -> None:
    assert {"aurora", "python", "torch"} <= {line.split()[0] for line in run("version")[1].splitlines()}


# ---- eval and overrides


@pytest.fixture
def questions(video: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "questions"
    folder.mkdir()
    shutil.copyfile(video, folder / "a.mp4")
    shutil.copyfile(video, folder / "b.mp4")
    lines = [{"id": name, "video": f"{name}.mp4", "family": "colour", "question": "Which?", "options": ["red", "blue"],
              "answer": number} for number, name in enumerate("ab")]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_an_evaluation_writes_its_result_and_shows_a_table(run, model_folder, questions, tmp_path) -> None:
    status, out, err = run("eval", "--model", model_folder, "--data", questions, "--output", tmp_path / "out",
                           "keep_ratio=0.25")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert status == 0 and "colour" in out and "result.json" in err
    assert (result["keep_ratio"], result["n"], len(result["model"])) == (0.25, 2, 64)


def test_an_evaluation_can_print_its_result(run, model_folder, questions, tmp_path) -> None:
    out = run("eval", "--model", model_folder, "--data", questions, "--output", tmp_path / "out", "--json")[1]
    assert json.loads(out) == json.loads((tmp_path / "out" / "result.json").read_text())


def test_an_evaluation_can_choose_by_likelihood(run, model_folder, questions, tmp_path) -> None:
    status, out, _ = run("eval", "--model", model_folder, "--data", questions, "--output", tmp_path / "out",
                         "--score", "likelihood")
    assert status == 0 and "by likelihood" in out
    assert json.loads((tmp_path / "out" / "result.json").read_text())["unparsed"] == 0


def test_results_lie_beside_the_model_unless_told_otherwise(run, model_folder, questions, tmp_path) -> None:
    model = shutil.copytree(model_folder, tmp_path / "stage" / "model")  # other tests export the shared one
    run("eval", "--model", model, "--data", questions, "--limit", "1")
    assert (tmp_path / "stage" / "eval" / "questions" / "result.json").is_file()


def test_the_help_imports_nothing_that_takes_a_second() -> None:
    code = ("import sys\nfrom aurora.cli import main\nsys.argv[1:] = ['--help']\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "sys.stderr.write(str({'torch', 'lightning', 'hydra', 'transformers', 'numpy'} & set(sys.modules)))")
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage" in said.stdout and said.stderr == "set()"
