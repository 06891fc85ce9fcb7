"""Shards from an S3 store that is really asked, on this machine."""

import threading
from itertools import chain

import pytest

from aurora.errors import AuroraError
from datamodules.shards import remote
from datamodules.shards.index import load_index
from datamodules.shards.remote import mirror, open_shard

pytest.importorskip("s3fs", reason="pip install 'auroralong[s3]'")
pytest.importorskip("moto", reason="pip install 'moto[s3]' flask flask-cors")

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


class Store:
    """An S3 store. `faults` lists by file what befalls its first downloads: deny, cut, lie."""

    def __init__(self):
        self._app, self.faults = DomainDispatcherApplication(create_backend_app), {}

    def __call__(self, environ, start):
        faults = self.faults.get(environ["PATH_INFO"].rpartition("/")[2])
        fault = faults.pop(0) if faults and environ["REQUEST_METHOD"] == "GET" else None
        if fault == "deny":
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>"]
        data = b"".join(self._app(environ, start))
        if fault == "cut":
            return [data[:len(data) // 2]]
        return [data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]] if fault == "lie" else [data]


@pytest.fixture(scope="module")
def store(shards):
    """A store whose bucket `shards` holds what the folder does."""
    store = Store()
    server = make_server("127.0.0.1", 0, store, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setattr(remote, "BACKOFF_SECONDS", 0.01)
        client = boto3.client("s3")
        client.create_bucket(Bucket="shards")
        for path in shards.glob("*/*.*"):
            client.upload_file(str(path), "shards", path.relative_to(shards).as_posix())
        client.close()
        yield store
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mirrored(store, tmp_path):
    """The index of a mirror of the dataset `mixed`."""
    return load_index(mirror("s3://shards", ["mixed"], tmp_path / "cache", None) / "mixed")


@pytest.mark.slow
def test_rows_from_a_bucket_are_those_of_the_folder(make, shards, store, tmp_path):
    def rows(root, **options):
        return list(chain.from_iterable(make.module(root, {"mixed": 1, "text": 1}, **options).train_dataloader()))

    wanted, found = rows(shards), rows("s3://shards", cache=str(tmp_path / "cache"))
    assert [row.tokens.tolist() for row in found] == [row.tokens.tolist() for row in wanted]


@pytest.mark.parametrize("fault", ["cut", "lie"])
def test_a_download_that_goes_wrong_is_made_again(shards, store, mirrored, fault):
    store.faults["000001.tar"] = [fault]
    with open(open_shard(mirrored.folder, mirrored.shards[1]), "rb") as file:
        assert file.read() == (shards / "mixed" / "000001.tar").read_bytes()
    assert store.faults["000001.tar"] == []


def test_a_store_that_refuses_ends_the_run_with_its_reason(store, mirrored):
    store.faults["000000.tar"] = ["deny"]
    with pytest.raises(AuroraError, match=r"s3://shards/mixed/000000\.tar was refused.*not yours"):
        open_shard(mirrored.folder, mirrored.shards[0])


def test_a_bucket_that_is_not_there_holds_no_dataset(make, store, tmp_path):
    with pytest.raises(AuroraError, match="no dataset folder"):
        make.module("s3://nowhere", {"mixed": 1}, cache=str(tmp_path / "cache")).total_steps()
