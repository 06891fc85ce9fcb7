import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from aurora.commands._options import Json, positive
from aurora.errors import AuroraError

_DEFAULTS = {"temperature": 0, "max_tokens": 64}
_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Requests:
    """Requests"""

    concurrency: Annotated[int, typer.Option(metavar="N", min=1, help="Requests at a time.")] = 8
    timeout: Annotated[float, typer.Option(metavar="SECONDS", parser=positive, help="For one answer.")] = 60.0
    retries: Annotated[int, typer.Option(metavar="N", min=0, help=(
        "Of a request that failed, each after a longer wait, or the one that the server asks for."))] = 5
    cache: Annotated[Path | None, typer.Option(metavar="FILE", help=(
        "SQLite file of the verdicts, which several runs may share. Default: verdicts.sqlite in OUTPUT."))] = None


def judge(
    *,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", show_default=False, help=(
        "The --output of `aurora eval` on a benchmark that needs a judge."))],
    parameters: Annotated[list[str], typer.Argument(
        metavar="KEY=VALUE", default_factory=list, show_default=False, help=(
            "Parameters of the request, such as seed=1 or max_tokens=256; null leaves one out. Default: temperature=0 "
            "max_tokens=64."))],
    model: Annotated[str, typer.Option(metavar="NAME", help="The judge, as its server calls it.")],
    base_url: Annotated[str, typer.Option(metavar="URL", help=(
        "An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."))] = "https://api.openai.com/v1",
    key_env: Annotated[str | None, typer.Option(metavar="NAME", show_default=False, help=(
        f"The environment variable that holds the key. Default: {_KEY}, if it is set."))] = None,
    json_output: Json = False,
    requests: Requests,
) -> None:
    """Let a language model judge the answers of an evaluation.

    For ActivityNet-QA, MovieChat-1K and VDC (in two steps). Writes verdicts.jsonl and the scores into result.json, with
    the judge's name and the hash of its prompt. Verdicts are cached as they come, so that a stopped command goes on.
    What got no verdict is counted as unjudged, and asked about again by the same command.

    \b
    example:
      aurora judge runs/anet --model gpt-4o-2024-11-20
      aurora judge runs/vdc --base-url http://127.0.0.1:8000/v1 \\
        --model meta-llama/Llama-3.1-8B-Instruct
    """
    from aurora.evaluation.judge_client import Endpoint
    from aurora.evaluation.judging import judge as judge_run
    from aurora.evaluation.run import RESULT_FILE
    from aurora.evaluation.summary import render
    from aurora.terminal import progress_bar, stdout, write_json

    endpoint = Endpoint(base_url, model, _parameters(parameters), _key(key_env), requests.concurrency, requests.timeout,
                        requests.retries)
    with progress_bar("judging") as tick:
        result = judge_run(output, endpoint, cache=requests.cache, on_progress=tick)
    if json_output:
        write_json(result)
    else:
        stdout().print(render(result))
    sys.stderr.write(f"written to {output / RESULT_FILE}\n")


def _key(name: str | None) -> str | None:
    """The key, which is shown nowhere. AuroraError when the variable that should hold it does not."""
    key = os.environ.get(name or _KEY, "").strip()
    if name is not None and not key:
        # what is no name may be the key itself
        raise AuroraError(f"--key-env {name}: there is no key in this environment variable" if name.isidentifier()
                          else "--key-env takes the name of an environment variable, not the key")
    return key or None


def _parameters(given: list[str]) -> dict[str, Any]:
    """Of the request; null leaves out what it would hold by default."""
    from aurora.config import parse_override

    found: dict[str, Any] = dict(_DEFAULTS)
    for text in given:
        try:
            override = parse_override(text)
        except AuroraError as error:
            raise AuroraError(f"{text!r} is not a parameter such as seed=1 or max_tokens=256") from error
        found[override.key_or_group] = override.value()
    if taken := sorted(found.keys() & {"model", "messages", "stream", "n"}):
        raise AuroraError(f"{taken[0]}= is set by `aurora judge` itself")
    return {key: value for key, value in found.items() if value is not None}
