"""An Ollama Modelfile beside GGUF files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from gguf import SpecialVocab
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_QUESTION, _MARK = "the question", "\0"
_CHATML = """{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
"""In Ollama's language of templates."""


def text(model: Path, merged: str, lora: str) -> str:
    """Args:
    merged, lora: Names of the files beside it; `lora` is empty where there is none.
    """
    lines = ["# ollama create NAME -f Modelfile", f"FROM ./{merged}", ""]
    system = chatml_system(model)
    if system is None:
        lines += ["# How a chat is written, Ollama tells from the template in the GGUF file.", ""]
    else:
        lines += [f'TEMPLATE """{_CHATML}"""', ""]
        lines += [f'SYSTEM """{system}"""', ""] if system else []
    if lora:
        lines += [
            "# The adapter alone, beside the base model's own GGUF file, in place of the FROM above:",
            "# FROM ./BASE-MODEL.gguf",
            f"# ADAPTER ./{lora}",
            "",
        ]
    return "\n".join(lines)


def chatml_system(model: Path) -> str | None:
    """The system prompt that a model's template puts first where there is none, maybe none; None: it is not ChatML."""
    template = SpecialVocab(model).chat_template
    if not isinstance(template, str):
        return None
    alone = _rendered(template, [{"role": "user", "content": _QUESTION}])
    with_system = _rendered(
        template, [{"role": "system", "content": _MARK}, {"role": "user", "content": _QUESTION}]
    )
    chat = f"<|im_start|>user\n{_QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    if (
        alone is None
        or with_system != f"<|im_start|>system\n{_MARK}<|im_end|>\n{chat}"
        or not alone.endswith(chat)
    ):
        return None
    first = alone.removesuffix(chat)
    system = first.removeprefix("<|im_start|>system\n").removesuffix("<|im_end|>\n")
    whole = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return system if first == whole and '"""' not in system else None


def _rendered(template: str, messages: list[dict[str, Any]]) -> str | None:
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    with contextlib.suppress(TemplateError, TypeError, ValueError):
        return sandbox.from_string(template).render(messages=messages, add_generation_prompt=True)
    return None
