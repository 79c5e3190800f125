"""Checks of a model folder's files: what an interrupted download leaves behind looks complete to `ls`."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open


def folder_problems(folder: Path) -> Iterator[str]:
    """One clause for each thing that is missing or cut in a Hugging Face model folder; of weights only headers are read."""
    config = folder / "config.json"
    if not config.is_file():
        yield "has no config.json; name the folder of a Hugging Face model."
    elif not isinstance(_json(config), dict):
        yield "has a config.json that is not JSON; download the model again."
    shards = list(folder.glob("*.safetensors"))
    if not shards and not any(folder.glob("*.bin")):
        yield "has no weights (*.safetensors or *.bin); download the whole model."
    missing = sorted(_indexed(folder) - {shard.name for shard in shards})
    if missing:
        yield f"has no {missing[0]}, which its index lists; download the whole model."
    cut = [shard.name for shard in shards if not is_whole(shard)]
    if cut:
        yield f"has a {cut[0]} that is cut or no safetensors file; download it again (git lfs pull leaves no pointers)."


def is_whole(path: Path) -> bool:
    """True for a safetensors file that is as long as its header says."""
    try:
        with safe_open(path, "numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def _indexed(folder: Path) -> set[str]:
    index = _json(folder / "model.safetensors.index.json")
    return set(index.get("weight_map", {}).values()) if isinstance(index, dict) else set()


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
