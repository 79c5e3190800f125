r"""A copy of a model's tokenizer whose chat template renders a prompt template as it is meant.

    python data/prepare_tokenizer.py --model Qwen/Qwen2.5-Math-1.5B --template thought --out outputs/tokenizers/thought

Train with `actor_rollout_ref.model.tokenizer_path=<out>`: the prompt filter, the rollout and the tokenizer saved in
checkpoints follow it. Needed for `thought` (unless the model's own template already opens the turn with <think>, as
Elliott/Qwen2.5-Math-7B-16k-think does) and for `llama_base`. Exit code 2 and one sentence on bad input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the file also runs as a script

from data.errors import DataError, exit_with_sentence
from data.prepare_train import load_tokenizer
from data.prompts import chat_template_for, load_template, template_names
from verl_ext.files import new_folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--template", required=True, choices=template_names())
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer; must not exist")
    args = parser.parse_args()
    if args.out.exists():
        raise DataError(f"--out {args.out}: exists already")

    template, tokenizer = load_template(args.template), load_tokenizer(args.model)
    own = tokenizer.chat_template
    tokenizer.chat_template = chat_template_for(template, tokenizer)
    print("the model's own chat template fits" if tokenizer.chat_template == own else "chat template changed")
    with new_folder(args.out) as new:
        tokenizer.save_pretrained(new)
    print(tokenizer.apply_chat_template(template.render("1+1?"), add_generation_prompt=True, tokenize=False))


if __name__ == "__main__":
    exit_with_sentence(main)
