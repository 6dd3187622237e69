"""A model of Llama's architecture as a GGUF file, for llama.cpp and what is built on it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The rows of the query and key projections
are in the order llama.cpp rotates them, which is not the order of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import orjson
import torch

from chat_template import ChatTemplate
from errors import UsageError
from training.full_models import StoredPrecision

ARCHITECTURE = "llama"
TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


def obstacle(model: Any, folder: Path) -> str | None:
    """Return why a model with the tokenizer in `folder` cannot be written as GGUF here, or None."""
    config = model.config
    if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
        return f"its architecture is {config.architectures or config.model_type}, not a plain Llama"
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        return f"its rotary embedding is scaled ({rope['rope_type']})"
    tokenizer = orjson.loads((folder / "tokenizer.json").read_bytes())
    if tokenizer["model"]["type"] != "BPE" or tokenizer["model"].get("byte_fallback"):
        return "its tokenizer is no byte-level BPE"
    if tokenizer["normalizer"] is not None or _pre_tokenizer(tokenizer["pre_tokenizer"]) is None:
        return "its tokenizer cuts text in a way that has no name here"
    return None


def write_gguf(model: Any, folder: Path, name: str, file: Path, precision: StoredPrecision) -> None:
    """Write a float32 model with the tokenizer in `folder`; UsageError when it cannot be done."""
    reason = obstacle(model, folder)
    if reason is not None:
        raise UsageError(f"{name} cannot be written as GGUF: {reason}")
    writer = gguf.GGUFWriter(file, ARCHITECTURE)
    writer.add_name(name)
    writer.add_file_type(TYPES[precision][1])
    _add_shape(writer, model.config)
    _add_tokenizer(writer, folder, model.config.vocab_size)
    for tensor_name, values in _tensors(model):
        # llama.cpp expects vectors in float32 whatever the matrices are.
        kind = TYPES[precision][0] if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: Any) -> None:
    head_size = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, folder: Path, vocabulary_size: int) -> None:
    document = orjson.loads((folder / "tokenizer.json").read_bytes())
    template = ChatTemplate.load(folder)
    tokens, kinds = _vocabulary(document, vocabulary_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(document["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    )
    writer.add_eos_token_id(template.eos_token_id)
    writer.add_pad_token_id(template.pad_token_id)
    if template.bos_token_id is not None:
        writer.add_bos_token_id(template.bos_token_id)
    # The chat template writes whatever a conversation begins with.
    writer.add_add_bos_token(False)
    if (folder / "chat_template.jinja").is_file():
        writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _vocabulary(document: Any, size: int) -> tuple[list[str], list[int]]:
    """Return every token by its number, and what kind it is; rows without a token are filled."""
    tokens = [f"[unused{number}]" for number in range(size)]
    kinds = [int(gguf.TokenType.UNUSED)] * size
    for token, number in document["model"]["vocab"].items():
        tokens[number], kinds[number] = token, int(gguf.TokenType.NORMAL)
    for added in document["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], int(kind)
    return tokens, kinds


def _pre_tokenizer(found: Any) -> str | None:
    """Return llama.cpp's name for the way a byte-level tokenizer cuts text, or None when it has none here."""
    parts = found["pretokenizers"] if found and found["type"] == "Sequence" else [found]
    is_plain = parts[-1] and parts[-1]["type"] == "ByteLevel" and parts[-1].get("use_regex", True)
    if not is_plain or parts[-1]["add_prefix_space"]:
        return None
    if len(parts) == 1:
        return "gpt-2"
    return "smollm" if parts[:-1] == [{"type": "Digits", "individual_digits": True}] else None


def _tensors(model: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield every weight under its GGUF name; a head that shares the embeddings is left out."""
    config = model.config
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = weight.to(torch.float32).numpy()
        layer = _LAYER.fullmatch(name)
        if layer is None:
            yield NAMES[name], values
            continue
        if layer[2] == "self_attn.q_proj":
            values = _interleave(values, config.num_attention_heads)
        elif layer[2] == "self_attn.k_proj":
            values = _interleave(values, config.num_key_value_heads)
        yield f"blk.{layer[1]}.{LAYER_NAMES[layer[2]]}.weight", values


def _interleave(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Put the two halves of each head's rows, which are rotated together, side by side."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
