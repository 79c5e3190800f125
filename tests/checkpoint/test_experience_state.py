"""Experience in a run's checkpoints: saved and resumed for every policy, and refused where it no longer fits the run."""

import logging
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.checkpoint.errors import CorruptState, MismatchedState
from recipe.exgrpo.checkpoint.experience_state import ExperienceState
from recipe.exgrpo.checkpoint.resume import RUN_KEYS, Current
from recipe.exgrpo.checkpoint.stored import problems_of
from recipe.exgrpo.core.buffer import Origin, Provenance, Response, prompt_hash
from recipe.exgrpo.core.config import FINGERPRINT, ExGRPOConfig
from recipe.exgrpo.core.policies import POLICIES, make_policy

K = 4
PROMPTS = {f"q{i}": [i, i + 1] for i in range(6)}
NOW = Current("template", 1.0, 10, lambda question: prompt_hash(PROMPTS[question]))
STORING = [name for name in POLICIES if make_policy(ExGRPOConfig(policy=name), K).store is not None]
STORED = 12  # trajectories of `trained`: two for each question, of 3 and 5 tokens


def state_of(root, *, vocabulary="abc", layers=2, group_size=K, resume_path=None, **settings) -> ExperienceState:
    """What the driver makes of its run configuration, tokenizer and model."""
    resume = {"resume_mode": "resume_path", "resume_from_path": str(resume_path)} if resume_path else {}
    config = OmegaConf.create(
        {
            "trainer": {"default_local_dir": str(root), "resume_mode": "auto"} | resume,
            "actor_rollout_ref": {"rollout": {"n": group_size}},
        }
    )
    tokenizer = SimpleNamespace(get_vocab=lambda: {token: i for i, token in enumerate(vocabulary)})
    model = SimpleNamespace(model_type="qwen2", hidden_size=8, num_hidden_layers=layers, vocab_size=3)
    return ExperienceState(config, ExGRPOConfig(**settings), tokenizer, model)


def trained(policy="exgrpo", origin=NOW.origin):
    """A policy of this name whose store has something of everything."""
    made = make_policy(ExGRPOConfig(policy=policy, start_threshold=None), K)
    made.rng.random(5)
    made.store.origin = origin
    for question, prompt in PROMPTS.items():
        made.store.record(question, 2)
        group = Provenance(made.store.new_group(), successes=2, size=K, advantage=0.5)
        for length in (3, 5):
            ids = np.arange(length) + prompt[0]
            response = Response(ids, -np.ones(length), ids % 2 == 0, prompt)
            made.store.add(question, response, 1.0, 1, provenance=group, keep_prompt=policy == "refill")
    made.store.retire("gone")
    return made


def untrained(policy="exgrpo", group_size=K):
    made = make_policy(ExGRPOConfig(policy=policy), group_size)
    if made.store is not None:
        made.store.origin = Origin("rollout", "of this run", 0.5)
    return made


def resumed(root, current=NOW, policy="exgrpo", known=("gone", *PROMPTS), group_size=K, **changes):
    """A fresh policy of a run that resumes step 5."""
    found = untrained(policy, group_size)
    state_of(root, policy=policy, group_size=group_size, **changes).load(5, found, known, current)
    return found


@pytest.fixture
def root(tmp_path):
    """A run with ExGRPO that was saved after step 5."""
    state_of(tmp_path).save(5, trained())
    return tmp_path


@pytest.mark.parametrize("policy", STORING)
def test_a_policy_goes_on_where_it_was(tmp_path, policy):
    before = trained(policy)
    state_of(tmp_path, policy=policy).save(5, before)
    after = resumed(tmp_path, policy=policy)
    (arrays, meta), (found, found_meta) = before.store.state(), after.store.state()
    assert meta == found_meta
    for name, column in arrays.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    assert after.state_dict() == before.state_dict()
    assert after.active
    assert after.store.origin == Origin("rollout", "of this run", 0.5)
    assert after.store.new_group() == before.store.new_group()


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - set(STORING)))
def test_a_policy_without_a_store_saves_and_loads_nothing(tmp_path, policy):
    state_of(tmp_path, policy=policy).save(5, untrained(policy))
    assert not list(tmp_path.iterdir())
    assert resumed(tmp_path, policy=policy).store is None


@pytest.mark.parametrize("policy", STORING)
def test_damage_is_refused_and_fallen_back_from(tmp_path, policy, caplog):
    state, saved = state_of(tmp_path, policy=policy), trained(policy)
    state.save(3, saved)
    saved.rng.random()
    state.save(5, saved)
    rows = tmp_path / "global_step_5/experience/rows.safetensors"
    raw = bytearray(rows.read_bytes())
    raw[-1] ^= 1
    rows.write_bytes(raw)
    with pytest.raises(CorruptState, match="SHA-256"):
        resumed(tmp_path, policy=policy)
    assert [type(problem) for problem in problems_of(tmp_path / "global_step_5")] == [CorruptState]
    with caplog.at_level(logging.ERROR):
        found = resumed(tmp_path, policy=policy, resume_fall_back=True)
    assert f"LOST EXPERIENCE: {rows}" in caplog.text
    assert found.store.stats(5)["trajectories"] == STORED


@pytest.mark.parametrize("policy", STORING)
def test_a_checkpoint_without_experience_is_refused_unless_allowed(tmp_path, policy, caplog):
    (tmp_path / "global_step_5/actor").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"global_step_5.*exgrpo.resume_without_experience=true"):
        resumed(tmp_path, policy=policy)
    found = resumed(tmp_path, policy=policy, resume_without_experience=True)
    assert found.store.stats(5)["trajectories"] == 0
    assert "no experience" in caplog.text


def test_a_policy_state_that_does_not_fit_is_an_error_of_the_checkpoint(tmp_path):
    broken = trained()
    broken.state_dict = lambda: {"something": "else"}
    state_of(tmp_path).save(5, broken)
    with pytest.raises(CorruptState, match="policy state does not fit exgrpo"):
        resumed(tmp_path)


def test_experience_is_pruned_with_the_actor(tmp_path):
    state = state_of(tmp_path)
    for step in (1, 2, 3):
        state.save(step, trained())
    for step in (2, 3):
        (tmp_path / f"global_step_{step}/actor").mkdir()
    state.prune()
    assert sorted(path.parent.name for path in tmp_path.glob("*/experience")) == ["global_step_2", "global_step_3"]


def test_a_named_checkpoint_is_resumed_from_where_it_is(root, tmp_path):
    shutil.move(root / "global_step_5", tmp_path / "elsewhere" / "global_step_5")
    found = resumed(root, resume_path=tmp_path / "elsewhere/global_step_5")
    assert found.store.stats(5)["trajectories"] == STORED


def test_questions_that_left_the_dataset_are_discarded_before_their_prompts_are_asked_for(root):
    found = resumed(root, known=["q1", "q2"], current=current_with(lambda question: prompt_hash(PROMPTS[question])))
    assert sorted(found.store.questions()) == ["q1", "q2"]


# ---- what no longer fits


def current_with(hashes=NOW.prompt_hash, template="template", temperature=1.0, longest=10) -> Current:
    return Current(template, temperature, longest, hashes)


def other_prompt(question: str) -> int:
    """Two of six questions are put differently today."""
    return prompt_hash([99]) if question in ("q1", "q4") else NOW.prompt_hash(question)


# key -> (what the resuming run is like, what the refusal says, trajectories left if it is accepted)
CHANGES = {
    "model": ({"layers": 3}, r"saved with model 'qwen2-8-2-3', this run has 'qwen2-8-3-3'", STORED),
    "tokenizer": ({"vocabulary": "abd"}, r"saved with tokenizer '.{64}', this run has .*drops all trajectories", 0),
    "group_size": ({"group_size": 8}, r"saved with group_size 4, this run has 8; accepting scales", STORED),
    "policy": ({"policy": "refill"}, r"saved with policy 'exgrpo', this run has 'refill'", STORED),
    "chat_template": ({"current": current_with(template="new")}, "12 of 12 trajectories .* another chat template", STORED),
    "temperature": ({"current": current_with(temperature=0.6)}, "12 of 12 .* not sampled at temperature 0.6", STORED),
    "prompt": ({"current": current_with(other_prompt)}, "4 of 12 trajectories answer a prompt that has changed", 8),
    "tools": ({"current": replace(NOW, tools="abc")}, "12 of 12 .* with other tools or other limits", STORED),
    "length": ({"current": current_with(longest=4)}, r"6 of 12 .* longer than data.max_response_length=4", 6),
}  # fmt: skip


def test_every_key_is_tested():
    assert set(CHANGES) == set(FINGERPRINT) - {"data", "loss", "reward"}  # those are compared in checks/experiment.py
    assert set(RUN_KEYS) <= set(FINGERPRINT)


@pytest.mark.parametrize("key", CHANGES)
def test_a_change_is_refused_with_the_key_that_accepts_it(root, key):
    change, said, _ = CHANGES[key]
    others = tuple(set(FINGERPRINT) - {key})
    for fall_back in (False, True):
        with pytest.raises(MismatchedState, match=said + r".*exgrpo.resume_allow=\[" + key + r"\] accepts it"):
            resumed(root, resume_allow=others, resume_fall_back=fall_back, **change)


@pytest.mark.parametrize("key", CHANGES)
def test_an_accepted_change_drops_what_no_longer_makes_sense(root, key, caplog):
    change, _, left = CHANGES[key]
    store = resumed(root, resume_allow=(key,), **change).store
    assert store.stats(5)["trajectories"] == left
    assert store.latest_count("q1") == (4 if key == "group_size" else 2)
    assert store.group_size == (8 if key == "group_size" else 4)
    assert store.retired == ["gone"]
    assert sum(store.evicted.values()) == 0
    assert "accepted" in caplog.text
    if key == "prompt":
        assert [len(store.rows(question)) for question in PROMPTS] == [2, 0, 2, 2, 0, 2]
    if key == "length":
        assert store.candidates().length.tolist() == [3] * 6


def test_everything_that_differs_is_named_at_once(root):
    current = current_with(other_prompt, "new", 0.6, 4)
    with pytest.raises(MismatchedState) as caught:
        resumed(root, current, layers=3, policy="refill", resume_allow=("model", "prompt"))
    keys = ["model", "policy", "chat_template", "temperature", "prompt", "length"]
    assert f"exgrpo.resume_allow=[{','.join(keys)}]" in caught.value.reason
    assert caught.value.file == root / "global_step_5/experience"
    store = resumed(root, current, layers=3, policy="refill", resume_allow=tuple(keys)).store
    assert [len(store.rows(question)) for question in PROMPTS] == [1, 0, 1, 1, 0, 1]


def test_under_another_tokenizer_single_trajectories_are_not_compared(root):
    with pytest.raises(MismatchedState, match=r"resume_allow=\[tokenizer\] accepts"):
        resumed(root, current_with(other_prompt, "new", 0.6, 4), vocabulary="abd")


def test_what_was_not_known_when_it_was_stored_is_not_compared(tmp_path):
    policy = trained(origin=Origin("import", "", 1.0))
    for row in policy.store.candidates().row[1:].tolist():
        policy.store.drop([row], "age")
    policy.store.add("q5", Response([1], [-1.0]), 1.0, 1)
    state_of(tmp_path).save(5, policy)
    asked = []

    def today(question):
        asked.append(question)
        return NOW.prompt_hash(question)

    assert resumed(tmp_path, current_with(today, template="new")).store.stats(5)["trajectories"] == 2
    assert asked == ["q0"]


def test_a_policy_that_takes_over_a_store_keeps_its_own_state_where_the_other_had_none(tmp_path):
    policy = trained("exgrpo")
    policy.state_dict = lambda: {"rng": make_policy(ExGRPOConfig(seed=7), K).state_dict()["rng"]}
    state_of(tmp_path).save(5, policy)
    found = resumed(tmp_path, policy="refill", resume_allow=("policy",))
    assert found.state_dict()["rng"] == policy.state_dict()["rng"]
    assert not found.active
    assert found.store.stats(5)["trajectories"] == STORED
