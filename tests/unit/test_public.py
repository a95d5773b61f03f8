"""What programs import of the package."""

from __future__ import annotations

import subprocess
import sys

import comfyloop


def test_what_is_public() -> None:
    assert comfyloop.__all__ == ["Client", "__version__", "errors", "records"]
    assert all(getattr(comfyloop, name) is not None for name in comfyloop.__all__)


def test_importing_it_alone_loads_little_and_the_rest_comes_when_it_is_asked_for() -> None:
    program = (
        "import sys, comfyloop; early = set(sys.modules); "
        "assert not early & {'httpx', 'pydantic', 'torch'}, early; "
        "comfyloop.Client, comfyloop.records.Feedback, comfyloop.errors.NotFound; "
        "assert 'torch' not in sys.modules and not hasattr(comfyloop, 'Clients')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
