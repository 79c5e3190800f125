"""The training questions as a policy sees them (`core.policies.policy.Dataset`), and the rows that a plan asks for."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from verl_ext.dataset import question_id


class Cursor:
    """verl's loader behind a cursor that skips, and the dataset by question id.

    `fetch` is verl's own `_fetch_one_gen_batch`: one row with a fresh uid.
    """

    def __init__(self, fetch: Callable[[], TensorDict], dataset: Sequence[dict], rows: Mapping[str, int]) -> None:
        self._fetch, self._dataset, self._rows = fetch, dataset, rows
        self.skipped = 0
        self._fetched: dict[str, list[TensorDict]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, skip: Callable[[str], bool]) -> str:
        """The next question that is not to be skipped; any question when all are."""
        for _ in range(2 * len(self._dataset)):  # an epoch from anywhere in one may end early in the next
            row = self._fetch()
            question = question_id(row["extra_info"][0])
            if not skip(question):
                break
            self.skipped += 1
        self._fetched[question].append(row)
        return question

    def fetched(self, question: str) -> TensorDict:
        """The row that `draw` returned `question` for, once."""
        return self._fetched[question].pop(0)

    def row(self, question: str, uid: str) -> TensorDict:
        """The dataset's row of `question` under a uid of our own, which must not contain an underscore."""
        columns = collate_fn([self._dataset[self._rows[question]]])
        return tu.get_tensordict(columns | {"uid": np.array([uid], dtype=object)})
