"""A causal language model of `transformers` inside our contract: its embeddings, blocks, head and files.

Shape letters: T packed positions, S sequences, D width, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging

from aurora.errors import AuroraError
from aurora.interfaces import INITIAL_STATE, Backbone
from aurora.options import PositiveInt
from aurora.weights.io import open_tensors
from aurora.weights.loading import fill, write_tensors

from ._hf_config import Wanted, model_config, plain_config, read_folder


class Hosted(Backbone):
    """What `hf` and `transformer` share. The model's parts are `body` (embeddings and blocks) and `head`, which is
    None when the embeddings are the head."""

    name: ClassVar[str]
    default_type: ClassVar[str]  # the model type when neither the path nor an option names one
    attention: ClassVar[str | None] = None  # by its name among those of `transformers`; None: the model's own

    def __init__(
        self,
        *,
        vocab_size: int,
        path: str | None = None,
        model_type: str | None = None,
        hidden_size: PositiveInt | None = None,
        layers: PositiveInt | None = None,
        head_size: PositiveInt | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        wanted = Wanted(self.name, path, model_type, hidden_size, layers, head_size, config, vocab_size)
        described = model_config(wanted, self.default_type)
        self._check(described)
        causal = build(described, self.name, self.attention)
        head = causal.get_output_embeddings()
        if head is None:
            raise AuroraError(f"backbone {self.name!r}: transformers' {type(causal).__name__} has no head that gives "
                              "logits")
        self.config = causal.config
        self.hidden_size = described.hidden_size
        self.vocab_size = vocab_size
        self.body = causal.base_model
        self.head = None if head.weight is causal.get_input_embeddings().weight else head
        self.block_class = block_class(self.body, described)
        self._prefix = causal.base_model_prefix
        self._head_name = next(path for path, module in causal.named_modules() if module is head)
        # what the model does around its head (caps, scales) stays its own; in a tuple it is not a submodule
        setattr(causal, self._prefix, _Passing())
        causal.set_output_embeddings(_Head(self))
        self._around_head = (causal,)
        self._built()

    @abstractmethod
    def _check(self, config: Any) -> None:
        """AuroraError for a model whose memory is of another kind."""

    def _built(self) -> None:
        """Called once the body is there."""

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.body.get_input_embeddings()(tokens)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        logits: Tensor = self._around_head[0](inputs_embeds=rows, use_cache=False).logits
        return logits[0, :, : self.vocab_size].view(*hidden.shape[:-1], -1)

    def portable(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        if options.get("path") is None:
            return options
        return {**options, "path": None, "model_type": self.config.model_type, "config": plain_config(self.config)}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fills every parameter and buffer as `transformers` does before training."""
        if any(tensor.is_meta for tensor in self.parameters()):
            return
        for part in (self.body, self.head):
            if part is not None:
                part.apply(self.body._init_weights)

    def load_base(self, path: str) -> None:
        """Reads a folder that `save_pretrained` wrote, or one file of its weights (`.safetensors`, `.pth`)."""
        tensors = self._read_folder(path) if Path(path).is_dir() else open_tensors(path)
        own = {self._own_name(name): tensor for name, tensor in tensors.items()}
        if self.head is None and "head.weight" in own:
            table = self.body.get_input_embeddings()
            embeddings = next(name for name, module in self.body.named_modules() if module is table)
            if not torch.equal(own.pop("head.weight"), own.get(f"body.{embeddings}.weight", torch.empty(0))):
                raise AuroraError(f"{path} has a head of its own, but this backbone {self.name!r} is configured with "
                                  "tied embeddings (tie_word_embeddings)")
        fill(self, own, path)

    def save_base(self, path: str) -> None:
        """Writes what `load_base` reads: one file (`.safetensors`, `.pth`), or else a folder with its config.json."""
        tensors = {self._their_name(name): tensor for name, tensor in self.state_dict().items()}
        if Path(path).suffix and not Path(path).is_dir():
            write_tensors(tensors, path)
            return
        self.config.save_pretrained(path)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, Path(path) / "model.safetensors", metadata={"format": "pt"})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Hosted":
        # rotary frequencies are buffers that no file holds; in bfloat16 they would turn to other angles
        kept = [(module, name, buffer) for module in self.body.modules()
                for name, buffer in module.named_buffers(recurse=False) if name in module._non_persistent_buffers_set]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for module, name, before in kept:
            now = module._buffers[name]
            if now is not None and now.dtype is not before.dtype:
                module._buffers[name] = before.to(now.device)
        return self

    def _read_folder(self, path: str) -> Mapping[str, Tensor]:
        """The tensors of a folder, with whatever conversion `transformers` does for older files."""
        theirs = read_folder(path, self.name)
        if theirs.model_type != self.config.model_type:
            raise AuroraError(f"{path} holds a {theirs.model_type}; this backbone {self.name!r} is a "
                              f"{self.config.model_type}")
        try:
            with ExitStack() as bars:
                if logging.is_progress_bar_enabled():
                    logging.disable_progress_bar()
                    bars.callback(logging.enable_progress_bar)
                model, report = AutoModelForCausalLM.from_pretrained(
                    path, local_files_only=True, trust_remote_code=False, output_loading_info=True,
                    dtype=next(self.parameters()).dtype,
                )
        except Exception as error:
            raise AuroraError(f"{path} holds no weights that transformers reads: {' '.join(str(error).split())}"
                              ) from error
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report.get(fault):
                listed = ", ".join(map(str, sorted(report[fault], key=str)[:3]))
                raise AuroraError(f"{path} does not hold the whole {theirs.model_type}: {fault.replace('_', ' ')} "
                                  f"{listed}")
        tensors: Mapping[str, Tensor] = model.state_dict()
        return tensors

    def _own_name(self, theirs: str) -> str:
        if theirs.startswith(INITIAL_STATE):
            return theirs
        if theirs.startswith(f"{self._head_name}."):
            return "head." + theirs.removeprefix(f"{self._head_name}.")
        return "body." + theirs.removeprefix(f"{self._prefix}.")

    def _their_name(self, own: str) -> str:
        if own.startswith(INITIAL_STATE):
            return own
        part, _, rest = own.partition(".")
        return f"{self._prefix if part == 'body' else self._head_name}.{rest}"


def build(config: Any, backbone: str, attention: str | None, dtype: torch.dtype | None = None) -> Any:
    """The model that a config of `transformers` describes, in torch's default dtype if no other is given, with fresh
    weights."""
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype or torch.get_default_dtype(),
                                                attn_implementation=attention, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).partition("Model type should be one of")[0].split())
        raise AuroraError(f"backbone {backbone!r}: transformers builds no causal language model of "
                          f"{config.model_type!r}: {reason}") from error


def block_class(body: nn.Module, config: Any) -> type[nn.Module]:
    """The class of the model's layers; what they have in common when there are several."""
    stacks = [module for module in body.modules()
              if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers]
    kinds = {type(block) for block in stacks[0]} if stacks else set()
    return kinds.pop() if len(kinds) == 1 else GradientCheckpointingLayer


class _Given(BaseModelOutputWithPast):  # type: ignore[misc]
    """The output of a body; a field that only some models have is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Passing(nn.Module):
    """Stands where a body was and gives back what it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Given:
        return _Given(last_hidden_state=inputs_embeds)


class _Head(nn.Module):
    """Stands where a causal model looks for its head: the owner's, whatever wraps it by now, or its embeddings."""

    bias = None

    def __init__(self, owner: Hosted) -> None:
        super().__init__()
        self._owner = (owner,)

    @property
    def weight(self) -> Tensor:
        """[V, D]."""
        owner = self._owner[0]
        weight: Tensor = (owner.head or owner.body.get_input_embeddings()).weight
        return weight

    def forward(self, hidden: Tensor) -> Tensor:
        head = self._owner[0].head
        logits: Tensor = F.linear(hidden, self.weight) if head is None else head(hidden)
        return logits
