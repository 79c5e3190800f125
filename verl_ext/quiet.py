"""A log that a person can read: what verl, vLLM and their libraries say on every start is left out, errors are not."""

import os
import warnings
from collections.abc import MutableMapping

LEVELS = {
    "VERL_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}


def verbose(env: MutableMapping[str, str] | None = None) -> bool:
    """Whether the log is to have everything: VERBOSE is set (`-v` of the scripts)."""
    return bool((os.environ if env is None else env).get("VERBOSE"))


def quiet(env: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Set levels in the environment, and returns them for processes that do not inherit it; what is set already stays.

    To be called before verl is imported, and before processes are forked, which inherit what warnings are shown.
    """
    env = os.environ if env is None else env
    if verbose(env):
        return {}
    warnings.simplefilter("ignore")
    for name, value in LEVELS.items():
        env.setdefault(name, value)
    return {name: env[name] for name in LEVELS}
