"""One evaluation process: samples its chunks with vLLM, grades them with the training reward, appends them to its file.

    python -m verl_ext.evaluation.worker JOB.json PROGRESS_FD

Started by `shards.py`, which gives it its own process group and closes its stdin when it ends, however it ends.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from verl_ext.evaluation import journal
from verl_ext.platform import prepare_environment


def main(job_file: str, progress: int) -> None:
    """Generate every chunk of a job (see `shards.Work.job`), reporting [samples, tokens] so far to a file descriptor."""
    job = json.loads(Path(job_file).read_text())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # In one process the scheduler never races with the requests coming in: the same chunk makes the same batches.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    prepare_environment()
    from vllm import LLM

    engine = LLM(**job["engine"]).llm_engine
    samples = tokens = 0
    with ThreadPoolExecutor(2 * job["grading"]["workers"]) as threads, os.fdopen(progress, "w") as report:
        for chunk in job["chunks"]:
            rows = []
            for row in _generate(engine, chunk, job):
                rows.append(threads.submit(_graded, row, job))
                samples, tokens = samples + 1, tokens + row["tokens"]
                report.write(json.dumps([samples, tokens]) + "\n")
                report.flush()
            journal.append(Path(job["output"]), sorted((r.result() for r in rows), key=lambda row: row["item"]))


def _generate(engine: Any, chunk: list[dict], job: dict) -> Iterator[dict]:
    """Rows of a chunk without their scores, as they finish."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    engine.reset_prefix_cache()
    items = {str(item["item"]): item for item in chunk}
    for request, item in items.items():
        question = job["questions"][item["benchmark"]][item["question"]]
        params = SamplingParams(
            **job["sampling"],
            seed=item["seed"],
            max_tokens=question["max_tokens"],
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(request, {"prompt_token_ids": question["prompt_token_ids"]}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                response = output.outputs[0]
                yield items[output.request_id] | {
                    "prompt_tokens": len(output.prompt_token_ids),
                    "tokens": len(response.token_ids),
                    "finish_reason": response.finish_reason,
                    "text": response.text,
                }


def _graded(row: dict, job: dict) -> dict:
    from verl_ext.rewards import compute_score

    question = job["questions"][row["benchmark"]][row["question"]]
    info = {"think_format": question["think_format"], "truncated": row["finish_reason"] == "length"}
    return row | {
        "score": compute_score(row["benchmark"], row["text"], question["ground_truth"], info, **job["grading"])
    }


def _end_with_parent() -> None:
    """Wait for the end of stdin, which comes with the end of the parent, then end the whole process group."""
    os.read(0, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
