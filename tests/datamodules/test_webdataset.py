import json
from collections import Counter
from itertools import chain

import pytest
import torch

from aurora.errors import AuroraError
from aurora.types import IGNORE
from datamodules.plan.corpus import DatasetCounts, _layout_identity
from datamodules.plan.lengths import counter
from datamodules.shards.format import ShardSample
from datamodules.shards.writing import shard_path
from tools.tiny_shards import write_shards


def on_rank(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def run(make, root, monkeypatch, world=1, done=(), **options):
    """(answers, closes, position) of every row behind those that are done, the ranks' answers joined."""
    ranks = []
    for rank in range(world):
        on_rank(monkeypatch, rank, world)
        loader = make.module(root, {"mixed": 1, "text": 2}, **options).train_dataloader()
        if done:
            loader.load_state_dict({**loader.state_dict(), "position": done[-1][2],
                                    "step": sum(closes for _, closes, _ in done)})
        ranks.append([(make.answers(batch), batch.closes_step, batch.position, batch.samples)
                      for batch in chain.from_iterable(loader)])
    rows = []
    for row in zip(*ranks, strict=True):
        assert len({(closes, place) for _, closes, place, _ in row}) == 1
        assert all(len(found) == samples for found, _, _, samples in row)
        rows.append(([found for found, _, _, _ in row if found], row[0][1], row[0][2]))
    return rows


def steps(rows):
    done, current = [], []
    for found, closes, _ in rows:
        current += found
        if closes:
            done.append(current)
            current = []
    return done


@pytest.fixture(scope="module")
def whole(make, shards):
    patch = pytest.MonkeyPatch()
    rows = run(make, shards, patch, epochs=2)
    patch.undo()
    return rows


def test_every_sample_of_every_kind_comes_as_often_as_it_should(whole):
    seen = Counter(answer for step in steps(whole) for row in step for answer in row)
    assert seen == {**{str(number): 2 for number in range(40)}, **{str(number): 4 for number in range(100, 110)}}


@pytest.mark.parametrize("world", [2, 3])
def test_the_order_is_the_same_for_any_number_of_ranks(make, shards, monkeypatch, whole, world):
    assert steps(run(make, shards, monkeypatch, world, epochs=2)) == steps(whole)


# Workers take seconds to start, so that one cut stands for all of them; test_plan.py cuts everywhere.
@pytest.mark.parametrize(("cut", "world", "workers"), [
    (2, 2, 0), (15, 3, 0), pytest.param(4, 1, 2, marks=pytest.mark.process)])
def test_a_run_goes_on_where_it_stopped_on_another_layout(
    make, shards, monkeypatch, whole, cut, world, workers
):
    done = whole[:cut]
    rest = run(make, shards, monkeypatch, world, done=done, epochs=2, workers=workers)
    assert steps(done) + steps(rest) == steps(whole)


@pytest.mark.parametrize("limit", [None, 1, 5, 7])
@pytest.mark.parametrize("unit", [{}, {"batch_unit": "tokens", "global_batch": 1000}])
def test_what_is_planned_is_what_is_read_to_the_last_step(make, shards, limit, unit):
    module = make.module(shards, {"mixed": 1, "text": 2}, epochs=2, max_steps=limit, layout=make.layout(), **unit)
    rows = list(chain.from_iterable(module.train_dataloader()))
    read = [sum(row.samples for row in rows), sum(row.closes_step for row in rows),
            sum(len(group.pixels) for row in rows for group in row.frames), sum(len(row.tokens) for row in rows)]
    blank = [group.positions.numel() for row in rows if len(row.cu_seqlens) - 1 > row.samples for group in row.frames]
    planned = module.reads()
    assert [planned["visits"], planned["steps"], planned["frames"] + len(blank),
            planned["tokens"] + sum(blank)] == read
    assert module.samples() == read[0]


def test_the_number_of_steps_is_known(make, shards, whole):
    module = make.module(shards, {"mixed": 1, "text": 2}, epochs=2)
    assert module.total_steps() == len(steps(whole)) == 2 * module.steps_per_epoch()
    assert make.module(shards, {"mixed": 1}, max_steps=2).total_steps() == 2


def test_training_ends_after_the_most_steps(make, shards, monkeypatch):
    assert len(steps(run(make, shards, monkeypatch, max_steps=3))) == 3


def test_single_images_and_videos_share_no_step_unless_they_may(make, shards, monkeypatch):
    def mixes(**options):
        rows = run(make, shards, monkeypatch, **options)
        kinds = [{int(answer) % 4 for row in step for answer in row if int(answer) < 100} for step in steps(rows)]
        return any(1 in kind and kind & {2, 3} for kind in kinds)
    assert not mixes() and mixes(mix_kinds=True)


def test_rows_keep_to_their_budgets_and_hold_what_they_say(make, shards):
    for batch in chain.from_iterable(make.module(shards, {"mixed": 1, "text": 1}, mix_kinds=True).train_dataloader()):
        assert len(batch.tokens) <= 400 and sum(len(group.pixels) for group in batch.frames) <= 17
        places = torch.cat([group.positions.flatten() for group in batch.frames])
        assert len(places.unique()) == len(places) and not batch.tokens[places].any()
        assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == len(batch.tokens)
        assert (batch.cu_seqlens.diff() > 0).all()


@pytest.mark.parametrize("kind", ["text", "image", "images", "video"])
def test_exactly_the_answer_and_its_stop_are_learned(make, tmp_path, kind):
    write_shards([make.sample(7, kind)], tmp_path / "one")
    batch, = chain.from_iterable(make.module(tmp_path, {"one": 1}).train_dataloader())
    learned = batch.targets != IGNORE
    assert make.Letters().decode(batch.targets[learned].tolist()) == " It is 7.\n\n"
    read = make.Letters().decode(batch.tokens[:batch.cu_seqlens[1]][batch.tokens[:batch.cu_seqlens[1]] > 0].tolist())
    seen = "" if kind == "text" else "What is 7?\n\n"
    assert read == f"User: {seen}What is 7?\n\nAssistant: It is 7.\n\n"
    # The model says the answer's first letter where it has read the colon.
    assert make.Letters().decode([int(batch.tokens[learned.nonzero()[0, 0]])]) == ":"


def test_nothing_is_learned_across_sequences(make, tmp_path):
    write_shards([ShardSample(f"k{number}", {"conversations": make.talk(number)}) for number in range(3)],
                 tmp_path / "text")
    batch, = chain.from_iterable(make.module(tmp_path, {"text": 1}, layout=None).train_dataloader())
    assert (batch.targets[batch.cu_seqlens[1:] - 1] == IGNORE).all()
    for start, stop in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True):
        targets, following = batch.targets[start:stop - 1], batch.tokens[start + 1:stop]
        assert (following[targets != IGNORE] == targets[targets != IGNORE]).all()


def test_visual_tokens_stand_between_the_questions_in_time_order(make, tmp_path):
    write_shards([make.sample(3, "video")], tmp_path / "one")
    batch, = chain.from_iterable(make.module(tmp_path, {"one": 1}, fps=10.0).train_dataloader())
    group, = batch.frames
    before = len("User: What is 3?\n")
    assert group.positions.flatten().tolist() == list(range(before, before + 7 * 4))
    assert [round(float(pixels.float().mean()) / make.STEP) for pixels in group.pixels] == list(range(7))


def test_frames_of_different_shapes_stand_in_groups_of_their_own(make, tmp_path):
    write_shards([make.sample(2, "images")], tmp_path / "one")
    module = make.module(tmp_path, {"one": 1}, layout=make.layout(resize="keep_aspect"))
    batch, = chain.from_iterable(module.train_dataloader())
    assert [(tuple(group.pixels.shape), tuple(group.positions.shape)) for group in batch.frames] == [
        ((1, 3, 32, 48), (1, 6)), ((1, 3, 48, 32), (1, 6))]


def test_a_row_of_text_alone_is_given_a_blank_frame_without_targets(make, tmp_path):
    write_shards(make.mixed(2, ("text",)), tmp_path / "text")
    batch, = chain.from_iterable(make.module(tmp_path, {"text": 1}).train_dataloader())
    group, = batch.frames
    assert (tuple(group.pixels.shape), batch.samples, len(batch.cu_seqlens)) == ((1, 3, 32, 32), 2, 4)
    assert (batch.targets[batch.cu_seqlens[-2]:] == IGNORE).all()


def test_a_rank_without_a_row_is_given_a_placeholder(make, shards, monkeypatch):
    on_rank(monkeypatch, 6, 7)
    batch = next(iter(chain.from_iterable(make.module(shards, {"mixed": 1}).train_dataloader())))
    assert batch.samples == 0 and (batch.targets == IGNORE).all() and len(batch.frames[0].pixels) == 1


def test_a_video_longer_than_a_row_is_read_with_fewer_frames(make, tmp_path):
    write_shards([make.sample(3, "video")], tmp_path / "one")
    module = make.module(tmp_path, {"one": 1}, fps=10.0, row_frames=3)
    batch, = chain.from_iterable(module.train_dataloader())
    assert [round(float(pixels.float().mean()) / make.STEP) for pixels in batch.frames[0].pixels] == [0, 3, 6]
    assert module.corpus.counts == (DatasetCounts(1, dropped=0, shrunk=1),)


def test_a_sample_longer_than_a_row_is_left_out_where_asked(make, tmp_path):
    write_shards([make.sample(3, "video"), make.sample(4, "text")], tmp_path / "two")
    module = make.module(tmp_path, {"two": 1}, fps=10.0, row_frames=3, too_long="drop")
    assert [batch.samples for batch in chain.from_iterable(module.train_dataloader())] == [1]
    assert module.corpus.counts == (DatasetCounts(2, dropped=1, shrunk=0),)


def test_a_mixture_of_which_nothing_fits_is_refused(make, shards):
    with pytest.raises(AuroraError, match="not one of the 40 samples fits a row of 30 tokens"):
        make.module(shards, {"mixed": 1}, row_tokens=30).setup()


def broken(make):
    """One sample of every way to be bad, by reason."""
    record = {"conversations": make.talk(7, "<video>\n"), "video": "mp4"}
    image = {"conversations": make.talk(7, "<image>\n"), "image": "jpg"}
    whole = make.video(6)
    return [ShardSample("cut", record, {"mp4": whole[:700]}), ShardSample("empty", record, {"mp4": b""}),
            ShardSample("sound", record, {"mp4": make.sound()}), ShardSample("words", record, {"mp4": b"words" * 99}),
            ShardSample("cutimage", image, {"jpg": make.picture()[:-200]}),
            ShardSample("noimage", image, {"jpg": b"x"})]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_bad_samples_are_counted_and_named_and_carry_no_loss(make, tmp_path, workers):
    write_shards([*make.mixed(6), *broken(make)], tmp_path / "bad")
    module = make.module(tmp_path, {"bad": 1}, max_bad_rate=0.6, workers=workers, quarantine=str(tmp_path / "q.jsonl"))
    batches = list(chain.from_iterable(module.train_dataloader()))
    assert sum(batch.samples for batch in batches) == 6
    learned = sum(int((batch.targets != IGNORE).sum()) for batch in batches)
    assert learned == 6 * len(" It is 0.\n\n")
    assert (module.bad.seen, module.bad.reasons) == (12, {"video": 4, "image": 2})
    named = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in named} == {sample.key for sample in broken(make)}
    assert {entry["dataset"] for entry in named} == {"bad"}


def test_a_run_stops_when_too_many_samples_are_bad(make, tmp_path):
    write_shards([*make.mixed(6), *broken(make)], tmp_path / "bad")
    module = make.module(tmp_path, {"bad": 1}, max_bad_rate=0.3, bad_rate_after=6)
    with pytest.raises(AuroraError, match=r"samples are bad .* more than max_bad_rate 0\.3; the last was bad/"):
        list(chain.from_iterable(module.train_dataloader()))


def test_a_damaged_record_or_header_spoils_only_its_sample(make, tmp_path):
    index = write_shards(make.mixed(6, ("text",)), tmp_path / "d")
    tar = shard_path(tmp_path / "d", 0)
    data = bytearray(tar.read_bytes())
    data[int(index.samples[1]["offset"])] = ord("?")
    data[int(index.samples[3]["offset"]) - 300] ^= 255
    module = make.module(tmp_path, {"d": 1}, max_bad_rate=1.0)
    module.prepare_data()
    tar.write_bytes(data)
    assert sum(batch.samples for batch in chain.from_iterable(module.train_dataloader())) == 4
    assert module.bad.reasons == {"json": 1, "shard": 1}


def test_a_missing_shard_stops_the_run_before_it_starts(make, tmp_path):
    write_shards(make.mixed(4), tmp_path / "d", samples_per_shard=2)
    shard_path(tmp_path / "d", 1).unlink()
    with pytest.raises(AuroraError, match=r"000001\.tar is missing"):
        make.module(tmp_path, {"d": 1}).prepare_data()


def test_text_is_counted_once_per_prompt_and_tokenizer(make, tmp_path):
    write_shards(make.mixed(4), tmp_path / "d")
    kept = []
    for prompt in ("sandwich", "sandwich", "generic"):
        make.module(tmp_path, {"d": 1}, prompt=prompt).prepare_data()
        kept.append(len(list((tmp_path / "d").glob("lengths-*.npy"))))
    assert kept == [1, 1, 2]


def test_the_position_is_saved_and_loaded(make, shards):
    loader = make.module(shards, {"mixed": 1}).train_dataloader()
    steps = [list(step) for step, _ in zip(loader, range(2), strict=False)]
    other = make.module(shards, {"mixed": 1}, workers=1).train_dataloader()
    other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert other.state_dict() == loader.state_dict()
    assert tuple(loader.state_dict()["position"]) == steps[-1][-1].position != (0, 0, 0)


def test_an_epoch_more_goes_on_where_the_last_one_ended(make, shards):
    both = make.module(shards, {"mixed": 1}, epochs=2).train_dataloader()
    once = make.module(shards, {"mixed": 1}).train_dataloader()
    twice = [make.answers(row) for _ in range(2) for row in chain.from_iterable(once)]
    assert twice == [make.answers(row) for row in chain.from_iterable(both)]


def test_what_is_held_out_is_planned_with_the_rest_and_lists_its_bad_samples_once(make, tmp_path):
    write_shards([*make.mixed(6), *broken(make)], tmp_path / "bad")
    write_shards(make.mixed(6), tmp_path / "good")
    held_out = make.module(tmp_path, {"bad": 1}, max_bad_rate=0.6, quarantine=str(tmp_path / "q.jsonl"))
    data = make.module(tmp_path, {"good": 1})
    data.held_out = {"bad": held_out}
    data.prepare_data()
    assert "corpus" in vars(held_out)
    loader, = data.val_dataloader()
    for _ in range(2):
        assert sum(row.samples for row in chain.from_iterable(loader)) == 6
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == held_out.counts()["bad_samples"] == 6


@pytest.mark.parametrize("change", [
    {"seed": 1}, {"row_tokens": 500}, {"global_batch": 5}, {"prompt": "generic"}, {"fps": 1.0}, {"mix_kinds": True},
])
def test_a_position_in_another_plan_is_refused(make, shards, change):
    saved = make.module(shards, {"mixed": 1}).train_dataloader().state_dict()
    with pytest.raises(AuroraError, match="another plan"):
        make.module(shards, {"mixed": 1}, **change).train_dataloader().load_state_dict(saved)


@pytest.mark.parametrize(("options", "message"), [
    ({"row_tokens": 0}, "row_tokens"), ({"workers": -1}, "workers"), ({"too_long": "x"}, "too_long"),
    ({"max_bad_rate": 2}, "max_bad_rate"), ({"frames": 3}, "exactly one"), ({"max_steps": 0}, "max_steps"),
])
def test_options_outside_their_range_are_refused(make, shards, options, message):
    with pytest.raises(AuroraError, match=message):
        make.module(shards, {"mixed": 1}, **options)


@pytest.mark.parametrize(("mixture", "message"), [
    ({}, "names no dataset"), ({"mixd": 1}, "no dataset folder mixd .*holds mixed, text"),
    ({"mixed": 0}, "repeats is 0; it must be a whole number ≥ 1"),
    ({"mixed": 1.5}, "mixed is 1.5; give how often"),
])
def test_a_mixture_that_cannot_be_read_is_refused(make, shards, mixture, message):
    with pytest.raises(AuroraError, match=message):
        make.module(shards, mixture).setup()


# ---- timestamps


def test_a_frame_with_a_timestamp_takes_as_many_more_positions_in_plan_and_row(make, shards):
    plain, stamped = (make.module(shards, {"mixed": 1}, timestamps=on, max_bad_rate=0.0) for on in (False, True))
    assert (stamped.corpus.tokens - plain.corpus.tokens).tolist() == (7 * plain.corpus.frames).tolist()
    rows = list(chain.from_iterable(stamped.train_dataloader()))  # a row that is not as long as planned is bad
    assert sum(row.samples for row in rows) == 40 and all(len(row.tokens) <= 400 for row in rows)
    assert sum(len(row.tokens) for row in rows) == stamped.corpus.tokens.sum()
    for row in rows:
        assert all(group.timestamp == 7 for group in row.frames)
        assert set(make.timestamps(row)) <= {"0:00:00"} and (row.targets[row.tokens == 0] == IGNORE).all()


@pytest.mark.parametrize(("record", "seconds"), [
    ({"video": "mp4"}, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28]),
    ({"video": "mp4", "range": [12.5, 17.0]}, [12, 14, 16]),
    ({"image": ["0.jpg", "1.png"]}, [0, 0]),
])
def test_a_timestamp_is_the_second_in_the_file_of_a_video_and_0_for_images(make, tmp_path, record, seconds):
    tags = "<video>" if "video" in record else "Is <image> or <image> larger?"
    media = {"mp4": make.video(30, rate=1), "0.jpg": make.picture(1), "1.png": make.picture(2, 30, 20, "PNG")}
    shown = {name: media[name] for name in ([record["video"]] if "video" in record else record["image"])}
    write_shards([ShardSample("one", {"conversations": make.talk(1, tags), **record}, shown)], tmp_path / "d")
    module = make.module(tmp_path, {"d": 1}, timestamps=True, fps=0.5, max_bad_rate=0.0)
    row, = chain.from_iterable(module.train_dataloader())
    assert make.timestamps(row) == [f"0:00:{second:02}" for second in seconds]


def test_timestamps_leave_what_was_counted_and_measured_without_them_as_it_is(make, shards):
    plain, stamped = (make.module(shards, {"mixed": 1}, timestamps=on) for on in (False, True))
    counted = [counter(module._prompt, make.Letters()) for module in (plain, stamped)]
    assert counted[0] == counted[1] and plain.corpus.identity != stamped.corpus.identity
    assert len(_layout_identity(make.layout())) == 2


def test_a_sample_without_its_frames_keeps_the_length_that_timestamps_give_it(make, shards):
    module = make.module(shards, {"mixed": 1}, timestamps=True, max_bad_rate=1.0)
    module._reader.read = lambda source, sampling: iter(())
    rows = list(chain.from_iterable(module.train_dataloader()))
    assert sum(row.samples for row in rows) == 30
    assert sum(len(row.tokens) for row in rows) == module.corpus.tokens.sum()
