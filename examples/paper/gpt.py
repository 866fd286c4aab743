"""A language model of bytes: GPT-2's architecture, from `transformers`, without a tokenizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from examples.paper.text import CONTEXT

_BYTES = 256


class ByteGPT(GPT2LMHeadModel):
    """A `GPT2LMHeadModel` that is given bytes and gives nothing but its logits.

    The head does not share its weight with the embedding, and there is no dropout: a text is gone through about once.

    Args:
        layers: blocks, each of four projections: `attn.c_attn`, `attn.c_proj`, `mlp.c_fc`, `mlp.c_proj`.
        width: of the embedding.
        heads: of each attention.
        context: places that it can see.

    Example:
        >>> import torch
        >>> model = ByteGPT(layers=2, width=32, heads=2, context=16)
        >>> model(torch.zeros(3, 16, dtype=torch.uint8)).shape
        torch.Size([3, 16, 256])
    """

    def __init__(self, layers: int = 6, width: int = 256, heads: int = 8, context: int = CONTEXT) -> None:
        sizes: dict[str, Any] = {
            "vocab_size": _BYTES,
            "n_positions": context,
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
        }
        none: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        fixed: dict[str, Any] = {
            "bos_token_id": None,
            "eos_token_id": None,
            "tie_word_embeddings": False,
            "use_cache": False,
        }
        super().__init__(GPT2Config(**sizes, **none, **fixed))

    def forward(self, inputs: Tensor, **options: Any) -> Tensor:
        """Bytes (N, places) → logits of each next byte, (N, places, 256)."""
        return super().forward(inputs.long(), **options).logits
