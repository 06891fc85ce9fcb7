"""Kinds of options: the registry checks every option by its annotation before a part is built."""

from typing import Annotated

from annotated_types import Ge

Size = Annotated[int, Ge(1)]
Seed = Annotated[int, Ge(0)]
