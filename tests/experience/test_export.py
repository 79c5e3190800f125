"""What an export gives away of trajectories in which tools speak."""

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.experience.export import Filters, preference_rows, sft_rows
from recipe.exgrpo.experience.table import rows_of

PROMPTS = {"q": [{"role": "user", "content": "?"}]}


def decode(ids):
    return " ".join(map(str, ids))


def buffer_with_tools() -> ExperienceBuffer:
    """Successes 1 2 3 (the 2 a tool's) and 4 5, failures 6 7 (the 7 a tool's) and 8 9."""
    made = ExperienceBuffer(4)
    for ids, mask, reward in (
        ([1, 2, 3], [True, False, True], 1.0),
        ([4, 5], None, 1.0),
        ([6, 7, 6], [True, False, True], 0.0),
        ([8, 9], None, 0.0),
    ):
        made.add("q", Response(ids, -np.ones(len(ids)), mask), reward, 1)
    return made


def test_a_tools_words_are_in_no_assistant_message():
    made = buffer_with_tools()
    chosen = Filters().chosen(made, 1)
    (conversation,) = sft_rows(made, chosen, PROMPTS, decode)
    assert conversation["messages"][-1] == {"role": "assistant", "content": "4 5"}
    (pair,) = preference_rows(made, chosen, PROMPTS, decode, pairs=2)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("4 5", "8 9")


def test_a_table_says_which_tokens_are_whose():
    made = buffer_with_tools()
    rows = list(rows_of(made, made.candidates().row, decode, None))
    assert [row["mask"] for row in rows] == [[True, False, True], [True, True], [True, False, True], [True, True]]
    assert {row["tools"] for row in rows} == {""}
