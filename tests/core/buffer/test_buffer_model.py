"""A hypothesis state machine: the columnar buffer against a model of plain dicts and lists, over random operations."""

import math
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from recipe.exgrpo.core.buffer import ExperienceBuffer, Response
from recipe.exgrpo.core.buffer.state import spans
from recipe.exgrpo.core.buffer.trajectories import ROW_BYTES
from recipe.exgrpo.core.config import BufferConfig

K = 3
NAMES = ["a", "b", "ç", "d" * 40, "語", "f", "g", "h", "i", "j"]
questions = st.sampled_from(NAMES)
tokens = st.lists(st.integers(0, 3), min_size=1, max_size=4)
configs = st.builds(
    BufferConfig,
    max_bytes=st.none() | st.integers(100, 20000),
    max_per_question=st.none() | st.integers(1, 20),
    max_age_steps=st.none() | st.integers(1, 4),
    max_reuse=st.none() | st.integers(1, 2),
    cooldown_steps=st.integers(0, 3),
    eviction=st.sampled_from(["oldest", "highest_entropy", "most_reused"]),
)


@dataclass
class Row:
    serial: int
    question: str
    ids: list[int]
    reward: float
    birth: int
    uses: int = 0
    entropy: float = math.nan
    prompt: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return 8 * (len(self.prompt) + len(self.ids)) + ROW_BYTES


@dataclass
class Model:
    config: BufferConfig
    counts: dict = field(default_factory=dict)
    retired: list = field(default_factory=list)
    rows: list = field(default_factory=list)
    cool_until: dict = field(default_factory=dict)
    serial: int = 0

    def of(self, question):
        return [row for row in self.rows if row.question == question]

    def forget(self, question):
        self.rows = [row for row in self.rows if row.question != question]
        self.counts.pop(question, None)
        self.cool_until.pop(question, None)

    def add(self, question, ids, step, duplicates=False, **more):
        if not duplicates and any(row.ids == ids for row in self.of(question)):
            return False
        self.rows.append(Row(self.serial, question, ids, float(step), step, **more))
        self.serial += 1
        return True

    def eligible(self, question):
        return self.counts.get(question, 0) > 0 and self.of(question) and question not in self.cool_until

    def order(self, rows):
        key = {
            "oldest": lambda r: r.birth,
            "highest_entropy": lambda r: math.inf if math.isnan(r.entropy) else -r.entropy,
            "most_reused": lambda r: -r.uses,
        }[self.config.eviction]
        return sorted(rows, key=lambda r: (key(r), r.birth, r.serial))

    def evict(self, rows):
        gone = {row.serial for row in rows}
        self.rows = [row for row in self.rows if row.serial not in gone]
        return len(rows)

    def enforce(self, step):
        c, gone = self.config, dict.fromkeys(("age", "reuse", "per_question", "bytes"), 0)
        if c.max_age_steps:
            gone["age"] = self.evict([r for r in self.rows if step - r.birth > c.max_age_steps])
        if c.max_reuse:
            gone["reuse"] = self.evict([r for r in self.rows if r.uses >= c.max_reuse])
        if c.max_per_question:
            for question in {r.question for r in self.rows}:
                rows = self.order(self.of(question))
                gone["per_question"] += self.evict(rows[: max(0, len(rows) - c.max_per_question)])
        while c.max_bytes and sum(r.bytes for r in self.rows) > c.max_bytes:
            gone["bytes"] += self.evict(self.order(self.rows)[:1])
        self.cool_until = {q: first for q, first in self.cool_until.items() if first > step + 1}
        return gone


class BufferMachine(RuleBasedStateMachine):
    @initialize(config=configs, segment=st.sampled_from([1, 3, 16]))
    def start(self, config, segment):
        self.model = Model(config)
        self.buffer = ExperienceBuffer(K, config, segment_tokens=segment)
        self.step = 0

    @rule(question=questions, count=st.integers(0, K - 1))
    def record(self, question, count):
        if question not in self.model.retired:
            self.model.counts[question] = count
            self.buffer.record(question, count)

    @rule(question=questions, ids=tokens)
    def add(self, question, ids):
        if question not in self.model.retired:
            expected = self.model.add(question, ids, self.step)
            response = Response(ids, -np.array(ids, np.float32))
            assert self.buffer.add(question, response, float(self.step), self.step) == expected

    @rule(question=questions, ids=tokens, prompt=st.lists(st.integers(0, 3), max_size=3), masked=st.integers(0, 3))
    def add_with_prompt(self, question, ids, prompt, masked):
        """As refill does: duplicates are kept, the prompt with it, some of the tokens not the model's own."""
        if question not in self.model.retired:
            mask = [i > len(ids) - 1 - masked for i in range(len(ids))]
            mask[-1] = True
            self.model.add(question, ids, self.step, duplicates=True, prompt=prompt, mask=mask)
            response = Response(ids, -np.array(ids, np.float32), mask, prompt)
            keep = {"keep_prompt": True, "keep_duplicates": True}
            assert self.buffer.add(question, response, float(self.step), self.step, **keep)

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data(), reason=st.sampled_from(["age", "reuse"]))
    def drop(self, data, reason):
        rows = data.draw(st.lists(st.sampled_from(self.model.rows), max_size=4, unique_by=lambda row: row.serial))
        assert self.buffer.drop([row.serial for row in rows], reason) == self.model.evict(rows)

    @rule(first=st.integers(0, 10**6), n=st.sampled_from([10, 120]))
    def flood(self, first, n):
        """Many at once: every question gets rows, buckets fill, and row columns run into their capacity."""
        for i in range(first, first + n):
            question = NAMES[i % len(NAMES)]
            self.add(question, [i % 4, i])
            self.record(question, 1 + i % (K - 1))

    @rule(question=questions)
    def retire(self, question):
        if question not in self.model.retired:
            self.model.forget(question)
            self.model.retired.append(question)
        self.buffer.retire(question)

    @precondition(lambda self: self.model.retired)
    @rule(data=st.data())
    def unretire(self, data):
        question = data.draw(st.sampled_from(self.model.retired))
        self.model.retired.remove(question)
        self.buffer.unretire(question)

    @rule(question=questions)
    def discard(self, question):
        self.model.forget(question)
        if question in self.model.retired:
            self.model.retired.remove(question)
        self.buffer.discard(question)

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data(), entropy=st.floats(0, 5, width=32))
    def use(self, data, entropy):
        row = data.draw(st.sampled_from(self.model.rows))
        row.uses += 1
        row.entropy = entropy
        if self.model.config.cooldown_steps:
            self.model.cool_until[row.question] = self.step + self.model.config.cooldown_steps + 1
        self.buffer.mark_scored([row.serial], [entropy])
        self.buffer.mark_used(row.serial, self.step)

    @rule()
    def end_step(self):
        assert self.buffer.enforce_limits(self.step) == self.model.enforce(self.step)
        self.step += 1

    @rule()
    def save_and_load(self):
        arrays, meta = self.buffer.state()
        lengths = spans(arrays)
        placement = np.zeros(len(lengths), np.int64), np.cumsum(lengths) - lengths
        tokens = [(arrays["token_ids"], arrays["log_probs"])]
        restored = ExperienceBuffer.restore(arrays, meta, tokens, placement, self.model.config)
        for k in range(1, K):
            n = int(self.buffer.bucket_sizes()[k])
            draws = [b.draw(k, n, np.random.default_rng(n)) for b in (self.buffer, restored)]
            assert draws[0] == draws[1]
        self.buffer = restored

    @invariant()
    def same(self):
        buffer, model = self.buffer, self.model
        assert buffer.candidates().row.tolist() == [row.serial for row in model.rows]
        assert buffer.retired == model.retired
        assert buffer.nbytes == sum(r.bytes for r in model.rows)
        expected = [0] * (K + 1)
        for question in set(model.counts) | {r.question for r in model.rows}:
            assert buffer.latest_count(question) == model.counts.get(question)
            assert buffer.rows(question).tolist() == [r.serial for r in model.of(question)]
            if model.eligible(question):
                expected[model.counts[question]] += 1
        assert buffer.bucket_sizes().tolist() == expected
        for k in range(1, K):
            drawn = buffer.draw(k, expected[k], np.random.default_rng(0))
            assert set(drawn) == {q for q, c in model.counts.items() if c == k and model.eligible(q)}
        for row in model.rows:
            found = buffer.trajectory(row.serial)
            assert (found.question, found.token_ids.tolist(), found.reward) == (row.question, row.ids, row.reward)
            mask = row.mask or [True] * len(row.ids)
            assert (found.mask.tolist(), found.prompt_ids.tolist()) == (mask, row.prompt)
            assert (-found.log_probs).tolist() == [i if own else 0 for i, own in zip(row.ids, mask, strict=True)]
            assert (found.birth_step, found.use_count) == (row.birth, row.uses)
            np.testing.assert_equal(found.entropy, row.entropy)


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
