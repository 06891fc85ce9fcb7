"""What every part of a slot must do, as tests that any package can run on its own parts."""

import pytest

pytest.register_assert_rewrite("aurora.testing.backbone")
