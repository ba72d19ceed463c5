"""Changes files of a run as an attacker would: with hashes that match again, and without the user's signature."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rltrain.storage.checkpoint import META
from rltrain.storage.run_folder import RUN_FILE


def hashed(content: dict[str, Any]) -> bytes:
    """The document as its writer would write it, with the hash of this content."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": digest, **content}, indent=1).encode()


def forge(file: Path, change: Callable[[dict[str, Any]], Any], signature: str | None = "0" * 64) -> None:
    """Changes a JSON document and computes its hash again."""
    content = json.loads(file.read_bytes())
    for key in ("sha256", "signature"):
        content.pop(key, None)
    change(content)
    file.write_bytes(hashed(content if signature is None else {"signature": signature, **content}))


def forge_state(checkpoint: Path, data: bytes) -> None:
    """Replaces the tensors of a checkpoint, and the hash that its meta.json has of them."""
    (checkpoint / "state.safetensors").write_bytes(data)
    digest = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    forge(checkpoint / META, lambda meta: meta["files"].update({"state.safetensors": digest}))


def forge_config(run: Path, **changes: Any) -> None:
    """Changes the configuration of a run everywhere: in run.json, and in each of its checkpoints."""

    def change(content: dict[str, Any]) -> None:
        for key, value in changes.items():
            config = content["config"]
            (config["settings"] if key in config["settings"] else config)[key] = value

    forge(run / RUN_FILE, change)
    for meta in (run / "checkpoints").glob(f"*/{META}"):
        forge(meta, change)
