"""A model that is ready to watch: `aurora.load()` gives one, `watch` makes a film of what it sees."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from aurora.config import ModelConfig, named_part, parse_override
from aurora.errors import AuroraError
from aurora.inference.film import Answer, Film, generation
from aurora.inference.film_file import FilmMismatch, Saved, differences, read_film
from aurora.inference.generation import Generation, complete
from aurora.inference.models import SHIPPED, saved_model
from aurora.inference.reading import Memory, blank, join, read_texts, read_tokens
from aurora.inference.snapshot import Snapshot
from aurora.inference.visuals import Report, Source
from aurora.interfaces import FrameSkip, Sampling, Tokenizer, VideoReader, VisualLayout
from aurora.model import AuroraModel
from aurora.registry import MERGE, PROMPT, READER, SKIP, SORT, Slot
from aurora.types import State, map_state
from aurora.version import VERSION
from aurora.weights.adapters import adapter_hash
from aurora.weights.export import export
from aurora.weights.model_folder import save_model, state_hash

SHAREABLE = "generic"
"""The prompt of films of a model whose own prompt begins with the question."""
WATCHED_WITH = ("merge", "sort", "prompt", "skip", "keep_ratio")
"""What may be chosen when a film is watched."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAMPLE = "The quick brown fox, 0123456789: naïve Ünïcödé, 北京, \n\n<image>"
_SAMPLED_IDS = 4096
_PARTS: dict[str, Slot[Any]] = {"merge": MERGE, "sort": SORT, "prompt": PROMPT, "skip": SKIP}


class VideoModel:
    """An AuroraModel with what watching needs: its reader, sampling and keep ratio, and what identifies it.

    `chosen` names what the user has asked for other than the model's config says; a film that was watched otherwise is
    refused.
    """

    def __init__(self, model: AuroraModel, config: ModelConfig, *, adapter: str | None = None,
                 chosen: Sequence[str] = ()) -> None:
        self.model, self.config, self.adapter = model, config, adapter
        self.chosen = frozenset(chosen)
        self.runner = model.backbone.runner()
        self.reader: VideoReader = READER.build(config.reader)
        self.prefill: Callable[[Memory, Tensor], Memory] = lambda memory, x: read_tokens(self.runner, memory, x)
        """Reads tokens [T, D] of a film behind its memory [1]; a service puts its own in place of it."""

    @property
    def layout(self) -> VisualLayout:
        """How many tokens a frame takes."""
        return self.model.visual_layout(self.config.keep_ratio)

    @cached_property
    def skip(self) -> FrameSkip:
        """Which frames are not read."""
        return SKIP.build(self.config.skip)

    @property
    def reusable(self) -> bool:
        """Whether one reading of a video serves every question."""
        return self.model.prompt.reusable

    @property
    def settings(self) -> dict[str, Any]:
        """How films are watched, as far as their state depends on it."""
        return {key: dict(value) if isinstance(value := getattr(self.config, key), Mapping) else value
                for key in WATCHED_WITH}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a state depends on besides: it is of no use to another model. Reads all weights, once."""
        tree, model = self.config.tree, self.model
        parts = {slot: {key: value for key, value in tree[slot].items() if key != "path"}
                 for slot in ("vision", "connector", "backbone")}
        return {"weights": state_hash(model.state_dict()), **parts, "tokenizer": tokenizer_hash(model.tokenizer),
                "dtype": tree["dtype"], "quantize": tree["quantize"], "adapter": self.adapter, "version": VERSION}

    def sampling(self, *, fps: float | None = None, frames: int | None = None, max_frames: int | None = None,
                 start: float = 0.0, stop: float | None = None) -> Sampling:
        """Which frames are watched: the model's own choice, but for what is given."""
        own = self.config.sampling
        if fps is None and frames is None:
            fps, frames = own.fps, own.frames
            max_frames = own.max_frames if max_frames is None else max_frames
        return Sampling(fps=fps, frames=frames, max_frames=max_frames, start=start, stop=stop)

    def using(self, **changes: Any) -> "VideoModel":
        """The same weights with another merge, sort, prompt or skip (a name, or a mapping with options) or keep ratio.

        AuroraError for another key, part or value.
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        for key in changes:
            if key not in WATCHED_WITH:
                raise AuroraError(f"{key!r} cannot be changed for one film; these can: {', '.join(WATCHED_WITH)}")
        if not changes:
            return self
        made = copy(self)
        made.__dict__.pop("skip", None)
        named = {key: named_part(key, value) if key in _PARTS and isinstance(value, str) else value
                 for key, value in changes.items()}
        made.config = ModelConfig.parse(self.config.tree | named)
        made.model = copy(self.model)
        for key in named.keys() & {"merge", "sort", "prompt"}:
            setattr(made.model, key, _PARTS[key].build(made.config.part(key)))
        made.chosen = self.chosen | changes.keys()
        return made

    def blank(self, **using: Any) -> Film:
        """A film that has seen nothing yet, to be extended; `using` as in `watch`."""
        return Film(self._shareable(using), Snapshot(blank(self.runner, 1)))

    def watch(self, *sources: Source, fps: float | None = None, frames: int | None = None,
              max_frames: int | None = None, checkpoint_seconds: float | None = None,
              on_progress: Report | None = None, start: float = 0.0, stop: float | None = None, **using: Any) -> Film:
        """The film of videos, images or frames, one after the other. `checkpoint_seconds` keeps a state every so many
        seconds for questions about a moment; `using` are changes as `using` takes them.

        A model whose own prompt begins with the question watches with the prompt `generic`, unless it is told to.
        UnreadableVisual for what cannot be read.
        """
        film = self._begin(checkpoint_seconds, on_progress, using)
        return film.extend(*sources, fps=fps, frames=frames, max_frames=max_frames, start=start, stop=stop)

    def watching(self, *sources: Source, moments: Sequence[float] | None = None,
                 checkpoint_seconds: float | None = None, on_progress: Report | None = None, fps: float | None = None,
                 frames: int | None = None, max_frames: int | None = None, start: float = 0.0,
                 stop: float | None = None, **using: Any) -> Iterator[Film]:
        """The same, as a film that grows: given after every chunk of frames, or once for each of `moments`."""
        film = self._begin(checkpoint_seconds, on_progress, using)
        yield from film.extending(*sources, moments=moments, fps=fps, frames=frames, max_frames=max_frames, start=start,
                                  stop=stop)

    def _begin(self, checkpoint_seconds: float | None, on_progress: Report | None, using: Mapping[str, Any]) -> Film:
        if checkpoint_seconds is not None and not checkpoint_seconds > 0:
            raise AuroraError(f"checkpoint_seconds {checkpoint_seconds} must be above 0")
        film = self.blank(**using)
        film.checkpoint_seconds, film.on_progress = checkpoint_seconds, on_progress
        return film

    def _shareable(self, using: Mapping[str, Any]) -> "VideoModel":
        """With what is asked for, and a prompt that lets one reading serve every question unless one is asked for."""
        made = self.using(**using)
        if made.reusable or "prompt" in made.chosen:
            return made
        chosen, made = made.chosen, made.using(prompt=SHAREABLE)
        made.chosen = chosen  # not the user's choice
        return made

    def open(self, path: str | Path, *, any_version: bool = False, **expected: Any) -> Film:
        """A saved film. FilmMismatch when it is of another model or software version, or was watched in another way
        than the model would or `expected` says; AuroraError when the file is damaged."""
        saved = read_film(path)
        film = self._adopt(saved, path, any_version, expected).blank()
        wanted = film.now.memory.state
        if _shapes(saved.now.memory.state, self) != _shapes(wanted, self):
            raise FilmMismatch(f"{path} is a film of another model: its state has other names or shapes")
        film.now, film.history = self._placed(saved.now), tuple(map(self._placed, saved.history))
        film.media, film.turns, film.thumbnails = saved.media, saved.turns, saved.thumbnails
        film.checkpoint_seconds = saved.facts["checkpoint_seconds"]
        return film

    def _adopt(self, saved: Saved, path: str | Path, any_version: bool, expected: Mapping[str, Any]) -> "VideoModel":
        """The model with the settings of a film, checked."""
        facts, own = saved.facts, self._shareable(expected)
        keys = [key for key in self.identity if not (any_version and key == "version")]
        wrong = differences(facts["identity"], self.identity, keys)
        fixed = [key for key in WATCHED_WITH if key not in facts["chosen"] or key in own.chosen]
        wrong += differences(facts["settings"], own.settings, fixed)
        if wrong:
            raise FilmMismatch(f"{path} is not a film of this model as it is used here; what differs: "
                               f"{', '.join(wrong)}")
        chosen, adopted = own.chosen | set(facts["chosen"]), own.using(**facts["settings"])
        adopted.chosen = chosen
        return adopted

    def _placed(self, seen: Snapshot) -> Snapshot:
        """On the device of the backbone."""
        device = next(self.model.backbone.parameters()).device
        hidden = None if seen.memory.hidden is None else seen.memory.hidden.to(device)
        memory = Memory(hidden, map_state(lambda tensor: tensor.to(device), seen.memory.state))
        return replace(seen, memory=memory)

    def answer_all(self, asked: Sequence[tuple[Film, str]], options: Generation | None = None) -> list[Answer]:
        """The answers to questions about several films, generated side by side in shared forward passes."""
        if not asked:
            return []
        memory = join([film.memory() for film, _ in asked])
        ids = [film.question_ids([*film.turns, film.turn(question)]) for film, question in asked]
        texts = complete(self.model, self.runner, read_texts(self.runner, memory, ids), generation(options))
        return [Answer.of(text, film.now) for (film, _), text in zip(asked, texts, strict=True)]

    @classmethod
    def from_pretrained(cls, source: str | Path, *, overrides: Sequence[str] = (), device: str = "cpu",
                        threads: int | None = None, adapter: str | None = None, any_base: bool = False) -> "VideoModel":
        """The model of a folder, or of a repository on the Hugging Face hub; nothing of it is executed."""
        hosted = isinstance(source, str) and _HUB_ID.fullmatch(source) and not Path(source).exists()
        folder = from_hub(str(source)) if hosted else Path(source)
        model, config = saved_model(folder, overrides, device=device, threads=threads, adapter=adapter,
                                    any_base=any_base)
        keys = {parse_override(override).key_or_group.partition(".")[0] for override in overrides}
        return cls(model, config, chosen=sorted(keys & set(WATCHED_WITH)),
                   adapter=None if adapter is None else adapter_hash(adapter))

    def save_pretrained(self, folder: str | Path, *, name: str | None = None, licence: str | None = None) -> None:
        """Writes a folder that `from_pretrained` reads: weights, config, tokenizer, prompt and a model card."""
        with TemporaryDirectory() as place:
            save_model(self.model, self.config, Path(place) / "model")
            export(Path(place) / "model", Path(folder), name=name, licence=licence, force=True)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **card: Any) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub; gives the address of the commit."""
        from huggingface_hub import HfApi

        with TemporaryDirectory() as place:
            self.save_pretrained(Path(place) / "model", name=repo_id.rpartition("/")[2], **card)
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=Path(place) / "model").commit_url)


def load(source: str | Path | None = None, *overrides: str, device: str = "cpu", threads: int | None = None,
         adapter: str | None = None) -> VideoModel:
    """A model that is ready to watch: of a folder or of the hub; without one the tiny model that comes with Aurora,
    which knows only Blocks world. Overrides are Hydra's, such as "keep_ratio=0.5" or "merge=pool"."""
    return VideoModel.from_pretrained(SHIPPED if source is None else source, overrides=overrides, device=device,
                                      threads=threads, adapter=adapter)


def from_hub(repo_id: str) -> Path:
    """The folder of a model on the Hugging Face hub, downloaded where that was not done before; no code of it is taken
    along. AuroraError where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.safetensors", "*.json", "*.yaml", "*.txt", "*.md",
                                                               "tokenizer/*"], ignore_patterns=["*.py", "*.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AuroraError(f"{repo_id!r} is neither a folder here nor a model on the Hugging Face hub that can be "
                          f"reached: {str(error).splitlines()[0]}") from error


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of what a tokenizer makes of a text and of ids spread over its vocabulary."""
    every = max(1, tokenizer.vocab_size // _SAMPLED_IDS)
    decoded = [tokenizer.decode([number]) for number in range(0, tokenizer.vocab_size, every)]
    facts = (tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.encode(_SAMPLE), decoded)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _shapes(state: State, model: VideoModel) -> dict[str, tuple[int, ...]]:
    """The shapes that any state of the model has; memory that grows does so in its third dimension."""
    grows = not model.model.backbone.constant_state
    return {name: (*t.shape[:2], *t.shape[3:]) if grows else tuple(t.shape) for name, t in state.items()}
