"""SmolLM2-135M-Instruct of a GGUF file as a directory of transformers': `python smollm2.py GGUF OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from comfyloop.starter.language import LanguageFile

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    file, out = LanguageFile(Path(sys.argv[1])), Path(sys.argv[2])
    model = LlamaForCausalLM(file.config()).to(torch.bfloat16)
    model.model.load_state_dict(file.weights())
    model.tie_weights()
    model.save_pretrained(out)
    file.tokenizer(CHATML).save_pretrained(out)


if __name__ == "__main__":
    main()
