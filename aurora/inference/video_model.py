"""A model that is ready to watch: `aurora.load()` gives one, `watch` makes a film of what it sees."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typing_extensions import Self

from aurora.config import named_part, parse_override
from aurora.errors import AuroraError
from aurora.inference.base_video_model import WATCHED_WITH, BaseVideoModel
from aurora.inference.film import Answer, Film, generation
from aurora.inference.film_file import FilmMismatch, Saved, differences, read_film
from aurora.inference.generation import Generation, complete
from aurora.inference.models import SHIPPED, saved_model
from aurora.inference.reading import Memory, blank, join, read_texts
from aurora.inference.snapshot import Snapshot
from aurora.inference.visuals import Report, Source
from aurora.options import require_number
from aurora.types import State, map_state
from aurora.weights.adapters import adapter_hash
from aurora.weights.export import export
from aurora.weights.model_folder import save_model

SHAREABLE = "generic"
"""The prompt of films of a model whose own prompt begins with the question."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class VideoModel(BaseVideoModel):
    """An AuroraModel that watches videos: the start of everything that is asked about them."""

    def blank(self, **using: Any) -> Film:
        """A film that has seen nothing yet, to be extended; `using` as in `watch`."""
        return Film(self._shareable(using), Snapshot(blank(self.runner, 1)))

    def watch(self, *sources: Source, fps: float | None = None, frames: int | None = None,
              max_frames: int | None = None, checkpoint_seconds: float | None = None,
              on_progress: Report | None = None, start: float = 0.0, stop: float | None = None, **using: Any) -> Film:
        """The film of videos, images or frames, one after the other. `checkpoint_seconds` keeps a state every so many
        seconds for questions about a moment; `using` are changes as `using` takes them. `frames`, `max_frames`, `start`
        and `stop` are for files: frames from Python and those of a stream are watched as they come.

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
        if checkpoint_seconds is not None:
            require_number("checkpoint_seconds", checkpoint_seconds)
            if not 0 < checkpoint_seconds < math.inf:
                raise AuroraError(f"checkpoint_seconds {checkpoint_seconds} must be above 0 and finite")
        film = self.blank(**using)
        film.checkpoint_seconds, film.on_progress = checkpoint_seconds, on_progress
        return film

    def _shareable(self, using: Mapping[str, Any]) -> Self:
        """With what is asked for, and a prompt that lets one reading serve every question unless one is asked for; with
        timestamps where the model's own has them."""
        made = self.using(**using)
        if made.reusable or "prompt" in made.chosen:
            return made
        stamped = {"timestamps": True} if made.model.prompt.timestamps else {}
        chosen, made = made.chosen, made.using(prompt={**named_part("prompt", SHAREABLE), **stamped})
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
        # a file that was made elsewhere never says what is read here
        film.media = tuple(medium._replace(path=None, stamp=None) for medium in saved.media)
        film.turns, film.thumbnails = saved.turns, saved.thumbnails
        film.checkpoint_seconds = saved.facts["checkpoint_seconds"]
        return film

    def _adopt(self, saved: Saved, path: str | Path, any_version: bool, expected: Mapping[str, Any]) -> Self:
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
        """The answers to questions about several films, generated side by side in shared forward passes. FilmMismatch
        for a film of another model, AuroraError for one whose prompt begins with the question."""
        if not asked:
            return []
        for one in asked:
            if not (isinstance(one, Sequence) and len(one) == 2 and isinstance(one[0], Film)):
                raise AuroraError(f"give a list of (film, question), of which {one!r} is none")
        for film, _ in asked:  # the identity takes a hash of all weights
            if film.model.runner is not self.runner and film.model.identity != self.identity:
                raise FilmMismatch(f"the film {film.name} is of another model: ask it with film.ask")
        ids = [film.question_ids([*film.turns, film.turn(question)]) for film, question in asked]
        memory = join([film.memory() for film, _ in asked])
        texts = complete(self.model, self.runner, read_texts(self.runner, memory, ids), generation(options))
        return [Answer.of(text, film.now) for (film, _), text in zip(asked, texts, strict=True)]

    @classmethod
    def from_pretrained(cls, source: str | Path, *, overrides: Sequence[str] = (), device: str = "cpu",
                        threads: int | None = None, adapter: str | None = None, any_base: bool = False) -> Self:
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
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repo_id, folder_path=Path(place) / "model").commit_url)
            except Exception as error:  # of whichever HTTP library the hub's client takes, too
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise AuroraError(f"{repo_id!r} cannot be uploaded to the Hugging Face hub: {reason}") from error


def load(source: str | Path | None = None, *overrides: str, device: str = "cpu", threads: int | None = None,
         adapter: str | None = None, any_base: bool = False) -> VideoModel:
    """A model that is ready to watch: of a folder or of the hub; without one the tiny model that comes with Aurora,
    which knows only Blocks world. Overrides are Hydra's, such as "keep_ratio=0.5" or "merge=pool"."""
    return VideoModel.from_pretrained(SHIPPED if source is None else source, overrides=overrides, device=device,
                                      threads=threads, adapter=adapter, any_base=any_base)


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


def _shapes(state: State, model: VideoModel) -> dict[str, tuple[int, ...]]:
    """The shapes that any state of the model has; memory that grows does so in its third dimension."""
    grows = not model.model.backbone.constant_state
    return {name: (*t.shape[:2], *t.shape[3:]) if grows else tuple(t.shape) for name, t in state.items()}
