"""Slots: from a name in a config to a class, importing only the file that was asked for."""

import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

import aurora.interfaces as interfaces
from aurora.errors import AuroraError, suggest
from aurora.options import check_kind, kinds_of

T = TypeVar("T")
WeightedSlot = Literal["vision", "connector", "backbone"]
_FRAME = Path(__file__).parent
# In the wheel the parts lie inside aurora/, in a clone next to it.
_ROOT, _PREFIX = (_FRAME, "aurora.") if (_FRAME / "components").is_dir() else (_FRAME.parent, "")


class Slot(Generic[T]):
    """A named place that takes one part: lists its parts without importing them, and builds them from options."""

    def __init__(self, name: str, contract: type[T], package: str) -> None:
        self.name = name
        self.contract = contract
        self.package = _PREFIX + package
        self.folder = _ROOT.joinpath(*package.split("."))
        self._classes: dict[str, type[T]] = {}

    def register(self, part: type[T]) -> type[T]:
        """Class decorator: the part is named after its file."""
        return self.add(part.__module__.rpartition(".")[2], part)

    def add(self, name: str, part: type[T]) -> type[T]:
        """Registers a class under a name. AuroraError when the name is taken or the contract is not met."""
        taken: object = self._classes.get(name)
        if taken is None and name in self._files() and part.__module__ != f"{self.package}.{name}":
            taken = f"{self.folder / name}.py"
        if taken is not None:
            raise AuroraError(f"{self.name} {name!r} is taken by {taken}; {part} needs another name")
        self._check(name, part)
        self._classes[name] = part
        return part

    def known(self) -> list[str]:
        """The names that `get` takes, sorted."""
        return sorted({*self._files(), *self._entry_points(), *self._classes})

    def require(self, name: str) -> None:
        """AuroraError that lists the known names when this is not one of them."""
        if name not in self._classes and name not in self.known():  # which looks through all installed packages
            raise AuroraError(f"no {self.name} named {name!r}.{suggest(name, self.known())}")

    def get(self, name: str) -> type[T]:
        """The class of a name. AuroraError that lists the known names when there is none."""
        if name not in self._classes:
            self.require(name)
            outside = self._entry_points().get(name)
            if outside is None:
                self._import(name)
            elif name in self._files():
                raise AuroraError(f"{self.name} {name!r} is taken by {self.package}.{name}; the entry point "
                                  f"{outside.value} needs another name")
            else:
                self._load_entry_point(outside)
        return self._classes[name]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The constructor's parameters: what a config may say, and what other parts inject."""
        return dict(inspect.signature(self.get(name)).parameters)

    def build(self, config: Mapping[str, Any], **injected: Any) -> T:
        """The part that `{name: ..., **options}` describes.

        `injected` are facts that other parts know (widths); those that the constructor does not ask for are left out.
        """
        part = self.check(config, *injected)
        parameters = inspect.signature(part).parameters
        options = {key: value for key, value in config.items() if key != "name"}
        return part(**options, **{key: value for key, value in injected.items() if key in parameters})

    def check(self, config: Mapping[str, Any], *injected: str) -> type[T]:
        """The class that `{name: ..., **options}` asks for. AuroraError when it does not take the options."""
        options = dict(config)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise AuroraError(f"{self.name}: the config {dict(config)} has no 'name'. Known: {', '.join(self.known())}")
        configurable = {key: option for key, option in self.options(name).items() if key not in injected}
        for key in options:
            if key not in configurable:
                raise AuroraError(f"{self.name} {name!r} has no option {key!r}.{suggest(key, configurable)}")
        missing = [key for key, option in configurable.items()
                   if option.default is inspect.Parameter.empty and key not in options]
        if missing:
            raise AuroraError(f"{self.name} {name!r} needs the option(s) {', '.join(missing)}")
        kinds = kinds_of(self.get(name))
        for key, value in options.items():
            check_kind(f"{self.name} {name!r}: {key}", value, kinds.get(key, Any))
        return self.get(name)

    def _files(self) -> list[str]:
        return [path.stem for path in self.folder.glob("*.py") if not path.stem.startswith("_")]

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=f"aurora.{self.name}")}

    def _import(self, name: str) -> None:
        module = f"{self.package}.{name}"
        try:
            imported = importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise AuroraError(f"{self.name} {name!r} needs the package {error.name!r}, which is not installed; "
                              f"try: pip install {error.name}") from error
        if Path(imported.__file__ or "").parent != self.folder:
            raise AuroraError(f"{imported.__file__} shadows {self.folder / name}.py; "
                              "run from a folder that has no components/ of its own")
        if name not in self._classes:
            raise AuroraError(f"{imported.__file__} registers no {self.name} named {name!r}; "
                              f"decorate its class with @{self.name.upper()}.register")

    def _load_entry_point(self, entry: EntryPoint) -> None:
        try:
            part = entry.load()
        except (ImportError, AttributeError) as error:
            raise AuroraError(f"{self.name} {entry.name!r}: the entry point {entry.value} cannot be imported: {error}"
                              ) from error
        # The module may have called `add` itself while it was imported.
        if self._classes.get(entry.name) is not part:
            self.add(entry.name, part)

    def _check(self, name: str, part: type[T]) -> None:
        if not (inspect.isclass(part) and issubclass(part, self.contract)):
            raise AuroraError(f"{self.name} {name!r}: {part} is not a {self.contract.__name__}")
        if inspect.isabstract(part):
            missing = ", ".join(sorted(getattr(part, "__abstractmethods__", ())))
            raise AuroraError(f"{self.name} {name!r}: {part.__name__} lacks {missing} of {self.contract.__name__}")
        for parameter in inspect.signature(part).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                raise AuroraError(f"{self.name} {name!r}: the constructor's {str(parameter)!r} must be keyword-only; "
                                  "a catch-all would let misspelt options through")

VISION = Slot("vision", interfaces.VisionEncoder, "components.vision")
MERGE = Slot("merge", interfaces.MergeStrategy, "components.merge")
SORT = Slot("sort", interfaces.Sorter, "components.sort")
CONNECTOR = Slot("connector", interfaces.Connector, "components.connector")
BACKBONE = Slot("backbone", interfaces.Backbone, "components.backbone")
TOKENIZER = Slot("tokenizer", interfaces.Tokenizer, "components.tokenizer")
PROMPT = Slot("prompt", interfaces.Prompt, "components.prompt")
SKIP = Slot("skip", interfaces.FrameSkip, "components.skip")
READER = Slot("reader", interfaces.VideoReader, "datamodules.reader")
DATA = Slot("data", interfaces.DataModule, "datamodules")
SOURCE = Slot("source", interfaces.Source, "datamodules.source")
EXECUTOR = Slot("executor", interfaces.Executor, "datamodules.executor")
BENCHMARK = Slot("benchmark", interfaces.Benchmark, "components.benchmark")

SLOTS: dict[str, Slot[Any]] = {
    slot.name: slot for slot in (VISION, MERGE, SORT, CONNECTOR, BACKBONE, TOKENIZER, PROMPT, SKIP, READER, DATA,
                                SOURCE, EXECUTOR, BENCHMARK)
}

MODEL_SLOTS = ("vision", "merge", "sort", "connector", "backbone", "tokenizer", "prompt")
WEIGHTED_SLOTS: tuple[WeightedSlot, ...] = get_args(WeightedSlot)
INJECTED = {
    "connector": ("in_width", "out_width"),
    "backbone": ("vocab_size",),
    "data": ("layout", "tokenizer", "prompt", "reader", "mixture", "epochs", "max_steps", "global_batch", "seed",
             "quarantine"),
    "source": ("folder",),
}
"""Constructor arguments that other parts know, so that no config says them."""
