"""Files are written as a whole or not at all."""

from pathlib import Path

import pytest

from aurora.files import replace_file


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="/a'"):
        replace_file(tmp_path / "a", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
