"""Step time of a policy against the on-policy baseline, alternating in one run of the real stack on the tiny model.

Odd steps are the policy (for ExGRPO: plan, K - 1 rollouts and a stored trajectory, scoring, mixed loss), even steps the
on-policy baseline (K rollouts, verl's own loss), on the same processes and weights: the learning rate is 0, so that lengths and
pass rates stay put and only the method differs. Medians are over steps after the buffer is warm.

The two draw different questions, whose responses may differ in length by some 10 % over a run (`tokens_ratio`). With
`--same-questions` each on-policy step takes the questions of the ExGRPO step before it, and what is left is the cost of replay.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

WARM_UP = 10
PARTS = {"generation": ("gen",), "scoring": ("score_candidates",), "update": ("old_log_prob", "adv", "update_actor")}


def train(arguments: list[str], same_questions: bool) -> None:
    """In the benchmark's own process: run the trainer with replay switched on and off from step to step."""
    from verl_ext.platform import fork_server, prepare_environment

    worker_command = fork_server.start() if prepare_environment() else None
    import ray
    from omegaconf import OmegaConf
    from verl.trainer.main_ppo import run_ppo

    from recipe.exgrpo.checks.cores import fit_cpus
    from recipe.exgrpo.main import RUNTIME
    from recipe.exgrpo.presets.compose import compose
    from recipe.exgrpo.trainer.task_runner import ExGRPOTaskRunner

    class AlternatingRunner(ExGRPOTaskRunner):
        def run(self, config) -> None:
            register_alternating_trainer(same_questions)
            super().run(config)

    config = compose(arguments)
    if worker_command:
        OmegaConf.update(config, f"{RUNTIME}.py_executable", worker_command, force_add=True)
    fit_cpus(config)
    run_ppo(config, task_runner_class=ray.remote(AlternatingRunner))


def register_alternating_trainer(same_questions: bool) -> None:
    """Register `exgrpo_alternating`: the trainer whose policy changes places with the on-policy baseline on even steps."""
    from functools import partial

    from verl.trainer.ppo.v1.trainer_base import register_trainer
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    from recipe.exgrpo.core.policies.policy import Policy, Slot
    from recipe.exgrpo.trainer.objective import exgrpo_loss
    from recipe.exgrpo.trainer.trainer import ExGRPOTrainer

    class Baseline(Policy):
        """On-policy, on its own questions or on those that are set in `questions`."""

        questions = ()

        def plan(self, size, dataset):
            if not same_questions:
                return super().plan(size, dataset)
            return [Slot(question, self.group_size, planned=True) for question in self.questions]

    @register_trainer("exgrpo_alternating")
    class AlternatingTrainer(ExGRPOTrainer):
        def on_step_begin(self) -> None:
            super().on_step_begin()
            if self.global_steps == 1:
                self.measured, self.baseline = self.policy, Baseline(self.settings, self.group_size)
            self.baseline.questions = [slot.question for slot in self.current.slots.values()]
            self.policy = self.measured if self.global_steps % 2 else self.baseline
            actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
            loss = self.policy.loss
            self.actor_rollout_wg.set_loss_fn(
                partial(ppo_loss, actor) if loss is None else partial(exgrpo_loss, actor, loss)
            )


def overrides(run: Path, args: argparse.Namespace) -> list[str]:
    """The toy configuration with a fixed policy and a buffer that is warm at once."""
    data = run / "data"
    subprocess.run([sys.executable, ROOT / "data/make_toy.py", "data", "--out", data], check=True, stdout=sys.stderr)
    return [
        f"hardware={args.hardware}",
        "trainer.v1.trainer_mode=exgrpo_alternating",
        f"actor_rollout_ref.model.path={ROOT}/data/toy/model",
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/heldout.parquet",
        f"data.train_batch_size={args.questions}",
        "data.max_prompt_length=48",
        "data.max_response_length=64",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={args.questions // 2}",
        "actor_rollout_ref.actor.optim.lr=0",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=512",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=512",
        "actor_rollout_ref.rollout.max_model_len=128",
        "exgrpo.start_threshold=null",
        "exgrpo.bookkeeping.retire=false",
        f"trainer.total_training_steps={args.steps}",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        "trainer.save_freq=-1",
        f"trainer.default_local_dir={run}",
        *args.overrides,
    ]


def figures(rows: list[dict]) -> dict[str, float]:
    """Ratios of median seconds, ExGRPO over on-policy, and the cost of scoring."""
    warm = [row for row in rows if row["step"] > WARM_UP]
    on = [row for row in warm if row["experience/replayed_rows"] > 0]
    off = [row for row in warm if row["step"] % 2 == 0]

    def seconds(some: list[dict], parts: tuple[str, ...]) -> float:
        return median(sum(row[f"timing_s/{part}"] for part in parts) for row in some)

    def tokens(some: list[dict]) -> float:
        return median(row["perf/total_num_tokens"] for row in some)

    result = {"step_ratio": seconds(on, ("step",)) / seconds(off, ("step",))}
    for name, parts in PARTS.items():
        result[f"{name}_s_exgrpo"], result[f"{name}_s_on_policy"] = seconds(on, parts), seconds(off, parts)
    result["generation_ratio"] = result["generation_s_exgrpo"] / result["generation_s_on_policy"]
    result["update_ratio"] = result["update_s_exgrpo"] / result["update_s_on_policy"]
    result["step_s_exgrpo"], result["step_s_on_policy"] = seconds(on, ("step",)), seconds(off, ("step",))
    result["tokens_ratio"] = tokens(on) / tokens(off)
    result["scoring_waste"] = median(row["experience/scoring_waste"] for row in on)
    result["scoring_calls_per_step"] = median(row["experience/scoring_calls"] for row in on)
    result["candidates_per_step"] = median(row["experience/candidates_scored"] for row in on)
    result["steps_measured"] = len(on)
    return result


def show(result: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="ExGRPO against on-policy, median of warm steps", show_header=True)
    for name in ("figure", "value"):
        table.add_column(name)
    for name, value in result.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=70, help=f"training steps; the first {WARM_UP} are not counted")
    parser.add_argument("--questions", type=int, default=16, help="questions per step")
    parser.add_argument(
        "--same-questions", action="store_true", help="on-policy steps take the questions of ExGRPO steps"
    )
    parser.add_argument("--hardware", default="cpu", help="preset of what it runs on (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    parser.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="further hydra overrides")
    args = parser.parse_args()
    if args.train is not None:
        train(args.train, args.same_questions)
        return 0
    with tempfile.TemporaryDirectory(prefix="bench_step_") as folder:
        run, log = Path(folder), Path(folder) / "train.log"
        flags = ["--same-questions"] if args.same_questions else []
        command = [sys.executable, __file__, *flags, "--train", *overrides(run, args)]
        with log.open("w") as out:
            env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT)}
            code = subprocess.run(
                command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, check=False
            ).returncode
        if code:
            print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:]), file=sys.stderr)
            return code
        result = figures([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    show(result)
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
