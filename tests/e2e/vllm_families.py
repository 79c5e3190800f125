"""vLLM with small models of other architectures, on CPU: `python vllm_families.py FOLDER`, a process of its own.

Writes `FOLDER/<family>` and a line of `FOLDER/generated.jsonl` for each: prompts, sampled tokens and their log-probs by vLLM.
"""

import json
import sys
from pathlib import Path

import torch
from families import FAMILIES, THINKING, TOY, model_folder
from transformers import AutoTokenizer

from verl_ext.platform import prepare_environment

prepare_environment()
QUESTION = [{"role": "user", "content": "1 + 1?"}]
SAMPLES, TOKENS = 16, 48
HEADS = {
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # vLLM's CPU attention takes multiples of 32


def made(family: str, folder: Path) -> Path:
    """A model whose tokenizer pads with the end of turn."""
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, THINKING
    end = tokenizer.eos_token_id
    model_folder(family, folder, **HEADS, pad_token_id=end, eos_token_id=end)
    tokenizer.save_pretrained(folder)
    return folder


def prompts(tokenizer) -> list[list[int]]:
    """The question with thinking, and without."""
    switches = ({}, {"enable_thinking": False})
    texts = [tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True, **s) for s in switches]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def generate(folder: Path) -> dict:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = prompts(tokenizer)
    engine = LLM(
        str(folder), dtype="float32", enforce_eager=True, max_model_len=128, logprobs_mode="processed_logprobs"
    )
    sampling = SamplingParams(n=SAMPLES, temperature=1.0, max_tokens=TOKENS, logprobs=0, seed=0)
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in asked], sampling, use_tqdm=False)
    rows = [
        {
            "prompt": ids,
            "tokens": list(sample.token_ids),
            "log_probs": [step[token].logprob for step, token in zip(sample.logprobs, sample.token_ids, strict=True)],
            "ended": sample.finish_reason == "stop",
        }
        for ids, output in zip(asked, outputs, strict=True)
        for sample in output.outputs
    ]
    del engine
    cleanup_dist_env_and_memory()
    return {"folder": str(folder), "end": tokenizer.eos_token_id, "rows": rows}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with (folder / "generated.jsonl").open("w", encoding="utf-8") as lines:
        for family in FAMILIES:
            lines.write(json.dumps({"family": family} | generate(made(family, folder / family))) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
