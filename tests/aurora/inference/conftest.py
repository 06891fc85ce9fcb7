import pytest

from aurora.inference import reading


@pytest.fixture(autouse=True)
def chunks_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small pictures of ten frames here would otherwise never fill a chunk."""
    monkeypatch.setattr(reading, "CHUNK_FRAMES", (8, 8))
