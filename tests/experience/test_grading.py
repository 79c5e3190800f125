"""The reward that grades traces: found as verl finds it, called as verl calls it."""

import pytest
from omegaconf import OmegaConf

from recipe.exgrpo.experience.grading import Graded, Grading

ROW = {"data_source": "toy", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 3}}


def grading(path, name="reward", model=False, **kwargs) -> Grading:
    chosen = {"path": path, "name": name, "reward_kwargs": kwargs}
    return Grading.of(
        OmegaConf.create({"custom_reward_function": chosen, "reward_model": {"enable": model}}), workers=2
    )


@pytest.fixture
def mine(tmp_path):
    """A reward of a user's: what it was told, and awaited."""
    path = tmp_path / "my_reward.py"
    path.write_text(
        "async def reward(data_source, solution_str, ground_truth, extra_info=None, scale=1.0):\n"
        "    told = (data_source, extra_info['index'], extra_info['truncated'])\n"
        "    right = solution_str == ground_truth and told == ('toy', 3, False)\n"
        "    return {'score': scale * right, 'timeout': solution_str == 'slow'}\n"
        "def plain(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return solution_str == ground_truth\n"
    )
    return path


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_function_of_a_file_is_told_what_verl_tells_it(mine, prefix):
    found = grading(f"{prefix}{mine}", scale=2.0)
    answers = [(ROW, "4", False), (ROW, "5", False), (ROW, "4", True), (ROW, "slow", False)]
    assert found.grade(answers) == [Graded(2.0), Graded(0.0), Graded(0.0), Graded(0.0, "timeout")]


def test_a_number_is_a_score(mine):
    assert grading(str(mine), "plain").grade([(ROW, "4", False), (ROW, "5", False)]) == [Graded(1.0), Graded(0.0)]


def test_the_shipped_function_is_found_in_its_module():
    assert grading("pkg://verl_ext.rewards", "compute_score").function.__module__ == "verl_ext.rewards"


def test_what_cannot_be_loaded_is_one_sentence(mine, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("def reward(:\n")
    for path, name in (
        (mine, "other"),
        (tmp_path / "gone.py", "reward"),
        (broken, "reward"),
        ("pkg://no.such", "reward"),
    ):
        with pytest.raises(ValueError, match=rf"reward.custom_reward_function: .*{name} cannot be loaded"):
            grading(str(path), name)


def test_a_model_grades_no_traces():
    with pytest.raises(ValueError, match="traces cannot be graded"):
        grading(None, model=True)
