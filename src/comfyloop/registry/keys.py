"""Signing keys: this service's own key, created on first use, and the known keys of other publishers.

A key is trusted on first use: what a publisher signs later must be signed by the same one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from comfyloop.durable import write_whole
from comfyloop.errors import Conflict, InvalidInput, StorageError

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_FOLDER, _OWN, _OTHERS = "keys", "signing.key", "publishers.json"


class Trusted(NamedTuple):
    """A sentence about the trust in a key; `remember` says that it is new."""

    sentence: str
    remember: bool


def sign(home: Path, data: bytes) -> bytes:
    """The public key and the signature of `data`, by the key of this service.

    Raises:
        StorageError: The key cannot be read, or made.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(_secret(home))
    return bytes(key.public_key().public_bytes_raw() + key.sign(data))


def signer(name: str, signature: bytes, data: bytes) -> str:
    """The key that signed `data`, in hexadecimal.

    Raises:
        InvalidInput: The signature is none, or of something else.
    """
    needed()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(signature) != KEY_BYTES + SIGNATURE_BYTES:
        raise InvalidInput(
            f"{name} has something for a signature that is none.", "Ask who made it for the file again."
        )
    key = signature[:KEY_BYTES]
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature[KEY_BYTES:], data)
    except (InvalidSignature, ValueError):
        raise InvalidInput(
            f"The signature of {name} does not fit what is in it.", "Ask who made it for the file again."
        ) from None
    return key.hex()


def needed() -> None:
    """Raise InvalidInput where the library that signs is missing."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise InvalidInput(
            "Bundles are signed with the package `cryptography`, which is not installed.",
            "pip install 'comfyloop[hubs]'",
        ) from None


def short(key: str) -> str:
    """A short form of a key for people to compare."""
    return "-".join(key[at : at + 4] for at in range(0, 20, 4))


def own(home: Path) -> str:
    """This service's own public key, empty while it has none."""
    if not (home / _FOLDER / _OWN).exists():
        return ""
    return sign(home, b"")[:KEY_BYTES].hex()


def look_up(home: Path, publisher: str, key: str, *, accept: bool = False) -> Trusted:
    """Whether what `publisher` signed before was signed by this key.

    Args:
        accept: Take a new key in place of the one that is known.

    Raises:
        Conflict: It was another one.
    """
    earlier_key = _others(home).get(publisher)
    if key == own(home):
        return Trusted("Signed by this service itself.", remember=False)
    if earlier_key == key:
        return Trusted(f"Signed by {publisher}, whose key {short(key)} is known here.", remember=False)
    if earlier_key is None:
        return Trusted(
            f"Signed by {publisher} with the key {short(key)}, which was not met before. It is trusted from now on: "
            f"compare it with what {publisher} says that it is.",
            remember=True,
        )
    if accept:
        return Trusted(
            f"Signed by {publisher} with the key {short(key)}, in place of {short(earlier_key)} from now on.",
            remember=True,
        )
    raise Conflict(
        f"It says that it is by {publisher}, but it is signed with the key {short(key)}, and {publisher}'s is "
        f"{short(earlier_key)}.",
        f"Ask {publisher}. If the key was changed, import it with --trust-new-key.",
    )


def remember(home: Path, publisher: str, key: str) -> None:
    """Raises StorageError: The disk refuses."""
    keys_by_publisher = _others(home) | {publisher: key}
    try:
        write_whole(home / _FOLDER / _OTHERS, json.dumps(keys_by_publisher, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise StorageError(f"The key of {publisher} could not be kept: {error.strerror}.") from error


def _others(home: Path) -> dict[str, str]:
    file = home / _FOLDER / _OTHERS
    try:
        contents = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"The keys in {file} cannot be read: {error}.", "Mend or remove that file."
        ) from error
    return {str(name): str(key) for name, key in contents.items()} if isinstance(contents, dict) else {}


def _secret(home: Path) -> bytes:
    """The private key, created if needed, in a file that only its owner can read."""
    needed()
    file = home / _FOLDER / _OWN
    try:
        if not file.exists():
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = file.with_name(f".{_OWN}.{os.getpid()}")
            draft.touch(mode=0o600)
            draft.write_bytes(os.urandom(KEY_BYTES))
            try:
                os.link(draft, file)  # fails where another one was quicker: its key counts
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        secret = file.read_bytes()
    except OSError as error:
        raise StorageError(
            f"The key in {file} cannot be used: {error.strerror}.", "Mend that folder's rights."
        ) from error
    if len(secret) != KEY_BYTES:
        raise StorageError(
            f"{file} is no key.", "Put back a copy; without one, remove it: a new one is made."
        )
    return secret
