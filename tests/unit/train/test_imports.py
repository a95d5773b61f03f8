"""What a run does to come up sooner changes nothing of what it imports."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

COMPARE = """
import sys
from transformers.utils import import_utils
from comfyloop.train.libraries import import_models

own = import_utils.define_import_structure
import_models()
assert import_utils.define_import_structure is own
ours = sys.modules["transformers.models"]
theirs = type(ours)(ours.__name__, ours.__file__, own(ours.__file__))
for part in ("_modules", "_class_to_module", "_object_missing_backend", "_import_structure"):
    assert getattr(ours, part) == getattr(theirs, part), part
assert ours.LlamaForCausalLM.__module__ == "transformers.models.llama.modeling_llama"
print(len(ours._class_to_module))
"""


def test_transformers_models_are_all_there_after_one_look_at_their_files() -> None:
    done = subprocess.run([sys.executable, "-c", COMPARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000
