"""Evaluation of a model on benchmarks: sampling with vLLM in worker processes, the training reward, tables.

Only `worker` imports vLLM, and only `model` calls verl (its model merger), in a process of its own.
"""


class EvaluationError(Exception):
    """An evaluation cannot be done as asked. The message is one sentence that names the file or setting."""
