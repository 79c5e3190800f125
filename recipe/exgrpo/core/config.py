"""Configuration of a policy. The defaults are ExGRPO's as in the paper; all ablations of its Tables 3, 6 and 7 are values here.

The dataclasses mirror the `exgrpo:` node of the run configuration. `ExGRPOConfig.from_mapping` builds them from a plain
mapping and refuses unknown keys, wrong types and nonsense values with one sentence that names the key.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

WEIGHTINGS = ("gaussian", "uniform", "linear", "sqrt", "linear_clip")
EVICTIONS = ("oldest", "highest_entropy", "most_reused")
# What may have changed on resume, by name: of stored experience (checkpoint/resume.py) and of the run (checks/resume.py).
FINGERPRINT = (
    *("model", "tokenizer", "group_size", "policy", "chat_template", "prompt", "temperature", "length"),
    *("data", "loss", "reward", "tools"),
)
LOG_PROB_DTYPES = ("float32", "float16")
BANDS = ("easy", "medium", "hard")


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise ValueError(sentence)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{key} must be one of {', '.join(allowed)}; got {value!r}.")


def _positive_or_none(key: str, value: float | None) -> None:
    _require(value is None or value > 0, f"{key} must be positive, or null for no bound; got {value}.")


@dataclass(frozen=True)
class QuestionConfig:
    """How replayed questions are drawn (Alg. 2).

    `gaussian` weighs the bucket of success count k by exp(-(u - mu)^2 / (2 sigma^2)). With `sigma_unit: count` (the released
    code, which produced the published numbers) u and sigma are in successes and mu, a share of K, is scaled by K; with
    `sigma_unit: accuracy` (the paper's formula) u = k / K; Table 3 varies mu and sigma. `uniform` draws uniformly over
    questions, whatever their bucket (no question selection, Table 6). `linear`, `sqrt` and `linear_clip` weigh by k/K, its
    root, and min(k/K, mu).
    """

    weighting: str = "gaussian"
    mu: float = 0.5
    sigma: float = 1.0
    sigma_unit: str = "count"

    def __post_init__(self) -> None:
        _one_of("exgrpo.question.weighting", self.weighting, WEIGHTINGS)
        _one_of("exgrpo.question.sigma_unit", self.sigma_unit, ("count", "accuracy"))
        _require(0 < self.mu < 1, f"exgrpo.question.mu is a success rate and must be in (0, 1); got {self.mu}.")
        _require(self.sigma > 0, f"exgrpo.question.sigma must be positive; got {self.sigma}.")


@dataclass(frozen=True)
class BookkeepingConfig:
    """What happens to a question after its group was graded (Alg. 1).

    A group of K with s successes retires its question when s = K; updates bucket and buffer when lower < s <= upper
    (`upper: null` means K - 1); and makes the question ineligible when s = 0, unless `keep_unsolved` (released code). With
    `fresh_only` s counts this step's rollouts only, scaled to K, and not the replayed success. `retire_from_start` retires
    solved questions before replay has started as well (released code). `retire_above` retires a question from more than so many
    successes of K on (SU-01: 4 of 8); null is K - 1, all of them.

    `outcome: reward_spread` is for continuous rewards (section 5.3): a question's bucket follows its group's reward standard
    deviation, min-max normalised over the batch, and rollouts above their group's mean are stored. No question retires then;
    `fresh_only`, `retire`, `retire_above` and `success_threshold` have no say.
    """

    outcome: str = "success_count"

    lower: int = 0
    upper: int | None = None
    fresh_only: bool = False
    keep_unsolved: bool = False
    retire: bool = True
    retire_from_start: bool = False
    retire_above: int | None = None
    review_interval: int = 0
    review_share: float = 0.1
    success_threshold: float = 0.5

    def __post_init__(self) -> None:
        _one_of("exgrpo.bookkeeping.outcome", self.outcome, ("success_count", "reward_spread"))
        _require(self.lower >= 0, f"exgrpo.bookkeeping.lower must be at least 0; got {self.lower}.")
        _require(
            self.upper is None or self.upper > self.lower,
            f"exgrpo.bookkeeping.upper must exceed exgrpo.bookkeeping.lower ({self.lower}); got {self.upper}.",
        )
        _require(
            self.retire_above is None or self.retire_above >= 1,
            f"exgrpo.bookkeeping.retire_above is a number of successes, at least 1, or null; got {self.retire_above}.",
        )
        _require(
            self.retire_above is None or self.outcome == "success_count",
            "exgrpo.bookkeeping.retire_above counts successes: it needs exgrpo.bookkeeping.outcome=success_count.",
        )
        _require(
            self.review_interval >= 0,
            f"exgrpo.bookkeeping.review_interval is in steps, 0 for never; got {self.review_interval}.",
        )
        _require(
            0 < self.review_share <= 1,
            f"exgrpo.bookkeeping.review_share must be in (0, 1]; got {self.review_share}.",
        )


@dataclass(frozen=True)
class BufferConfig:
    """Bounds of the experience buffer; all off by default, as in the paper."""

    max_bytes: int | None = None
    max_per_question: int | None = None
    max_age_steps: int | None = None
    max_reuse: int | None = None
    cooldown_steps: int = 0
    eviction: str = "oldest"
    log_prob_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_per_question", "max_age_steps", "max_reuse"):
            _positive_or_none(f"exgrpo.buffer.{name}", getattr(self, name))
        _require(
            self.cooldown_steps >= 0, f"exgrpo.buffer.cooldown_steps must be at least 0; got {self.cooldown_steps}."
        )
        _one_of("exgrpo.buffer.eviction", self.eviction, EVICTIONS)
        _one_of("exgrpo.buffer.log_prob_dtype", self.log_prob_dtype, LOG_PROB_DTYPES)


@dataclass(frozen=True)
class LossConfig:
    """The mixed-policy objective (Eq. 4).

    `shaping: policy` is f(w) = w / (w + beta); `none` is f(w) = w; `clip` is the PPO clip on w (both Table 6).
    `importance: past` divides by the stored pi_past; `old` by pi_old (Table 6: no IS correction).
    `fresh_clip: always` clips fresh tokens (Eq. 4); `never` does not (Table 4, App. D.1 and D.4); `before_replay` stops once
    replay is on (released code).
    `denominator: all` divides by the number of all sequences of a step's update, those without a gradient included; `mixed`
    leaves groups whose rewards do not differ out of that number, and out of the entropy and KL terms, to which alone they
    would add: as if they had not been sampled.
    `scale: dr_grpo` divides the sum over a sequence's tokens by a constant length and by the number of sequences. `released`
    is the released code's: the policy term is not divided by the number of sequences on a rank, and the entropy term is a mean
    over the tokens of a micro-batch, summed over micro-batches (so it depends on how rows are packed).
    """

    shaping: str = "policy"
    beta: float = 0.1
    importance: str = "past"
    fresh_clip: str = "always"
    denominator: str = "all"
    scale: str = "dr_grpo"

    def __post_init__(self) -> None:
        _one_of("exgrpo.loss.shaping", self.shaping, ("policy", "none", "clip"))
        _require(self.beta > 0, f"exgrpo.loss.beta must be positive; got {self.beta}.")
        _one_of("exgrpo.loss.importance", self.importance, ("past", "old"))
        _one_of("exgrpo.loss.fresh_clip", self.fresh_clip, ("always", "before_replay", "never"))
        _one_of("exgrpo.loss.denominator", self.denominator, ("all", "mixed"))
        _one_of("exgrpo.loss.scale", self.scale, ("dr_grpo", "released"))
        _require(
            self.denominator == "all" or self.scale == "dr_grpo",
            "exgrpo.loss.denominator=mixed is a number of sequences, by which exgrpo.loss.scale=released does not divide.",
        )


@dataclass(frozen=True)
class MaskConfig:
    """Masked GRPO (App. F.1, `exgrpo.policy: masked`): only groups of this band of success rates k/K reach the gradient.

    `easy` is [0.75, 1), `medium` (0.25, 0.75], `hard` (0, 0.25].
    """

    band: str = "medium"

    def __post_init__(self) -> None:
        _one_of("exgrpo.mask.band", self.band, BANDS)


@dataclass(frozen=True)
class RefillConfig:
    """Zero-variance refill (`exgrpo.policy: refill`, ours): past successes take the places of zero-variance groups.

    What is drawn is the successes of one earlier mixed group with k of K solved: at most `max_age_steps` old, at most
    `reps` times, with weight (1 - k/K)^power (rank `rarity`). `source: current` is the control without past data: this
    step's own successes are trained on twice instead.
    """

    reps: int = 3
    max_age_steps: int = 20
    power: float = 4.0
    source: str = "past"

    def __post_init__(self) -> None:
        for name in ("reps", "max_age_steps"):
            _require(getattr(self, name) >= 1, f"exgrpo.refill.{name} must be at least 1; got {getattr(self, name)}.")
        _require(self.power >= 0, f"exgrpo.refill.power must be at least 0; got {self.power}.")
        _one_of("exgrpo.refill.source", self.source, ("past", "current"))


@dataclass(frozen=True)
class RowsConfig:
    """Stored trajectories as rows of their own (docs/methods.md has each policy's keys).

    `extra`: so many rows on top of the batch, as a share of its rows; 0: in the rows of zero-variance groups instead.
    `max_drift` bounds the mean squared change of a stored group's log-probs (gate `drift`, squared nats), and `capacity` the
    groups that are kept, in batches of questions, first in, first out (policy `headroom`). `alpha` is the exponent of
    priorities, and `decay_steps` the age, in steps, at which one has fallen to 1/e (ranks `advantage`, `fresh`; policy
    `anchored`). `per_question` stored rollouts come back with their question (policy `repo`).
    """

    extra: float = 0.0
    max_drift: float = 1e-3
    capacity: float = 2.0
    alpha: float = 0.5
    decay_steps: float = 500.0
    per_question: int = 8

    def __post_init__(self) -> None:
        _require(
            0 <= self.extra <= 1,
            f"exgrpo.rows.extra is a share of the batch's rows and must be in [0, 1]; got {self.extra}.",
        )
        for name in ("max_drift", "capacity", "decay_steps"):
            _require(getattr(self, name) > 0, f"exgrpo.rows.{name} must be positive; got {getattr(self, name)}.")
        _require(self.alpha >= 0, f"exgrpo.rows.alpha must be at least 0 (0: uniform); got {self.alpha}.")
        _require(
            self.per_question >= 2,
            f"exgrpo.rows.per_question must be at least 2: advantages are among them; got {self.per_question}.",
        )


@dataclass(frozen=True)
class PromptsConfig:
    """Prompt replay (`exgrpo.policy: prompts`, arXiv 2603.21177): pass rates, bounds included, at which a question is kept.

    `low: 0` and `high: 0.499` is the buffer of hard questions of ZPPO (2606.18216), without its teacher.
    """

    low: float = 0.25
    high: float = 0.75

    def __post_init__(self) -> None:
        _require(0 <= self.high < 1, f"exgrpo.prompts.high is a pass rate and must be in [0, 1); got {self.high}.")
        _require(
            0 <= self.low <= self.high,
            f"exgrpo.prompts.low must be in [0, exgrpo.prompts.high = {self.high}]; got {self.low}.",
        )


@dataclass(frozen=True)
class ExperienceConfig:
    """Experience from elsewhere, read into the store of a new run before its first step (docs/experience.md).

    `init_from`: parquet or JSON-lines files of traces, and saved states (`global_step_N`, or what `exgrpo experience import`
    wrote). Every trace is rendered, regraded and deduplicated; failures are left out unless `keep_failures`, what is longer
    than `data.max_response_length` unless `overlong: cut`, and a row that cannot be read ends the run unless `skip_bad`.
    `importance` is for log-probs that are missing: `scored` computes them once with the start policy, `none` takes pi_past = 1,
    so that w is pi_theta itself (LUFFY).
    """

    init_from: tuple[str, ...] = ()
    importance: str = "scored"
    overlong: str = "refuse"
    keep_failures: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        _one_of("exgrpo.experience.importance", self.importance, ("scored", "none"))
        _one_of("exgrpo.experience.overlong", self.overlong, ("refuse", "cut"))


@dataclass(frozen=True)
class RuntimeConfig:
    """Guards and plumbing that the paper does not have.

    `max_grad_norm`: updates above it, or not finite, are skipped and counted. `stall_timeout_s`: seconds without progress
    in a rollout or weight sync after which the run ends with an error; null waits for ever. `score_max_tokens`: tokens per
    device in one forward pass of candidate scoring; null takes verl's log-prob budget. `seeded_rollouts`: every request gets
    a sampling seed of its own from (seed, step, question, session), so that a run can be repeated; slower on GPUs.
    `stop_grace_s`: seconds that SIGTERM, SIGINT and SIGUSR1 leave a run to finish its step and save; null: as long as it takes.
    `history_mb`: largest size of `history.jsonl`, outcomes and replay decisions of every step for `exgrpo browse`; beyond it
    the oldest half goes. null: none is written. `tool_timeout_s`: seconds that a call of a tool may take.
    """

    max_grad_norm: float | None = 500.0
    stall_timeout_s: float | None = 1800.0
    poll_min_s: float = 0.05
    poll_max_s: float = 2.0
    score_max_tokens: int | None = None
    seeded_rollouts: bool = False
    stop_grace_s: float | None = 900.0
    history_mb: float | None = 64.0
    tool_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_grad_norm", "stall_timeout_s", "score_max_tokens", "stop_grace_s", "history_mb"):
            _positive_or_none(f"exgrpo.runtime.{name}", getattr(self, name))
        _require(self.tool_timeout_s > 0, f"exgrpo.runtime.tool_timeout_s must be positive; got {self.tool_timeout_s}.")
        _require(
            0 < self.poll_min_s <= self.poll_max_s,
            f"exgrpo.runtime.poll_min_s must be positive and at most poll_max_s ({self.poll_max_s}); "
            f"got {self.poll_min_s}.",
        )


@dataclass(frozen=True)
class ExGRPOConfig:
    """What a policy is configured by; the defaults are the paper's ExGRPO.

    `policy` is a name of `core.policies.POLICIES` (docs/methods.md) or the import path `package.module:Class` of a policy that
    lives elsewhere, whose own settings are `options`. `admit`, `rank`, `gate` and `place` replace one rule of
    a policy by another, by name (core/policies/rules.py) or import path; null is the policy's own.

    `inject: false` is a control: the questions of the buffer are drawn as ever, but all K rollouts are fresh and no stored
    trajectory enters the update. `dynamic_sampling` replaces groups whose rewards do not differ by those of further questions
    until the step is full (DAPO); in a run it is verl's `algorithm.filter_groups` that does. `rho` is the largest share of a
    step's questions taken from the buffer; `start_threshold` the batch Pass@1 after which replay and collection begin (null:
    at once); `seed` feeds the one generator behind every draw. On resume, `resume_without_experience` accepts a checkpoint
    without experience, `resume_fall_back` a damaged one by going back to the newest intact one, and `resume_allow` names what
    may have changed.
    """

    policy: str = "exgrpo"
    admit: str | None = None
    rank: str | None = None
    gate: str | None = None
    place: str | None = None
    inject: bool = True
    dynamic_sampling: bool = False
    seed: int = 0
    rho: float = 0.5
    start_threshold: float | None = 0.35
    resume_without_experience: bool = False
    resume_fall_back: bool = False
    resume_allow: tuple[str, ...] = ()
    question: QuestionConfig = field(default_factory=QuestionConfig)
    bookkeeping: BookkeepingConfig = field(default_factory=BookkeepingConfig)
    buffer: BufferConfig = field(default_factory=BufferConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    refill: RefillConfig = field(default_factory=RefillConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    experience: ExperienceConfig = field(default_factory=ExperienceConfig)
    options: dict | None = None
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.rho <= 1, f"exgrpo.rho is a share of the batch and must be in [0, 1]; got {self.rho}.")
        for name in self.resume_allow:
            _one_of("exgrpo.resume_allow", name, FINGERPRINT)
        _require(self.seed >= 0, f"exgrpo.seed must be at least 0; got {self.seed}.")
        _require(
            self.start_threshold is None or 0 <= self.start_threshold < 1,
            f"exgrpo.start_threshold is a pass rate in [0, 1), or null to start at once; got {self.start_threshold}.",
        )

    @classmethod
    def from_mapping(cls, values: Mapping) -> "ExGRPOConfig":
        """Build from a nested mapping; raises ValueError naming the key for unknown keys and wrong types."""
        return build(cls, values, "exgrpo")


def build(cls: type, values: Mapping, path: str):
    """The dataclass `cls` from a nested mapping; `path` is what its keys are called in messages.

    Raises ValueError naming the key for unknown keys (with the nearest known one) and wrong types.
    """
    _require(isinstance(values, Mapping), f"{path} must be a mapping of keys to values; got {values!r}.")
    fields = [f.name for f in dataclasses.fields(cls)]
    hints = typing.get_type_hints(cls)
    for name in sorted(set(values) - set(fields), key=str):
        raise ValueError(f"{path}.{name} is not a key; {nearest(name, fields)}.")
    return cls(**{name: _convert(hints[name], value, f"{path}.{name}") for name, value in values.items()})


def nearest(name: object, known: Iterable[str]) -> str:
    """A clause that helps someone who wrote `name`: the nearest of `known`, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def _convert(hint: type, value, path: str):
    """Check `value` against a field's type; an int is taken for a float, nothing else is converted."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if typing.get_origin(hint) is tuple:
        _require(isinstance(value, list | tuple), f"{path} must be a list; got {value!r}.")
        return tuple(_convert(typing.get_args(hint)[0], item, path) for item in value)
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, bool):
        _require(bool in allowed, f"{path} must be {_names(allowed)}; got {value!r}.")
        return value
    if float in allowed and isinstance(value, int | float):
        _require(math.isfinite(value), f"{path} must be a finite number; got {value!r}.")
        return float(value)
    _require(isinstance(value, allowed), f"{path} must be {_names(allowed)}; got {value!r}.")
    return value


def _names(allowed: tuple[type, ...]) -> str:
    return " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
