"""Trains the tiny model that comes with Aurora, and measures it on the test split of Blocks world.

The recipe is that of the demo, with more data at a larger scale. The model is trained with both prompts, so both are
measured, with options answered by their text and by their letter.

    python tools/train_shipped_model.py runs/shipped --scale 3
    python tools/train_shipped_model.py runs/shipped --measure-only
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from aurora.demo.run import build_once, percent, train_aloud
from aurora.evaluation.run import evaluate
from aurora.inference.models import SHIPPED
from aurora.weights.export import model_card, training_of
from aurora.weights.model_folder import load_model, model_hash, save_model
from datamodules.blocks.build import write_heldout

CARD = "MODEL_CARD.md"
LICENCE = "apache-2.0"
LIMITS = """This model knows only Blocks world: videos of a few coloured shapes on a plain background, made by
`aurora blocks`, and the questions that are asked there, in English. About any other video it says what it would say of
shapes. It shows what Aurora does, and is good for nothing else."""
SEED = 1000
"""Of the questions that it is measured with: not those of any demo."""


def ship(trained: Path, target: Path) -> None:
    """Writes the trained model in bfloat16, which halves the package. It is computed in float32: its encoder took 0.67
    times as long so on a Xeon without AMX (`python -m tools.bench_films dtype=bfloat16`, and without)."""
    model, config = load_model(trained, overrides=["dtype=bfloat16"])
    save_model(model, config.override(["dtype=float32"]), target)


def measure(folder: Path, data: Path, output: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The results of a saved model by prompt and form of the answers, computed in float32."""
    results = {}
    for prompt, form in product(("sandwich", "generic"), ("text", "letter")):
        model, config = load_model(folder, overrides=[f"prompt={prompt}", "dtype=float32"])
        results[prompt, form] = evaluate(
            model, config, data, output=output / f"{prompt}-{form}", restart=True, model_hash=model_hash(folder),
            benchmark={"name": "blocks", "letters": form == "letter", "wrong_videos": form == "text"})
    return results


def table(results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Accuracy by family in Markdown, one column per prompt and form."""
    first = next(iter(results.values()))
    heads = ["", *(f"`{prompt}`, {form}" for prompt, form in results)]
    lines = [heads, ["---"] * len(heads),
             [f"**all, {first['n']} questions**", *(percent(result["accuracy"]) for result in results.values())],
             ["about a wrong video", *(percent(result["wrong_video_accuracy"]) for result in results.values())],
             *([family.replace("_", " "), *(percent(result["families"][family]["accuracy"])
                                            for result in results.values())] for family in first["families"])]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_card(target: Path, trained: Path, results: str) -> None:
    """Writes what the model is, how it was trained and what was measured."""
    model, config = load_model(target)
    card = model_card(model, config, name="Aurora's Blocks world model", licence=LICENCE, sources=None, results=[],
                      training=training_of(trained))
    card = card.replace("; see `prompt.json`", "")  # which only an export has
    front, _, after = card.partition("\n## Parts\n")
    before, _, _ = after.partition("\n## Results\n")
    text = (f"{front}\n## Limits\n\n{LIMITS}\n\n## Parts\n{before}\n## Results\n\nOn scenes of the test split, of "
            "which these stages have seen none, computed in float32; chance is 25 %. `generic` reads a video once for "
            f"all questions, `sandwich` reads it again for each.\n\n{results}")
    (target / CARD).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data relative to the demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=24, help="per family")
    parser.add_argument("--measure-only", action="store_true", help="of the model in --out")
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as trainer=cpu")
    arguments = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    trained = arguments.run / "language_video" / "model"
    if not arguments.measure_only:
        build_once(arguments.run / "data", arguments.seed, arguments.scale, console)
        train_aloud(arguments.run, arguments.seed, arguments.overrides, console)
        ship(trained, arguments.out)
    data = arguments.run / "test"
    write_heldout(data, arguments.questions, seed=SEED)
    results = measure(arguments.out, data, arguments.run / "measured")
    shown = table(results)
    sandwich, generic = (results[prompt, "text"]["accuracy"] for prompt in ("sandwich", "generic"))
    print(f"{shown}\nsandwich {100 * sandwich:.1f} %, generic {100 * generic:.1f} %: "
          f"{100 * (sandwich - generic):+.1f} points for reading the video again")
    write_card(arguments.out, trained, shown)


if __name__ == "__main__":
    main()
