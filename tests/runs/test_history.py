"""history.jsonl: a line per step, bounded, rewound, absent when switched off."""

import json

import pytest

from recipe.exgrpo.runs.history import History, read_history
from verl_ext.jsonl import DamagedLine


def step(number: int, **values) -> dict:
    lists = {name: [] for name in ("question", "solved", "size", "joined", "replayed", "choices")}
    return {"step": number} | lists | values


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "history.jsonl"


def steps(path):
    return [row["step"] for row in read_history(path)]


def test_steps_are_appended_and_read(path):
    history = History(path, 1.0)
    first, second = step(1, question=["\ud800\u2028</script>"], solved=[2]), step(2)
    assert history.append(first) == path.stat().st_size
    history.append(second)
    assert list(read_history(path)) == [first, second]
    assert path.read_bytes().isascii()


def test_switched_off_nothing_is_written(path):
    history = History(path, None)
    assert history.append(step(1)) == 0
    history.rewind(0)
    assert not path.exists()


def test_beyond_its_bound_the_oldest_half_goes(path):
    history = History(path, 0.002)
    sizes = [history.append(step(n, question=["q" * 100])) for n in range(1, 101)]
    assert path.stat().st_size <= 2000
    found = steps(path)
    assert found == list(range(found[0], 101))
    assert len(found) >= 1000 // max(sizes) - 1


def test_a_step_larger_than_the_bound_leaves_an_empty_file_that_goes_on(path):
    history = History(path, 0.001)
    history.append(step(1, question=["q" * 2000]))
    assert steps(path) == []
    history.append(step(2))
    assert steps(path) == [2]


def test_a_rewind_drops_later_steps(path):
    history = History(path, 1.0)
    for n in range(1, 6):
        history.append(step(n))
    history.rewind(3)
    history.append(step(4))
    assert steps(path) == [1, 2, 3, 4]
    history.rewind(4)
    history.rewind(0)
    assert steps(path) == []
    assert steps(path.with_name("history.before-000.jsonl")) == [1, 2, 3, 4, 5]
    assert steps(path.with_name("history.before-001.jsonl")) == [1, 2, 3, 4]
    assert len(list(path.parent.iterdir())) == 3


def test_a_torn_end_is_cut_and_damage_before_it_is_named(path):
    History(path, 1.0).append(step(1))
    with path.open("a") as file:
        file.write('{"step": 2, "ques')
    assert steps(path) == [1]
    History(path, 1.0).append(step(2))
    assert steps(path) == [1, 2]
    path.write_text('{"step": 1}\n' + json.dumps(step(2)) + "\n")
    with pytest.raises(DamagedLine, match="line 1"):
        steps(path)
