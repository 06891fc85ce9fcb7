from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from aurora.errors import AuroraError
from aurora.inference.generation import Generation, complete
from aurora.inference.reading import blank, read_texts
from aurora.model import AuroraModel
from aurora.serving import engine as engines
from aurora.serving.answer import Answer, DeadlineExceeded, Passage, QueueFull
from aurora.serving.batch import FEW, WAYS, Batch, Member
from aurora.serving.engine import Engine

QUESTIONS = [f"question {number} {'x' * number}" for number in range(20)]
OPTIONS = [Generation(max_new_tokens=12) if number % 2 else
           Generation(max_new_tokens=9, temperature=1.0, top_k=40, seed=number) for number in range(20)]
LONG = Generation(max_new_tokens=100_000)


@pytest.fixture(scope="module")
def endless(make_model: Callable[..., AuroraModel]) -> AuroraModel:
    """One that says "a" or "b" for ever."""
    model = make_model()
    with torch.no_grad():
        head = model.backbone.head.weight
        head.zero_()
        head[ord("a") + 1], head[ord("b") + 1] = 1.0, -1.0
    return model


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def start(model: AuroraModel, **options: int) -> Engine:
        started.append(Engine(model, model.backbone.runner(), **options))
        return started[-1]

    yield start
    for engine in started:
        engine.close()


def ask(engine: Engine, question: str = "a question", options: Generation = LONG, **given: float) -> Answer:
    return engine.ask(blank(engine.runner, 1), engine.model.tokenizer.encode(question), options, **given)


def alone(model: AuroraModel, question: str, options: Generation) -> str:
    runner = model.backbone.runner()
    return complete(model, runner, read_texts(runner, blank(runner, 1), [model.tokenizer.encode(question)]), options)[0]


@pytest.mark.parametrize("at_a_time", [3, 32])
def test_many_answers_at_a_time_are_those_of_one_at_a_time(model: AuroraModel, start: Callable[..., Engine],
                                                           at_a_time: int) -> None:
    engine = start(model, max_sequences=at_a_time)
    torch.manual_seed(0)
    film = torch.randn(700, model.backbone.hidden_size)

    async def together() -> list[str]:
        watching = asyncio.create_task(asyncio.to_thread(engine.prefill, blank(engine.runner, 1), film))
        answers = [ask(engine, question, options) for question, options in zip(QUESTIONS, OPTIONS, strict=True)]
        texts = await asyncio.gather(*(answer.whole() for answer in answers))
        memory = await watching
        whole = engine.runner.prefill(film, torch.tensor([0, len(film)]), engine.runner.backbone.init_state(1))[1]
        for name, tensor in memory.state.items():
            torch.testing.assert_close(tensor, whole[name])
        return texts

    assert asyncio.run(together()) == [alone(model, *one) for one in zip(QUESTIONS, OPTIONS, strict=True)]


def test_a_film_that_is_read_alone_has_the_state_of_one_reading(model: AuroraModel, start: Callable[..., Engine]
                                                                ) -> None:
    engine = start(model)
    film = torch.randn(500, model.backbone.hidden_size)
    memory = engine.prefill(blank(engine.runner, 1), film)
    _, whole = engine.runner.prefill(film, torch.tensor([0, len(film)]), engine.runner.backbone.init_state(1))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in memory.state.items())


@pytest.mark.parametrize(("fixed", "per_token"), [(0.001, 5e-6), (0.008, 5e-6), (0.0, 2e-5), (0.0, 1e-2)])
def test_a_pass_with_a_film_takes_about_twice_the_shortest(
    model: AuroraModel, start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, fixed: float, per_token: float
) -> None:
    """Seconds of a pass, and of each of its tokens, by a clock that only passes move."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(engines, "time", clock)
    engine = start(model)
    read, passes = engine._batch.read, []

    def costly(members: list[Member], rows: list[torch.Tensor]) -> torch.Tensor:
        passes.append(sum(map(len, rows)))
        clock.now += fixed + per_token * passes[-1]
        return read(members, rows)

    monkeypatch.setattr(engine._batch, "read", costly)
    engine.prefill(blank(engine.runner, 1), torch.randn(20_000, model.backbone.hidden_size))
    limit = min(engines.FILM_SECONDS, 2 * (fixed + 64 * per_token))
    assert passes[0] == 64 and sum(passes) == 20_000
    assert passes[-2] == 64 or 0.8 * limit < fixed + per_token * passes[-2] <= 1.001 * limit
    assert (passes[-2] == 64) == (per_token == 1e-2)  # where 64 take longer than they should


def test_questions_go_before_a_film_which_is_not_forgotten(endless: AuroraModel, monkeypatch: pytest.MonkeyPatch,
                                                           start: Callable[..., Engine]) -> None:
    monkeypatch.setattr(engines, "QUESTION_TOKENS", 8)
    monkeypatch.setattr(engines, "FILM_SECONDS", 0.0)  # the smallest part in every pass
    engine = start(endless)
    read: list[list[int]] = []
    batch_read = engine._batch.read

    def noted(members: list[Member], rows: list[torch.Tensor]) -> torch.Tensor:
        read.append([len(row) for row in rows])
        return batch_read(members, rows)

    monkeypatch.setattr(engine._batch, "read", noted)

    async def main() -> None:
        with engine._changed:  # both are there before the first pass
            answer = ask(engine, "x" * 80, Generation(max_new_tokens=1))
            film = asyncio.create_task(
                asyncio.to_thread(engine.prefill, blank(engine.runner, 1), torch.randn(128, 32)))
            engine._films.append(Passage(blank(engine.runner, 1), torch.randn(64, 32)))
        await answer.whole()
        await film

    asyncio.run(main())
    first = [rows for rows in read if 8 in rows][:5]
    assert first == [[8], [8], [8], [8], [8, 64]]


def test_an_answer_that_nobody_waits_for_ends(endless: AuroraModel, start: Callable[..., Engine]) -> None:
    engine = start(endless)

    async def main() -> None:
        answer = ask(engine)
        async for _ in answer.pieces():
            break
        answer.cancel()
        while engine.answering:
            await asyncio.sleep(0.01)
        assert await ask(engine, options=Generation(max_new_tokens=2)).whole()

    asyncio.run(main())


def test_an_answer_ends_at_its_deadline(endless: AuroraModel, start: Callable[..., Engine]) -> None:
    engine = start(endless)

    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await ask(engine, seconds=0.2).whole()

    asyncio.run(main())


def test_a_question_too_many_is_refused(endless: AuroraModel, start: Callable[..., Engine]) -> None:
    engine = start(endless, max_sequences=1, max_waiting=2)

    async def main() -> None:
        running = ask(engine)
        while not engine.answering:
            await asyncio.sleep(0.01)
        ask(engine), ask(engine)
        with pytest.raises(QueueFull, match="2 questions are waiting already"):
            ask(engine)
        running.cancel()

    asyncio.run(main())


def test_an_error_in_a_pass_reaches_who_asked_and_the_next_one_is_answered(
    model: AuroraModel, start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(model)
    with monkeypatch.context() as broken:
        def fail(*_: object) -> None:
            raise RuntimeError("no memory")

        broken.setattr(engine.runner, "prefill", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            asyncio.run(whole(engine))
        with pytest.raises(RuntimeError, match="no memory"):
            engine.prefill(blank(engine.runner, 1), torch.randn(3, 32))
    assert asyncio.run(whole(engine)) == alone(model, "a question", OPTIONS[1])


def test_an_answer_that_has_no_next_token_ends_alone(model: AuroraModel, start: Callable[..., Engine]) -> None:
    engine = start(model)
    options = [Generation(max_new_tokens=12, temperature=1.0, seed=seed) for seed in range(4)]

    async def together() -> list[str | BaseException]:
        fine = blank(engine.runner, 1)
        broken = fine._replace(state={name: torch.full_like(tensor, torch.nan) for name, tensor in fine.state.items()})
        with engine._changed:  # all are there before the first pass
            asked = [engine.ask(broken if number == 1 else fine, model.tokenizer.encode(QUESTIONS[number]), one)
                     for number, one in enumerate(options)]
        return await asyncio.gather(*(answer.whole() for answer in asked), return_exceptions=True)

    made = asyncio.run(together())
    assert isinstance(made.pop(1), ArithmeticError)
    assert made == [alone(model, QUESTIONS[number], options[number]) for number in (0, 2, 3)]
    assert engine.answering == 0


async def whole(engine: Engine) -> str:
    return await ask(engine, options=OPTIONS[1]).whole()


def test_a_closed_engine_answers_nothing(model: AuroraModel) -> None:
    engine = Engine(model, model.backbone.runner())
    engine.close()
    with pytest.raises(AuroraError, match="closed"):
        engine.prefill(blank(engine.runner, 1), torch.randn(3, 32))
    with pytest.raises(QueueFull, match="shutting down"):
        asyncio.run(whole(engine))


@torch.inference_mode()
def test_every_way_to_step_is_a_step(model: AuroraModel) -> None:
    runner, sequences = model.backbone.runner(), 2 * FEW + 3
    x, state = torch.randn(sequences, 32), model.backbone.init_state(sequences)
    hidden, after = model.backbone.step(x, state)
    for way in WAYS:
        others = way(runner, x, state)
        torch.testing.assert_close(others[0], hidden)
        for name, tensor in after.items():
            torch.testing.assert_close(others[1][name], tensor)


@torch.inference_mode()
def test_states_are_copied_only_when_somebody_joins_or_leaves(model: AuroraModel) -> None:
    runner = model.backbone.runner()
    members = [Member(blank(runner, 1)) for _ in range(4)]
    batch, tokens = Batch(runner), torch.tensor([1, 2, 3, 4])
    batch.step(members, tokens)
    state = batch._state
    assert batch._enter(members) is state
    left = batch._enter(members[1:3])
    assert left["wkv"].data_ptr() == state["wkv"][:, 1:3].data_ptr()  # neighbours are not copied
    assert torch.equal(batch.memory(members[0]).state["wkv"], state["wkv"][:, :1])
