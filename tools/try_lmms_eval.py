"""Runs the model of lmms-eval in the real lmms-eval, on two small tasks in its own format: questions about whole videos
and about moments, in batches. Its answers must be those of Aurora's own Python interface.

usage: tools/build_lmms_env.sh FOLDER
       python -m tools.try_lmms_eval FOLDER/bin/python [--model FOLDER]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aurora
from aurora.evaluation.lmms_format import read_samples
from aurora.inference.generation import Generation
from tools.bench_films import RATE, write_video

QUESTIONS = ["What happens?", "Which colours are there?", "How many objects move?"]
TOKENS, FPS, MOMENTS = 12, 2.0, (1.0, 2.6)  # moments in seconds; tasks such as MovieChat's count them in frames

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.{visual}
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, temperature: 0, do_sample: false}}
process_results: !function utils.results
metric_list:
  - {{metric: exact, aggregation: mean, higher_is_better: true}}
"""
UTILS = """\
def whole(doc):
    return [doc["video"]]


def moment(doc):
    return [{"video_path": doc["video"], "timestep": doc["time"]}]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, results):
    return {"exact": float(results[0].strip() == doc["answer"].strip())}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="of the environment that tools/build_lmms_env.sh made")
    parser.add_argument("--model", help="a model folder; default: the tiny model that comes with Aurora")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = write_tasks(folder, options.model)
        run(options.python, folder, options.model, list(expected))
        for task, answers in expected.items():
            file, = folder.glob(f"logs/**/*samples_{task}.jsonl")
            said = [sample.answer for sample in sorted(read_samples(file), key=lambda sample: sample.number)]
            same = sum(one == other for one, other in zip(said, answers, strict=True))
            print(f"{task}: {same} of {len(answers)} answers are Aurora's own")
            if said != answers:
                sys.exit(f"lmms-eval: {said}\nAurora: {answers}")
        results, = folder.glob("logs/**/*results.json")
        print(json.dumps(json.loads(results.read_text())["results"], indent=2))


def write_tasks(folder: Path, model: str | None) -> dict[str, list[str]]:
    """Two tasks, and the answers that are right by Aurora's own interface."""
    loaded, options = aurora.load(model), Generation(max_new_tokens=TOKENS)
    documents: dict[str, list[dict[str, Any]]] = {"aurora_whole": [], "aurora_moment": []}
    for number in range(2):
        video = write_video(folder / f"{number}.mp4", 4 * RATE, 96, moving=number == 0)
        for question in QUESTIONS:
            film = loaded.watch(video, fps=FPS)
            documents["aurora_whole"].append({"video": str(video), "question": question, "time": 0,
                                              "answer": str(film.ask(question, options=options))})
            for second in MOMENTS:
                film = loaded.watch(video, fps=FPS, stop=second + 1e-3)
                documents["aurora_moment"].append({
                    "video": str(video), "question": question, "time": round(second * RATE),
                    "answer": str(film.ask(question, options=options))})
    for (name, rows), visual in zip(documents.items(), ("whole", "moment"), strict=True):
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, documents=lines, visual=visual, tokens=TOKENS))
    (folder / "utils.py").write_text(UTILS)
    return {name: [row["answer"] for row in rows] for name, rows in documents.items()}


def run(python: str, folder: Path, model: str | None, tasks: list[str]) -> None:
    """The command of lmms-eval, offline."""
    given = [f"fps={FPS}", f"timestep_fps={RATE}", "prompt=generic", *([f"pretrained={model}"] if model else [])]
    subprocess.run([python, "-m", "lmms_eval", "--model", "auroralong", "--model_args", ",".join(given),
                    "--include_path", str(folder), "--tasks", ",".join(tasks), "--batch_size", "4", "--log_samples",
                    "--output_path", str(folder / "logs")], check=True, cwd=folder,
                   env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": "",
                        "HF_HOME": str(folder / "home")})


if __name__ == "__main__":
    main()
