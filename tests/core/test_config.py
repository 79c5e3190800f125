"""The configuration: the paper's defaults, stated once here, and refusals that name their key."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.core.config import BookkeepingConfig, ExGRPOConfig, LossConfig, QuestionConfig

# arXiv 2510.02245, sections 4 and 5 and appendix; sigma in counts as in the code that produced the published numbers.
PAPER = {
    "policy": "exgrpo",
    "inject": True,
    "rho": 0.5,
    "start_threshold": 0.35,
    "question": {"weighting": "gaussian", "mu": 0.5, "sigma": 1.0, "sigma_unit": "count"},
    # The policy's own rules: successes of partly solved groups, lowest entropy, all of them, planned places.
    "admit": None,
    "rank": None,
    "gate": None,
    "place": None,
    "bookkeeping": {
        "outcome": "success_count",
        "lower": 0,
        "upper": None,
        "fresh_only": False,
        "keep_unsolved": False,
        "retire": True,
        "retire_from_start": False,
        "retire_above": None,
        "review_interval": 0,
        "review_share": 0.1,
        "success_threshold": 0.5,
    },
    "buffer": {
        "max_bytes": None,
        "max_per_question": None,
        "max_age_steps": None,
        "max_reuse": None,
        "cooldown_steps": 0,
        "eviction": "oldest",
        "log_prob_dtype": "float32",
    },
    "loss": {
        "shaping": "policy",
        "beta": 0.1,
        "importance": "past",
        "fresh_clip": "always",
        "denominator": "all",
        "scale": "dr_grpo",
    },
}
# Not in the paper: our own guards and plumbing.
OURS = {
    "dynamic_sampling": False,
    "mask": {"band": "medium"},
    "refill": {"reps": 3, "max_age_steps": 20, "power": 4.0, "source": "past"},
    "rows": {
        "extra": 0.0,
        "max_drift": 1e-3,
        "capacity": 2.0,
        "alpha": 0.5,
        "decay_steps": 500.0,
        "per_question": 8,
    },
    "prompts": {"low": 0.25, "high": 0.75},
    "experience": {
        "init_from": (),
        "importance": "scored",
        "overlong": "refuse",
        "keep_failures": False,
        "skip_bad": False,
    },
    "options": None,
    "seed": 0,
    "resume_without_experience": False,
    "resume_fall_back": False,
    "resume_allow": (),
    "runtime": {
        "max_grad_norm": 500.0,  # the paper's bound
        "stall_timeout_s": 1800.0,
        "poll_min_s": 0.05,
        "poll_max_s": 2.0,
        "score_max_tokens": None,
        "seeded_rollouts": False,
        "stop_grace_s": 900.0,
        "history_mb": 64.0,
        "tool_timeout_s": 30.0,
    },
}
PAPER_TRAINING = {
    "data.train_batch_size": 128,
    "data.max_prompt_length": 1024,
    "data.max_response_length": 8192,
    "algorithm.norm_adv_by_std_in_grpo": False,
    "algorithm.use_kl_in_reward": False,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 64,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 32768,
    "actor_rollout_ref.actor.use_dynamic_bsz": True,
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum-norm",
    "actor_rollout_ref.actor.loss_scale_factor": 8192,
    "actor_rollout_ref.actor.entropy_coeff": 0.001,
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    "actor_rollout_ref.actor.optim.clip_grad": 1.0,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 2,
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.75,
    "actor_rollout_ref.rollout.val_kwargs.temperature": 0.6,
    "actor_rollout_ref.rollout.val_kwargs.top_p": 1.0,
    "actor_rollout_ref.rollout.val_kwargs.do_sample": True,
    "trainer.nnodes": 1,
    "trainer.n_gpus_per_node": 8,
    "trainer.test_freq": 10,
    "trainer.save_freq": 50,
    "trainer.total_training_steps": 500,
}
YAML = Path(__file__).parents[2] / "recipe" / "exgrpo" / "config" / "exgrpo_trainer.yaml"


def leaves(mapping, path="exgrpo"):
    for name, value in mapping.items():
        value = tuple(value) if isinstance(value, list) else value  # yaml has no tuples
        yield from leaves(value, f"{path}.{name}") if isinstance(value, dict) else [(f"{path}.{name}", value)]


def nested(path, value):
    """{"question": {"mu": value}} for "exgrpo.question.mu"."""
    for name in reversed(path.split(".")[1:]):
        value = {name: value}
    return value


LEAVES = dict(leaves(PAPER | OURS))
NULLABLE = {
    "exgrpo.start_threshold",
    "exgrpo.options",
    *(f"exgrpo.{rule}" for rule in ("admit", "rank", "gate", "place")),
    "exgrpo.bookkeeping.upper",
    "exgrpo.bookkeeping.retire_above",
    *(f"exgrpo.buffer.{name}" for name in ("max_bytes", "max_per_question", "max_age_steps", "max_reuse")),
    *(f"exgrpo.runtime.{name}" for name in ("max_grad_norm", "stall_timeout_s", "score_max_tokens", "stop_grace_s")),
    "exgrpo.runtime.history_mb",
}


def test_defaults_are_the_papers():
    assert dict(leaves(dataclasses.asdict(ExGRPOConfig()))) == LEAVES


def test_yaml_states_the_same_defaults_key_by_key():
    yaml = OmegaConf.to_container(OmegaConf.load(YAML).exgrpo, resolve=True)
    assert dict(leaves(yaml)) == LEAVES
    assert ExGRPOConfig.from_mapping(yaml) == ExGRPOConfig()


def test_yaml_holds_the_papers_training_settings(compose):
    config = compose("hardware=gpu")
    assert {key: OmegaConf.select(config, key) for key in PAPER_TRAINING} == PAPER_TRAINING


def test_an_empty_mapping_gives_the_defaults():
    assert ExGRPOConfig.from_mapping({}) == ExGRPOConfig()


@pytest.mark.parametrize(
    "values",
    [
        # Table 6: what is selected, and how it is learnt from
        {"question": {"weighting": "uniform"}},
        {"rank": "random"},
        {"question": {"weighting": "uniform"}, "rank": "random"},
        {"rank": "highest_entropy"},
        {"loss": {"shaping": "none"}},
        {"loss": {"shaping": "clip"}},
        {"loss": {"importance": "old"}},
        {"loss": {"beta": 0.5}},
        # Table 3, the sensitivity to the Gaussian, and the share of replayed questions
        {"rho": 0.25},
        {"rho": 0.75},
        {"question": {"sigma": 1.5}},
        {"question": {"sigma": 0.5}},
        {"question": {"mu": 0.25}},
        {"question": {"sigma_unit": "accuracy"}},
        # Table 7, the released code, and the matched on-policy baseline
        {"bookkeeping": {"review_interval": 25, "review_share": 0.1}},
        {"bookkeeping": {"keep_unsolved": True}, "loss": {"fresh_clip": "before_replay"}},
        {"bookkeeping": {"retire_from_start": True}, "loss": {"scale": "released"}},
        {"bookkeeping": {"retire_above": 4, "fresh_only": True}, "admit": "lone_success"},
        {"start_threshold": None},
        {"policy": "on_policy"},
        # Section 5.3, App. F.1, and what nobody published
        {"bookkeeping": {"outcome": "reward_spread"}, "start_threshold": None},
        {"policy": "masked", "mask": {"band": "hard"}},
        {"policy": "refill", "refill": {"reps": 2}},
        {"policy": "refill", "refill": {"source": "current"}},
        {"policy": "headroom", "rows": {"extra": 0.5, "max_drift": 1e-2}},
        {"policy": "anchored", "rank": "fresh", "rows": {"alpha": 1.0, "decay_steps": 50.0}},
        {"policy": "prompts", "prompts": {"low": 0.0, "high": 0.499}},
        {"inject": False},
        {"rho": 0.0},
    ],
    ids=str,
)
def test_every_ablation_is_a_value(values):
    config = ExGRPOConfig.from_mapping(values)
    assert dict(leaves(dataclasses.asdict(config))) == LEAVES | dict(leaves(values))
    assert config != ExGRPOConfig()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("exgrpo.rho", -0.1),
        ("exgrpo.resume_allow", ["weights"]),
        ("exgrpo.rho", 1.01),
        ("exgrpo.seed", -1),
        ("exgrpo.rows.extra", 1.1),
        ("exgrpo.rows.max_drift", 0.0),
        ("exgrpo.rows.capacity", 0.0),
        ("exgrpo.rows.decay_steps", 0.0),
        ("exgrpo.rows.alpha", -0.1),
        ("exgrpo.rows.per_question", 1),
        ("exgrpo.prompts.low", 0.8),
        ("exgrpo.prompts.high", 1.0),
        ("exgrpo.start_threshold", 1.0),
        ("exgrpo.start_threshold", -0.1),
        ("exgrpo.question.weighting", "gauss"),
        ("exgrpo.question.mu", 0.0),
        ("exgrpo.question.mu", 1.0),
        ("exgrpo.question.sigma", 0.0),
        ("exgrpo.question.sigma_unit", "percent"),
        ("exgrpo.bookkeeping.lower", -1),
        ("exgrpo.bookkeeping.upper", 0),
        ("exgrpo.bookkeeping.review_interval", -1),
        ("exgrpo.bookkeeping.review_share", 0.0),
        ("exgrpo.bookkeeping.review_share", 1.1),
        ("exgrpo.buffer.max_bytes", 0),
        ("exgrpo.buffer.max_per_question", 0),
        ("exgrpo.buffer.max_age_steps", -3),
        ("exgrpo.buffer.max_reuse", 0),
        ("exgrpo.buffer.cooldown_steps", -1),
        ("exgrpo.buffer.eviction", "newest"),
        ("exgrpo.buffer.log_prob_dtype", "bfloat16"),
        ("exgrpo.bookkeeping.outcome", "std"),
        ("exgrpo.mask.band", "all"),
        ("exgrpo.refill.reps", 0),
        ("exgrpo.refill.max_age_steps", 0),
        ("exgrpo.refill.power", -1.0),
        ("exgrpo.refill.source", "future"),
        ("exgrpo.loss.shaping", "sigmoid"),
        ("exgrpo.loss.beta", 0.0),
        ("exgrpo.loss.importance", "none"),
        ("exgrpo.loss.fresh_clip", True),
        ("exgrpo.loss.fresh_clip", "after"),
        ("exgrpo.loss.scale", "mean"),
        ("exgrpo.runtime.max_grad_norm", 0.0),
        ("exgrpo.runtime.stall_timeout_s", -1.0),
        ("exgrpo.runtime.score_max_tokens", 0),
        ("exgrpo.runtime.stop_grace_s", 0.0),
        ("exgrpo.runtime.tool_timeout_s", 0.0),
        ("exgrpo.runtime.poll_min_s", 0.0),
        ("exgrpo.runtime.poll_min_s", 3.0),
    ],
)
def test_nonsense_is_refused_in_a_sentence_naming_the_key(path, value):
    with pytest.raises(ValueError, match=rf"{path} .*\.$"):
        ExGRPOConfig.from_mapping(nested(path, value))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExGRPOConfig(rho=float("nan")),
        lambda: QuestionConfig(mu=float("nan")),
        lambda: QuestionConfig(sigma=float("nan")),
        lambda: BookkeepingConfig(lower=3, upper=3),
        lambda: LossConfig(beta=-1.0),
    ],
)
def test_dataclasses_refuse_without_the_mapping_too(make):
    with pytest.raises(ValueError, match="exgrpo"):
        make()


@pytest.mark.parametrize("path", LEAVES)
def test_a_wrong_type_names_its_key(path):
    for value in (object(), [1], {"a": 1}, float("inf"), float("nan")):
        if path == "exgrpo.options" and isinstance(value, dict):
            continue
        with pytest.raises(ValueError, match=path):
            ExGRPOConfig.from_mapping(nested(path, value))


@pytest.mark.parametrize("path", LEAVES)
def test_null_is_for_bounds_only(path):
    if path in NULLABLE:
        assert dict(leaves(dataclasses.asdict(ExGRPOConfig.from_mapping(nested(path, None)))))[path] is None
    else:
        with pytest.raises(ValueError, match=path):
            ExGRPOConfig.from_mapping(nested(path, None))


@pytest.mark.parametrize("path", [path for path, value in LEAVES.items() if isinstance(value, bool | int | float)])
def test_bools_and_numbers_are_not_mixed_up_and_text_is_no_number(path):
    for value in ("1", 1 if isinstance(LEAVES[path], bool) else True):
        with pytest.raises(ValueError, match=path):
            ExGRPOConfig.from_mapping(nested(path, value))


def test_an_integer_is_taken_for_a_float_but_a_fraction_not_for_an_integer():
    sigma = ExGRPOConfig.from_mapping({"question": {"sigma": 2}}).question.sigma
    assert (sigma, type(sigma)) == (2.0, float)
    with pytest.raises(ValueError, match=r"exgrpo\.bookkeeping\.lower must be int"):
        ExGRPOConfig.from_mapping({"bookkeeping": {"lower": 0.5}})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rhoo": 0.5}, "exgrpo.rhoo"),
        ({"question": {"tau": 1}}, "exgrpo.question.tau"),
        ({7: 1, "rhoo": 2}, "exgrpo.7"),
        ({"question": "gaussian"}, "exgrpo.question"),
        ({"buffer": None}, "exgrpo.buffer"),
    ],
)
def test_unknown_keys_and_missing_nodes_are_named(values, named):
    with pytest.raises(ValueError, match=named):
        ExGRPOConfig.from_mapping(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rhoo": 0.5}, r"exgrpo\.rhoo is not a key; did you mean rho\?"),
        ({"question": {"sigm": 1}}, r"exgrpo\.question\.sigm is not a key; did you mean sigma\?"),
        ({"refil": {}}, r"exgrpo\.refil is not a key; did you mean refill\?"),
        ({"mask": {"xx": 1}}, r"exgrpo\.mask\.xx is not a key; known: band"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(values, words):
    with pytest.raises(ValueError, match=words):
        ExGRPOConfig.from_mapping(values)


def test_options_are_left_to_the_policy():
    assert ExGRPOConfig.from_mapping({"options": {"depth": {"of": [1]}}}).options == {"depth": {"of": [1]}}
    for value in (3, "depth", [1], True):
        with pytest.raises(ValueError, match=r"exgrpo\.options must be dict or null"):
            ExGRPOConfig.from_mapping({"options": value})


def test_settings_cannot_be_changed_behind_the_validation():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExGRPOConfig().rho = 2.0
