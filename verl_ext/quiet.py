"""A log that a person can read: what verl, vLLM and their libraries say on every start is left out, errors are said once."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, MutableMapping

LEVELS = {
    "VERL_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}
EXTERNAL = "VERL_USE_EXTERNAL_MODULES"  # verl imports these in every process
ROLLOUTS = "verl_ext.rollout_log"


def verbose(env: MutableMapping[str, str] | None = None) -> bool:
    """Whether the log is to have everything: VERBOSE is set (`-v` of the scripts)."""
    return bool((os.environ if env is None else env).get("VERBOSE"))


def quiet(env: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Set levels in the environment, and returns them for processes that do not inherit it; what is set already stays.

    To be called after the platform is chosen, before verl is imported, and before processes are forked, which inherit what
    warnings are shown.
    """
    env = os.environ if env is None else env
    if verbose(env):
        return {}
    warnings.simplefilter("ignore")
    for name, value in LEVELS.items():
        env.setdefault(name, value)
    modules = [name for name in env.get(EXTERNAL, "").split(",") if name]
    env[EXTERNAL] = ",".join(modules if ROLLOUTS in modules else [*modules, ROLLOUTS])
    return {name: env[name] for name in (*LEVELS, EXTERNAL)}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what is printed here, unless everything is to be said. Logging goes on."""
    with contextlib.ExitStack() as stack:
        if not verbose():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield


class Once(logging.Filter):
    """Lets the traceback of each type of error through once, and one line of every other."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        kind = type(error).__name__
        if kind in self._seen:
            record.msg, record.args, record.exc_info = f"{record.getMessage()}: {kind}, as above", (), None
        self._seen.add(kind)
        return True
