"""A copy of a model with a wider window: its weights linked, its config.json changed.

    python data/prepare_model.py --model Qwen/Qwen2.5-Math-1.5B --out outputs/models/Qwen2.5-Math-1.5B-16k

Qwen2.5-Math has 4,096 positions, too few for 1,024 prompt and 8,192 response tokens. The defaults are LUFFY's values, those of
Elliott/Qwen2.5-Math-7B-16k-think: 16,384 positions, rope_theta 40000. Exit code 2 and one sentence on bad input.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.errors import DataError, exit_with_sentence
from verl_ext.files import new_folder

WEIGHTS = (".safetensors", ".bin")


def model_folder(model: str) -> Path:
    """The folder of a model; a hub id is downloaded. Raises DataError if there is none."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(model))
        except (OSError, ValueError) as problem:
            raise DataError(
                f"--model {model}: is no folder and cannot be downloaded ({type(problem).__name__})"
            ) from None
    if not (folder / "config.json").is_file():
        raise DataError(f"--model {model}: has no config.json")
    return folder


def widened(config: dict, positions: int, rope_theta: float) -> dict:
    """`config` with the new window, in the old (`rope_theta`) and the new (`rope_parameters`) place."""
    if config.get("rope_scaling"):
        raise DataError("--model: config.json has rope_scaling, which a new rope_theta would contradict")
    changed = config | {"max_position_embeddings": positions}
    if "rope_parameters" in config:
        changed["rope_parameters"] = config["rope_parameters"] | {"rope_theta": rope_theta}
    if "rope_theta" in config or "rope_parameters" not in config:
        changed["rope_theta"] = rope_theta
    return changed


def copy_model(folder: Path, out: Path, config: dict) -> None:
    """Fill `out`: weights as links to `folder`, everything else copied, `config` as config.json."""
    for source in folder.iterdir():
        if source.suffix in WEIGHTS:
            (out / source.name).symlink_to(source.resolve())
        elif source.is_file() and source.name != "config.json":
            shutil.copyfile(source, out / source.name)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for the copy; must not exist")
    parser.add_argument("--positions", type=int, default=16384)
    parser.add_argument("--rope-theta", type=float, default=40000.0)
    args = parser.parse_args()
    if args.out.exists():
        raise DataError(f"--out {args.out}: exists already")
    folder = model_folder(args.model)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = widened(config, args.positions, args.rope_theta)
    with new_folder(args.out) as new:
        copy_model(folder, new, config)
    print(f"{args.out}: {args.positions} positions, rope_theta {args.rope_theta:g}, weights linked to {folder}")


if __name__ == "__main__":
    exit_with_sentence(main)
