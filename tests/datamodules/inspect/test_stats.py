import json

import numpy as np
import pytest

from aurora.errors import AuroraError
from aurora.interfaces import Sampling
from aurora.registry import EXECUTOR, PROMPT
from datamodules.inspect.stats import DigestTask, describe, read_evaluation, shard_digests, turn_digest
from datamodules.shards.format import ShardSample
from tools.tiny_shards import write_shards


@pytest.fixture
def reported(make):
    def reported(*folders, evaluations=()):
        return describe(list(folders), tokenizer=make.Letters(), prompt=PROMPT.build({"name": "sandwich"}),
                        layouts={0.25: make.layout()}, sampling=Sampling(fps=4.0),
                        executor=EXECUTOR.build({"name": "serial"}), evaluations=evaluations)
    return reported


def image(make, key, number, answer="red"):
    talk = [{"from": "human", "value": "<image>\nWhich colour?"}, {"from": "gpt", "value": answer}]
    return ShardSample(key, {"conversations": talk, "image": "jpg"}, {"jpg": make.picture(number)})


def test_counts_and_lengths_are_those_of_the_samples(make, reported, tmp_path):
    write_shards(make.mixed(8), tmp_path / "set", samples_per_shard=3)
    row = reported(tmp_path / "set")["datasets"]["set"]
    assert (row["samples"], row["shards"], row["media"], row["turns"]) == (8, 3, 8, 8)
    assert row["kinds"] == {"text": 2, "image": 2, "images": 2, "video": 2}
    assert row["frames"]["total"] == 1 + 1 + 2 + 2 + 3 + 2  # clips of 7 and 4 frames at 10 per second, read at 4
    assert row["seconds"]["total"] == pytest.approx(0.7 + 0.4)
    assert row["tokens"]["0.25"]["total"] == row["text_tokens"]["total"] + 4 * row["frames"]["total"]
    assert row["short_side"]["quantiles"][-1] == 48


def test_what_stands_twice_is_counted_within_and_between_datasets(make, reported, tmp_path):
    write_shards([image(make, "a", 1), image(make, "b", 1), image(make, "c", 1, "blue"), image(make, "d", 2)],
                 tmp_path / "one", samples_per_shard=3)
    write_shards([image(make, "x", 1), image(make, "y", 3)], tmp_path / "two")
    found = reported(tmp_path / "one", tmp_path / "two")
    assert found["datasets"]["one"]["duplicates"] == {"samples": 1, "media": 2, "conversations": 2}
    assert found["datasets"]["two"]["duplicates"] == {"samples": 0, "media": 0, "conversations": 1}
    assert found["shared"] == [{"between": ["one", "two"], "samples": 1, "media": 1, "conversations": 1}]


def test_media_and_answers_of_an_evaluation_set_are_found(make, reported, tmp_path):
    write_shards([image(make, "a", 1), image(make, "b", 2, "blue")], tmp_path / "set")
    heldout = tmp_path / "heldout"
    heldout.mkdir()
    (heldout / "v.jpg").write_bytes(make.picture(2))
    rows = [{"id": "1", "video": "v.jpg", "question": " which COLOUR", "options": ["blue", "red"], "answer": 1},
            {"id": "2", "video": "v.jpg", "question": "Which colour?", "answer": "green"}]
    (heldout / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    row = reported(tmp_path / "set", evaluations=[read_evaluation(heldout)])["datasets"]["set"]
    assert row["in_evaluation"] == {"heldout": {"media": 1, "turns": 1}}


def test_digests_are_kept_and_counted_again_when_the_shard_is_another(make, tmp_path):
    write_shards(make.mixed(4), tmp_path / "set")
    first = shard_digests(DigestTask(tmp_path / "set", 0))
    kept = tmp_path / "set" / "000000.digests.npz"
    before = kept.read_bytes()
    again = shard_digests(DigestTask(tmp_path / "set", 0))
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    write_shards(make.mixed(4, start=50), tmp_path / "set")
    assert not np.array_equal(shard_digests(DigestTask(tmp_path / "set", 0)).text, first.text)
    assert kept.read_bytes() != before


def test_a_sample_that_cannot_be_read_is_no_duplicate_of_another(make, reported, tmp_path):
    samples = [ShardSample(f"k{number}", {"conversations": make.talk(number)}) for number in range(3)]
    write_shards(samples, tmp_path / "set")
    tar = tmp_path / "set" / "000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'{"conversations"', b'{"conversationz"'))
    row = reported(tmp_path / "set")["datasets"]["set"]
    assert (row["unreadable"], row["duplicates"]["samples"]) == (3, 0)


def test_case_spaces_and_punctuation_make_no_other_turn():
    assert turn_digest("<image>\nWhat  is it?", "A cat.") == turn_digest("what is it", "a CAT")
    assert turn_digest("What is it?", "A cat.") != turn_digest("What is it?", "A dog.")


def test_two_folders_of_one_name_and_a_broken_question_are_refused(make, reported, tmp_path):
    for place in ("a", "b"):
        write_shards(make.mixed(1), tmp_path / place / "set")
    with pytest.raises(AuroraError, match="same name"):
        reported(tmp_path / "a" / "set", tmp_path / "b" / "set")
    (tmp_path / "questions.jsonl").write_text('{"id": "1", "video": "none.mp4", "question": "?", "answer": "x"}\n')
    with pytest.raises(AuroraError, match=r"question '1': .*none\.mp4"):
        read_evaluation(tmp_path)
