"""SmolLM2-135M-Instruct out of its GGUF file: bfloat16 weights and the tokenizer, nothing guessed."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, quants
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

# An unused special token stands for the picture, so that no embedding is resized. It carries the name that
# LLaVA-style processors, ms-swift and vLLM expect.
IMAGE_TOKEN = "<image>"
REPLACED_TOKEN = "<reponame>"
# Padding must not be the end-of-turn token: trainers that mask padding would never teach the model to stop.
PAD_TOKEN = "<|endoftext|>"
END_TOKEN = "<|im_end|>"
START_TOKEN = "<|im_start|>"

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


class LanguageFile:
    def __init__(self, path: Path) -> None:
        self.reader = GGUFReader(path)

    def field(self, name: str) -> Any:
        return self.reader.get_field(name).contents()

    def config(self) -> LlamaConfig:
        tokens = self.field("tokenizer.ggml.tokens")
        return LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=self.field("llama.embedding_length"),
            intermediate_size=self.field("llama.feed_forward_length"),
            num_hidden_layers=self.field("llama.block_count"),
            num_attention_heads=self.field("llama.attention.head_count"),
            num_key_value_heads=self.field("llama.attention.head_count_kv"),
            max_position_embeddings=self.field("llama.context_length"),
            rms_norm_eps=round(self.field("llama.attention.layer_norm_rms_epsilon"), 9),
            rope_parameters={"rope_type": "default", "rope_theta": self.field("llama.rope.freq_base")},
            tie_word_embeddings=True,
            bos_token_id=tokens.index(START_TOKEN),
            eos_token_id=tokens.index(END_TOKEN),
            pad_token_id=tokens.index(PAD_TOKEN),
        )

    def weights(self) -> dict[str, Tensor]:
        """LlamaModel's state dict in bfloat16."""
        heads = {
            "attn_q": self.field("llama.attention.head_count"),
            "attn_k": self.field("llama.attention.head_count_kv"),
        }
        out = {}
        for tensor in self.reader.tensors:
            values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.name in _TOP_NAMES:
                name = _TOP_NAMES[tensor.name]
            else:
                _, layer, part, _ = tensor.name.split(".")
                name = f"layers.{layer}.{_LAYER_NAMES[part]}.weight"
                if part in heads:
                    # GGUF interleaves the two halves of every rotary pair; transformers keeps them apart
                    n, (rows, columns) = heads[part], values.shape
                    values = (
                        values.reshape(n, rows // n // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
                    )
            out[name] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return out

    def tokenizer(self, chat_template: str) -> PreTrainedTokenizerFast:
        tokens = [IMAGE_TOKEN if t == REPLACED_TOKEN else t for t in self.field("tokenizer.ggml.tokens")]
        merges = [tuple(m.split(" ")) for m in self.field("tokenizer.ggml.merges")]
        special = [
            token
            for token, kind in zip(tokens, self.field("tokenizer.ggml.token_type"), strict=True)
            if kind != 1  # 1 is an ordinary piece of text
        ]
        core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
        # GGUF's name for this is "smollm": every digit is a token of its own, the rest as in GPT-2
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
        fast_tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            bos_token=START_TOKEN,
            eos_token=END_TOKEN,
            pad_token=PAD_TOKEN,
            unk_token=PAD_TOKEN,
            padding_side="left",
            clean_up_tokenization_spaces=False,
            model_max_length=self.field("llama.context_length"),
            extra_special_tokens={"image_token": IMAGE_TOKEN},
        )
        fast_tokenizer.chat_template = chat_template
        return fast_tokenizer
