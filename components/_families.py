"""Which family of models a checkpoint looks like, told by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MARKS = (
    (r"(^|\.)backbone\.blocks\.|^(vision|connector)\.", "a whole Aurora model, which is read as a model folder"),
    (r"\.lora_[AB]\.", "a LoRA adapter (peft), which needs the model it was trained on"),
    (r"\.att\.time_state$", "state-tuned RWKV"),
    (r"blocks\.\d+\.att\.(r_k|k_k)$", "RWKV-7 (x070) by the authors' names"),
    (r"blocks\.\d+\.att\.time_maa_x$", "RWKV-6 (x060) by the authors' names"),
    (r"blocks\.\d+\.att\.(gate\.weight|time_mix_g)$", "RWKV-5 (x052)"),
    (r"blocks\.\d+\.(att|attention)\.(time_first|time_mix_k)$", "RWKV-4"),
    (r"rwkv\.blocks\.\d+\.attention\.time_maa_x$", "RWKV-6 in the layout of the RWKV/v6-Finch-*-HF repositories"),
    (r"layers\.\d+\.attn\.x_proj\.0\.mu$", "RWKV-6 by flash-linear-attention's names"),
    (r"layers\.\d+\.attn\.(k_k|w_lora\..*)$", "RWKV-7 by flash-linear-attention's names"),
    (r"layers\.\d+\.attn\.(A_log|b_proj\.weight)$", "a gated delta network by flash-linear-attention's names"),
    (r"layers\.\d+\.attn\.gk_proj\.", "gated linear attention (GLA) by flash-linear-attention's names"),
    (r"layers\.\d+\.mixer\.(x_proj|dt_proj)\.", "Mamba-1"),
    (r"layers\.\d+\.mixer\.(dt_bias|norm\.weight)$", "Mamba-2"),
    (r"layers\.\d+\.temporal_block\.", "RecurrentGemma"),
    (r"layers\.\d+\.block_sparse_moe\.", "Mixtral"),
    (r"layers\.\d+\.self_attn\.q_norm\.", "Qwen 3"),
    (r"^model\.layers\.\d+\.self_attn\.q_proj\.bias$", "Qwen 2"),
    (r"model\.layers\.\d+\.self_attn\.", "a transformer such as Llama"),
    (r"h\.\d+\.attn\.c_attn\.", "GPT-2"),
    (r"gpt_neox\.layers\.", "GPT-NeoX"),
    (r"vision_model\.encoder\.layers\.", "SigLIP or CLIP"),
    (r"blocks\.\d+\.attn\.qkv\.", "a vision transformer of timm"),
)


def looks_like(names: Iterable[str]) -> str | None:
    """The family in words, such as 'Mamba-1'; None for names that are of none that is known here."""
    names = list(names)
    for mark, family in _MARKS:
        if any(re.search(mark, name) for name in names):
            return family
    return None
