"""The command lines of other engines are what those engines take: read by their own parsers where they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfyloop import environments
from comfyloop.errors import InvalidInput, ModelError
from comfyloop.serve.engines.kinds import KINDS, Start, _swift_deploy
from comfyloop.serve.engines.kinds._layers import LAYERS
from comfyloop.settings import Settings

ADAPTERS = {"acme-v1": "/adapters/1", "acme-v2": "/adapters/2"}

READ_VLLM = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
given = make_arg_parser(FlexibleArgumentParser()).parse_args(sys.argv[1:])
told = {k: v for k, v in vars(given).items() if isinstance(v, (str, int, bool, type(None)))}
told["lora_modules"] = {m.name: m.path for m in given.lora_modules}
told["lora_target_modules"] = given.lora_target_modules
print(json.dumps(told, default=str))
"""
READ_LMDEPLOY = """
import json, sys
from lmdeploy.cli.cli import CLI
from lmdeploy.cli.serve import SubCliServe
from lmdeploy.cli.utils import get_lora_adapters
SubCliServe.add_parsers()
given = CLI.parser.parse_args(sys.argv[1:])
print(json.dumps({**vars(given), "adapters": get_lora_adapters(given.adapters)}, default=str))
"""
LMDEPLOY_FIELDS = """
import json, sys
from lmdeploy.serve.openai.protocol import ChatCompletionRequest, ChatCompletionStreamResponse
request = ChatCompletionRequest.model_validate_json(sys.argv[1])
known = set(ChatCompletionRequest.model_fields)
print(json.dumps({"unknown": sorted(set(json.loads(sys.argv[1])) - known), "model": request.model}))
"""


def launched(kind: str, settings: Settings) -> tuple[list[str], int]:
    """What an engine's own program is given, without Python's and the guard's part of it."""
    launch = KINDS[kind].launch(settings, Start("/models/base", Path("port"), ADAPTERS, "python-of-it"))
    assert len(launch.secret) > 30
    assert launch.secret in (*launch.argv, *(launch.environment or {}).values())
    argv = list(launch.argv)
    assert argv[0] == sys.executable and Path(argv[1]).name == "guard.py"
    assert "PYTHONPATH" not in (launch.environment or {})
    return argv[argv.index("python-of-it") + 1 :], launch.port


def read(engine: str, script: str, *argv: str) -> dict[str, Any]:
    python = environments.find(engine, Settings())
    if python is None:
        pytest.skip(f"{engine} is not installed: `comfyloop engines install {engine}`")
    done = subprocess.run(
        [str(python), "-c", script, *argv],
        capture_output=True,
        text=True,
        timeout=300,
        env=environments.clean_environ(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


@pytest.mark.slow
def test_vllm_reads_its_command_line_as_it_is_meant(settings: Settings) -> None:
    settings = settings.model_copy(update={"max_lora_rank": 48, "engine_args": ("--max-model-len", "512")})
    argv, port = launched("vllm", settings)
    assert argv[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    told = read("vllm", READ_VLLM, *argv[2:])
    assert told["model"] == "/models/base" and told["port"] == port and told["enable_lora"]
    assert told["lora_modules"] == ADAPTERS
    assert set(told["lora_target_modules"]) == LAYERS
    assert (told["max_lora_rank"], told["max_loras"], told["max_model_len"]) == (64, settings.max_loras, 512)


@pytest.mark.slow
def test_lmdeploy_reads_its_command_line_as_it_is_meant(settings: Settings) -> None:
    argv, port = launched("lmdeploy", settings)
    assert argv[:2] == ["-m", "lmdeploy"]
    told = read("lmdeploy", READ_LMDEPLOY, *argv[2:])
    assert told["model_path"] == "/models/base" and told["server_port"] == port
    assert (told["backend"], told["model_name"], told["adapters"]) == ("pytorch", "base", ADAPTERS)


@pytest.mark.slow
def test_lmdeploy_knows_every_field_that_the_gateway_sends() -> None:
    body = {
        "model": "acme-v1",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 8,
        "stop": ["x"],
        "seed": 1,
        "n": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    }
    assert read("lmdeploy", LMDEPLOY_FIELDS, json.dumps(body)) == {"unknown": [], "model": "acme-v1"}


def test_an_engine_is_offline_and_reachable_from_this_machine_alone(
    settings: Settings, tmp_path: Path
) -> None:
    start = Start(str(tmp_path), Path("port"), {}, "python-of-it")
    launch = KINDS["vllm"].launch(settings, start)
    assert launch.environment is not None and launch.environment["HF_HUB_OFFLINE"] == "1"
    assert launch.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    for kind in ("vllm", "lmdeploy", "embedded", "swift", "sglang"):
        assert "127.0.0.1" in KINDS[kind].launch(settings, start).argv


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that says what NVIDIA's does on a card of 24 GB."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 24576\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.usefixtures("card")
def test_vllm_leaves_of_a_card_what_it_does_not_need(settings: Settings, tmp_path: Path) -> None:
    def taken(model: str, **more: object) -> str | None:
        own = settings.model_copy(update=more)
        argv = list(KINDS["vllm"].launch(own, Start(model, Path("port"), {}, "python-of-it")).argv)
        return (
            argv[argv.index("--gpu-memory-utilization") + 1] if "--gpu-memory-utilization" in argv else None
        )

    shape = {
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_size": 3584,
    }
    (tmp_path / "config.json").write_text(json.dumps({"text_config": shape}))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(7 * 2**30)  # a hole: it takes no room
    # 7 GiB of weights, 8 x 4,096 tokens of 57,344 bytes, 2 GiB beside: 10.75 of 24
    assert taken(str(tmp_path), max_batch=8) == "0.45"
    assert taken(str(tmp_path), max_batch=8, gpu_memory_utilization=0.6) == "0.6"
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(70 * 2**30)
    assert taken(str(tmp_path)) == "0.9"
    assert taken("somebody/on-a-hub") is None  # as vLLM does by itself


READ_SWIFT = """
import json, sys
from swift.arguments import DeployArguments
from swift.utils import parse_args
del sys.argv[1]
given, rest = parse_args(DeployArguments, sys.argv[1:])
told = {k: v for k, v in vars(given).items() if isinstance(v, (str, int, bool, type(None)))}
print(json.dumps({**told, "adapters": given.adapter_mapping, "rest": rest}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_ms_swift_reads_its_command_line_as_it_is_meant(
    settings: Settings, tiny_llm: Path, backend: str
) -> None:
    settings = settings.model_copy(update={"swift_infer_backend": backend, "max_lora_rank": 48})
    start = Start(str(tiny_llm), Path("port"), {"acme-v1": str(tiny_llm)}, "python-of-it")
    launch = KINDS["swift"].launch(settings, start)
    argv = list(launch.argv)[list(launch.argv).index("python-of-it") + 1 :]
    assert Path(argv[0]).name == "_swift_deploy.py" and (launch.environment or {})["PYTHONSAFEPATH"] == "1"
    told = read("swift", READ_SWIFT, *argv, "--model_type", "llama", "--template", "dummy")
    assert (told["host"], told["port"], told["infer_backend"]) == ("127.0.0.1", launch.port, backend)
    assert (told["served_model_name"], told["api_key"], told["rest"]) == ("base", launch.secret, [])
    assert told["adapters"] == {"acme-v1": str(tiny_llm)} and told["verbose"] is False
    if backend == "vllm":
        assert told["vllm_max_lora_rank"] == 64 and told["vllm_max_num_seqs"] == settings.max_batch


def test_what_ms_swift_would_serve_without_its_adapter_is_refused(settings: Settings) -> None:
    for backend in ("lmdeploy", "sglang"):
        own = settings.model_copy(update={"swift_infer_backend": backend})
        KINDS["swift"].launch(own, Start("/models/base", Path("port"), {}, "python-of-it"))
        with pytest.raises(InvalidInput, match="serves no adapters with"):
            KINDS["swift"].launch(own, Start("/models/base", Path("port"), ADAPTERS, "python-of-it"))


def test_ms_swift_is_told_what_it_would_ask_for_and_runs_no_code_of_a_model(
    tiny_llm: Path, tmp_path: Path
) -> None:
    bootstrap = Path(_swift_deploy.__file__)
    config = json.loads((tiny_llm / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "own.Model"}}))
    command = [sys.executable, str(bootstrap), "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == ModelError.exit_code and "brings code of its own" in done.stderr


def test_sglang_is_started_for_adapters_that_come_later(settings: Settings) -> None:
    settings = settings.model_copy(
        update={"max_lora_rank": 48, "gpu_memory_utilization": 0.5, "max_loras": 3}
    )
    argv, port = launched("sglang", settings)
    assert argv[:4] == ["-m", "sglang.launch_server", "--model-path", "/models/base"]
    assert argv[argv.index("--port") + 1] == str(port) and "--enable-lora" in argv
    assert argv[argv.index("--max-loras-per-batch") + 1] == "4"  # the base model counts as one
    assert argv[argv.index("--mem-fraction-static") + 1] == "0.5"
    assert argv[argv.index("--lora-paths") + 1 :][:2] == ["acme-v1=/adapters/1", "acme-v2=/adapters/2"]
