"""Shards from a real web server that fails, cuts, stalls and lies."""

import hashlib
import multiprocessing
import os
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain

import pytest

from aurora.errors import AuroraError
from aurora.steps import START
from datamodules.shards import remote
from datamodules.shards.index import is_remote, load_index
from datamodules.shards.remote import fetch_shard, mirror, open_shard
from datamodules.shards.writing import shard_path
from tools.tiny_shards import write_shards


class Server(ThreadingHTTPServer):
    """Serves a folder. `faults` lists by file what befalls its first requests: fail, cut, stall, lie."""

    daemon_threads = True

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(root)))
        self.faults, self.asked, self.stalled = {}, Counter(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.asked[name] += 1
        faults = self.server.faults.get(name, [])
        fault = faults.pop(0) if faults else None
        if fault in ("fail", "deny"):
            self.send_error(503 if fault == "fail" else 403)
            return
        if fault is None:
            super().do_GET()
            return
        with open(self.translate_path(self.path), "rb") as file:
            data = bytearray(file.read())
        if fault == "lie":
            data[len(data) // 2] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if fault == "lie" else data[:len(data) // 2])
        if fault == "stall":
            self.wfile.flush()
            self.server.stalled.wait(20)
        self.close_connection = True


@pytest.fixture
def server(shards):
    server = Server(shards)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.stalled.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.5)


@pytest.fixture
def mirrored(server, tmp_path):
    """The index of a mirror of the dataset `mixed`."""
    def mirrored(cache_bytes=None):
        return load_index(mirror(server.url, ["mixed"], tmp_path / "cache", cache_bytes) / "mixed")

    return mirrored


def rows(make, root, **options):
    return list(chain.from_iterable(make.module(root, {"mixed": 1, "text": 1}, **options).train_dataloader()))


@pytest.mark.slow
def test_rows_from_a_server_are_those_of_the_folder(make, shards, server, tmp_path):
    wanted = rows(make, shards)
    found = rows(make, server.url, cache=str(tmp_path / "cache"))
    assert [row.tokens.tolist() for row in found] == [row.tokens.tolist() for row in wanted]
    assert [row.position for row in found] == [row.position for row in wanted]
    before = server.asked["000000.tar"]
    rows(make, server.url, cache=str(tmp_path / "cache"), workers=2)
    assert server.asked["000000.tar"] == before  # of both datasets


@pytest.mark.parametrize("fault", ["fail", "cut", "stall", "lie"])
def test_a_download_that_goes_wrong_is_made_again(server, shards, mirrored, fault):
    index = mirrored()
    server.faults["000001.tar"] = [fault] * (1 if fault == "lie" else 3)
    os.close(open_shard(index.folder, index.shards[1]))
    assert index.folder.joinpath("000001.tar").read_bytes() == shard_path(shards / "mixed", 1).read_bytes()
    assert server.asked["000001.tar"] == (2 if fault == "lie" else 4)


@pytest.mark.parametrize("fault", ["fail", "cut", "stall"])
def test_a_server_that_goes_on_failing_is_told_of(server, mirrored, fault):
    index = mirrored()
    server.faults["000001.tar"] = [fault] * 9
    with pytest.raises(AuroraError, match=r"000001\.tar could not be read in 5 tries, the last time because of \w+"):
        open_shard(index.folder, index.shards[1])
    assert not list(index.folder.glob("*.t[am][rp]"))


def test_a_server_that_refuses_is_not_asked_again(server, mirrored):
    index = mirrored()
    server.faults["000001.tar"] = ["deny"] * 9
    with pytest.raises(AuroraError, match=r"000001\.tar was refused: .*403"):
        open_shard(index.folder, index.shards[1])
    assert server.asked["000001.tar"] == 1


def test_a_server_that_fails_half_way_stops_the_run(make, server, tmp_path):
    module = make.module(server.url, {"mixed": 1}, cache=str(tmp_path / "cache"))
    module.setup()
    for tar in tmp_path.glob("cache/*/mixed/000001.tar"):
        tar.unlink()
    server.faults["000001.tar"] = ["fail"] * 99
    module._remote = False  # nothing is fetched ahead
    with pytest.raises(AuroraError, match=r"000001\.tar could not be read in 5 tries"):
        list(chain.from_iterable(module.train_dataloader()))


def test_a_shard_that_comes_twice_with_other_bytes_is_bad_and_not_asked_for_again(make, server, tmp_path):
    module = make.module(server.url, {"mixed": 1}, cache=str(tmp_path / "cache"), max_bad_rate=1.0)
    module.setup()
    for tar in tmp_path.glob("cache/*/mixed/000001.tar"):
        tar.unlink()
    server.faults["000001.tar"] = ["lie"] * 99
    before = server.asked["000001.tar"]
    module._remote = False  # nothing is fetched ahead
    assert sum(row.samples for row in chain.from_iterable(module.train_dataloader())) == 25
    assert module.bad.reasons == {"shard": 15} and server.asked["000001.tar"] == before + 2


def test_a_shard_that_is_not_there_is_told_of_at_once(server, mirrored):
    index = mirrored()
    with pytest.raises(AuroraError, match=r"other\.tar, which the index names, is not there"):
        open_shard(index.folder, {**index.shards[0], "name": "other.tar"})
    assert server.asked["other.tar"] == 1


def test_the_shard_used_least_recently_makes_room_unless_it_is_read(mirrored, shards):
    sizes = [shard_path(shards / "mixed", number).stat().st_size for number in range(3)]
    index = mirrored(cache_bytes=sizes[0] + sizes[1] + 1)

    def there():
        return sorted(path.name for path in index.folder.glob("*.tar"))

    held = open_shard(index.folder, index.shards[0])
    os.close(open_shard(index.folder, index.shards[1]))
    os.close(open_shard(index.folder, index.shards[2]))
    assert there() == ["000000.tar", "000002.tar"]
    os.close(held)
    os.utime(index.folder / "000002.tar", (1, 1))
    os.close(open_shard(index.folder, index.shards[1]))
    assert there() == ["000000.tar", "000001.tar"]


def test_a_cache_of_which_everything_is_read_grows_and_says_so(mirrored, caplog):
    index = mirrored(cache_bytes=1)
    held = [open_shard(index.folder, row) for row in index.shards]
    assert len(list(index.folder.glob("*.tar"))) == 3 and "more than cache_bytes" in caplog.text
    for descriptor in held:
        os.close(descriptor)


def fetch(folder, row):
    os.close(open_shard(folder, row))


def test_processes_that_ask_at_once_fetch_a_shard_once(server, mirrored):
    index = mirrored()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fetch, args=(index.folder, index.shards[0])) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert server.asked["000000.tar"] == 1


def test_a_dataset_that_was_written_anew_is_fetched_anew(make, tmp_path):
    write_shards(make.mixed(4), tmp_path / "root" / "mixed")
    server = Server(tmp_path / "root")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    for number in (0, 50):
        write_shards(make.mixed(4, start=number), tmp_path / "root" / "mixed")
        folder = mirror(server.url, ["mixed"], tmp_path / "cache", None) / "mixed"
        index = load_index(folder)
        fetch_shard(folder, index.shards[0])
        assert hashlib.sha256(folder.joinpath("000000.tar").read_bytes()).hexdigest() == index.shards[0]["sha256"]
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_windows_to_come_are_fetched_ahead(make, server, tmp_path):
    from datamodules.loading.prefetch import Prefetch, window_shards

    module = make.module(server.url, {"mixed": 1, "text": 1}, cache=str(tmp_path / "cache"))
    found = window_shards(module.corpus, module.plan, 0, 0)
    assert sorted((index.folder.name, shard) for index, shard in found) == [
        ("mixed", 0), ("mixed", 1), ("mixed", 2), ("text", 0)]
    tars = list(tmp_path.glob("cache/*/*/*.tar"))
    for tar in tars:
        tar.unlink()
    ahead = Prefetch(module.task(START, steps=module.total_steps(), rank=0, world=1))
    deadline = threading.Event()
    while not all(tar.exists() for tar in tars) and not deadline.wait(0.1):
        assert ahead._process.is_alive()
    ahead.stop()


def test_what_is_fetched_ahead_ends_with_the_steps(make, shards):
    from datamodules.loading.prefetch import windows

    plan = make.module(shards, {"mixed": 1, "text": 1}).plan
    each = plan.steps_before(1, 0)
    assert list(windows(plan, START, each)) == [(0, 0)] and list(windows(plan, START, each + 1)) == [(0, 0), (1, 0)]
    last = int(plan.window(0, 0).steps[-2])
    assert list(windows(plan, (0, 0, last), 1)) == [(0, 0)] and list(windows(plan, (0, 0, last), 2)) == [(0, 0), (1, 0)]


@pytest.mark.parametrize("root", ["pipe:cat x", "ftp://host/x", "file:///x", "http://example.org/x", "s3:x",
                                  "simplecache::https://x/y"])
def test_other_schemes_are_refused(root):
    with pytest.raises(AuroraError, match="shards are read from a local folder, or from one of s3://, gs://, https://"):
        is_remote(root)


def test_remote_and_local_roots_are_told_apart(tmp_path):
    assert all(map(is_remote, ["s3://b/x", "gs://b/x", "https://h/x", "http://127.0.0.1:1/x"]))
    assert not any(map(is_remote, [str(tmp_path), "data/shards", "c:"]))


def test_a_store_whose_package_is_missing_names_it(monkeypatch):
    def missing(url, **options):
        raise ImportError

    monkeypatch.setattr(remote.fsspec.core, "url_to_fs", missing)
    with pytest.raises(AuroraError, match=r"pip install 'auroralong\[s3\]'"):
        remote.fetch_bytes("s3://bucket/x")
