"""Everything that is decided before a model is loaded: benchmarks, prompts, chunks, vLLM's arguments, the fingerprint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_ext.evaluation import EvaluationError
from verl_ext.evaluation.model import Model, find_model
from verl_ext.evaluation.prompts import Prompts, tokenise
from verl_ext.evaluation.questions import Benchmark, Item, chunks_of, items_of, load_benchmarks, parquet_files
from verl_ext.evaluation.shards import Work, visible_devices

CPU_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Options:
    """What the command line says; see its help for each.

    Raises:
        EvaluationError: a value out of its range.
    """

    model: str
    data: list[Path]
    tokenizer: str | None = None
    temperature: float = 0.6
    top_p: float = 1.0
    max_tokens: int = 8192
    samples: int | None = None
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"
    tensor_parallel: int = 1
    data_parallel: int | None = None
    chunk: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float = 0.9
    grading_workers: int = 2
    rules_module: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise EvaluationError(f"--temperature must be 0 or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise EvaluationError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise EvaluationError(f"--gpu-memory-utilization must be in (0, 1], not {self.gpu_memory_utilization}")


@dataclass(frozen=True)
class Plan:
    """An evaluation with everything decided.

    Attributes:
        response_limit: longest response in tokens: `max_tokens`, or less where the model's context ends before.
        chunks: item numbers that are generated, and kept, together.
        devices: accelerators to use, [] on CPU.
        shards: worker processes.
    """

    options: Options
    model: Model
    tokenizer: str
    benchmarks: list[Benchmark]
    prompts: Prompts
    items: list[Item]
    chunks: list[range]
    dtype: str
    max_model_len: int
    devices: list[str] = field(default_factory=list)
    shards: int = 1

    @property
    def response_limit(self) -> int:
        return min(self.options.max_tokens, self.max_model_len - 1)

    def settings(self) -> dict[str, Any]:
        """What decides the generations: two evaluations may share a folder only if all of it is equal."""
        options = self.options
        return {
            "model": self.model.fingerprint,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
            "dtype": self.dtype,
            "chunk": len(self.chunks[0]),
            "prompts": self.prompts.fingerprint(),
            "benchmarks": {benchmark.name: benchmark.fingerprint() for benchmark in self.benchmarks},
        }

    def work(self, model_folder: Path) -> Work:
        """The workers' common part, with the Hugging Face folder of the model."""
        options, cpu = self.options, not self.devices
        engine = {
            "model": str(model_folder),
            "tokenizer": self.tokenizer if options.tokenizer else str(model_folder),
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "tensor_parallel_size": options.tensor_parallel,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "max_num_seqs": options.max_num_seqs or (64 if cpu else 256),
            "enforce_eager": cpu,
            "seed": options.seed & 0x7FFFFFFF,
            "trust_remote_code": False,
        }
        if cpu:
            del engine["gpu_memory_utilization"]  # on CPU the KV cache is VLLM_CPU_KVCACHE_SPACE
            # After a part of a prompt vLLM rewinds the request's generator, which torch's CPU generator cannot do.
            engine["enable_chunked_prefill"] = False
            engine["max_num_batched_tokens"] = max(CPU_BATCH_TOKENS, self.max_model_len)
        grading = {"workers": options.grading_workers, "rules_module": options.rules_module}
        sampling = {"temperature": options.temperature, "top_p": options.top_p}
        return Work(engine, sampling, grading, self._questions(), options.seed)

    def _questions(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {
            b.name: {
                q.key: {
                    "prompt_token_ids": (ids := self.prompts.ids[b.name][q.key]),
                    "max_tokens": min(self.options.max_tokens, self.max_model_len - len(ids)),
                    "ground_truth": q.ground_truth,
                    "think_format": bool(q.extra_info.get("think_format", False)),
                }
                for q in b.questions
            }
            for b in self.benchmarks
        }


def make_plan(options: Options) -> Plan:
    """Decide everything. Raises EvaluationError on input that cannot be used."""
    benchmarks = load_benchmarks(parquet_files(options.data), options.samples, options.limit, options.seed)
    model, devices = find_model(options.model), visible_devices()
    tokenizer = options.tokenizer or str(model.tokenizer)
    prompts = tokenise(benchmarks, tokenizer, options.chat_template_kwargs or {})
    items = items_of(benchmarks)
    chunks = chunks_of(len(items), options.chunk or (256 if devices else 64))
    copies = options.data_parallel or max(1, len(devices) // options.tensor_parallel)
    return Plan(
        options, model, tokenizer, benchmarks, prompts, items, chunks,
        dtype=_dtype(options, model, bool(devices)),
        max_model_len=_max_model_len(options, model, prompts),
        devices=devices,
        shards=min(copies, len(chunks)),
    )  # fmt: skip


def _dtype(options: Options, model: Model, accelerator: bool) -> str:
    if options.dtype != "auto":
        return options.dtype
    return "bfloat16" if accelerator and model.dtype == "float32" else model.dtype


def _max_model_len(options: Options, model: Model, prompts: Prompts) -> int:
    """Tokens of prompt and response together. Raises EvaluationError if a prompt leaves no room for a response."""
    wanted = prompts.longest + options.max_tokens
    if model.context is not None and prompts.longest >= model.context:
        raise EvaluationError(f"the longest prompt has {prompts.longest} tokens, {model.name} takes {model.context}")
    return wanted if model.context is None else min(wanted, model.context)
