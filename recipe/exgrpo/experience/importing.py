"""Traces into a store: matched, rendered, cut or refused by length, graded by the run's reward, deduplicated, tagged.

What cannot be read raises or is counted; nothing is written here. A failure stays out of the store unless it is asked for.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from recipe.exgrpo.core.buffer import ExperienceBuffer, Origin, Provenance, Response, prompt_hash
from recipe.exgrpo.core.buffer.records import digest
from recipe.exgrpo.core.config import ExperienceConfig
from recipe.exgrpo.experience.sources import Source
from recipe.exgrpo.experience.target import Target
from recipe.exgrpo.experience.traces import MEASURED, ONE, SCORED, BadTrace, Trace

CHUNK = 256  # traces graded, and scored, at a time
EXAMPLES = 20  # bad rows that a report names
MAX_ORIGINS = 1000  # a source names where traces come from, not each of them
PASSED = 0.5  # a reward above it is a success

# Log-probs float32 [L] under the start policy of each (prompt ids, response ids), both int32.
Score = Callable[[Sequence[tuple[np.ndarray, np.ndarray]]], list[np.ndarray]]


@dataclass
class Report:
    """What became of the traces of an import: each is counted in `read` and in one of the others.

    `imported` is split by `sources`; among them are `kept_failures`, `cut`, and those whose log-probs are `measured`, `scored`
    or `one`. `not_graded` are traces on which the grader did not finish. `seconds` are by stage.
    """

    read: int = 0
    imported: int = 0
    bad: int = 0
    unmatched: int = 0
    overlong: int = 0
    failures: int = 0
    not_graded: int = 0
    duplicates: int = 0
    retired: int = 0
    kept_failures: int = 0
    cut: int = 0
    questions: int = 0
    measured: int = 0
    scored: int = 0
    one: int = 0
    sources: Counter = field(default_factory=Counter)
    bad_rows: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with traces per second, and the same with grading and scoring taken out."""
        rest = sum(seconds for stage, seconds in self.seconds.items() if stage not in ("grade", "score"))
        rates = {"all": sum(self.seconds.values()), "without_grading": rest}
        per_second = {name: self.read / seconds if seconds else 0.0 for name, seconds in rates.items()}
        return asdict(self) | {"sources": dict(self.sources), "traces_per_second": per_second}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun


@dataclass(frozen=True)
class Rendered:
    """A trace that answers `question`, as token ids; `reward` is None until it is graded."""

    trace: Trace
    question: str
    prompt: np.ndarray
    ids: np.ndarray
    log_probs: np.ndarray | None
    mask: np.ndarray | None
    cut: bool
    reward: float = 0.0
    behaviour: str = MEASURED


class Importer:
    """Imports into `buffer`; `score` computes log-probs that are missing (None: `settings.importance` must be `none`)."""

    def __init__(
        self, target: Target, buffer: ExperienceBuffer, settings: ExperienceConfig, score: Score | None = None
    ) -> None:
        if score is None and settings.importance == "scored":
            raise ValueError("importance: scored needs a model that computes the log-probs that are missing.")
        self.target, self.buffer, self.settings, self.score = target, buffer, settings, score
        self.report = Report()
        self._prompts: dict[str, np.ndarray] = {}
        self._groups: dict[tuple[str, int], int] = {}
        self._seen: set[tuple[str, int]] = set()
        self._filled: set[str] = set()
        self._origins: set[Origin] = set()

    def read(self, source: Source, tag: str | None = None, advance: Callable[[int], None] = lambda n: None) -> None:
        """Import all of a source; `tag` replaces the sources that its traces name, `advance` hears of finished traces.

        Raises BadTrace for a row that is none, unless `settings.skip_bad`; the buffer is then half-filled, and of no use.
        """
        traces = source.traces()
        while chunk := self._next(traces):
            self._import([t for t in chunk if isinstance(t, Trace)], source, tag)
            advance(len(chunk))
        self.report.questions = len(self._filled)

    def examine(self, source: Source) -> int:
        """Read a source as `read` does, but neither grade nor store it: the bytes that its traces would take, all accepted.

        Raises as `read` does.
        """
        found, traces = 0, source.traces()
        while chunk := self._next(traces):
            for one in self._prepared([t for t in chunk if isinstance(t, Trace)]):
                self._origin(one, one.trace.source or source.name)
                found += self.buffer.bytes_of(len(one.prompt) + len(one.ids))
        return found

    def _next(self, traces: Iterator[Trace | BadTrace]) -> list[Trace | BadTrace]:
        """The next traces; those that are bad are counted, or raised."""
        with self.report.timed("read"):
            chunk = list(islice(traces, CHUNK))
        for bad in chunk:
            if isinstance(bad, BadTrace):
                self._bad(bad)
        self.report.read += len(chunk)
        return chunk

    def _bad(self, bad: BadTrace) -> None:
        if not self.settings.skip_bad:
            raise bad
        self.report.bad += 1
        if len(self.report.bad_rows) < EXAMPLES:
            self.report.bad_rows.append(str(bad))

    def _import(self, traces: Sequence[Trace], source: Source, tag: str | None) -> None:
        with self.report.timed("render"):
            prepared = self._prepared(traces)
        with self.report.timed("grade"):
            graded = self._graded(prepared)
        with self.report.timed("score"):
            complete = self._with_log_probs(graded)
        with self.report.timed("store"):
            for one in complete:
                self._store(one, tag or one.trace.source or source.name)

    # ---- from traces to token ids

    def _prepared(self, traces: Iterable[Trace]) -> list[Rendered]:
        return self._fresh(self._fitting(self._rendered(self._matched(traces))))

    def _matched(self, traces: Iterable[Trace]) -> list[tuple[str, Trace]]:
        found = []
        for trace in traces:
            question = self.target.questions.find(trace)
            if question is None:
                self.report.unmatched += 1
            elif self.buffer.is_retired(question):
                self.report.retired += 1
            else:
                found.append((question, trace))
        return found

    def _rendered(self, matched: Sequence[tuple[str, Trace]]) -> Iterator[Rendered]:
        """Ids of another tokenizer are made anew from text, which leaves the log-probs behind."""
        renderer = self.target.renderer
        as_text = [trace.text for _, trace in matched if self._is_text(trace)]
        prompt = self.target.questions.messages(matched[0][0]) if matched else []
        tokenised = iter(renderer.response_ids(as_text, prompt, self.target.max_response))
        for question, trace in matched:
            try:
                yield self._as_ids(question, trace, tokenised)
            except ValueError as error:
                self._bad(trace.place.bad(str(error).rstrip(".")))

    def _as_ids(self, question: str, trace: Trace, tokenised: Iterator[np.ndarray]) -> Rendered:
        """`tokenised` has the ids of the next trace that is text. Raises ValueError, a clause, where there can be none."""
        target, prompt = self.target, self._prompt(question)
        if self._has_ids(trace):
            if trace.token_ids.max() >= target.vocabulary:
                raise ValueError(f"token id {trace.token_ids.max()} is outside the tokenizer's {target.vocabulary}")
            return self._as_stored(question, trace)
        if self._is_text(trace):
            ids = next(tokenised)
            target.renderer.require_plain(ids[:-1])
            if len(ids) < 2:
                raise ValueError("the response is empty")
            return Rendered(trace, question, prompt, ids, None, None, False)
        if trace.turns is None:
            raise ValueError(
                "its token ids are another tokenizer's, and there is no text of the model alone to make them from"
            )
        ids, mask = target.renderer.turn_ids(trace.turns, target.questions.messages(question), target.max_response)
        return Rendered(trace, question, prompt, ids, None, mask, False)

    def _is_text(self, trace: Trace) -> bool:
        """Whether ids are made of its text: all of it the model's, which a stored text with a tool's turns is not."""
        own = trace.mask is None or trace.mask.all()
        return not self._has_ids(trace) and trace.text is not None and own

    def _has_ids(self, trace: Trace) -> bool:
        return trace.token_ids is not None and trace.tokenizer in (None, self.target.tokenizer)

    def _as_stored(self, question: str, trace: Trace) -> Rendered:
        """Log-probs hold for the prompt they were measured on; of another prompt's there are none."""
        if trace.tools and trace.tools != self.target.tools.fingerprint:
            raise ValueError("it was collected with other tools than this run's (rollout.multi_turn)")
        prompt = self._prompt(question)
        same = trace.prompt_hash in (0, prompt_hash(prompt)) and trace.behaviour != ONE
        log_probs = trace.log_probs if same else None
        return Rendered(trace, question, prompt, trace.token_ids, log_probs, trace.mask, False)

    def _prompt(self, question: str) -> np.ndarray:
        if question not in self._prompts:
            questions = self.target.questions
            tools = self.target.tools.shown(questions.rows[question])
            self._prompts[question] = self.target.renderer.prompt_ids(questions.messages(question), tools)
        return self._prompts[question]

    def _fitting(self, rendered: Iterable[Rendered]) -> Iterator[Rendered]:
        """Those within the run's lengths; a longer response is cut, or left out like one with too long a prompt."""
        limit = self.target.max_response
        for one in rendered:
            fits, own = len(one.ids) <= limit, one.mask is None or one.mask[:limit].any()
            if len(one.prompt) > self.target.max_prompt or not (fits or (self.settings.overlong == "cut" and own)):
                self.report.overlong += 1
            else:
                yield one if fits else _first(one, limit)

    def _fresh(self, rendered: Iterable[Rendered]) -> list[Rendered]:
        """Those not seen in this import; the store knows what it had before."""
        found = []
        for one in rendered:
            key = one.question, digest(np.ascontiguousarray(one.ids), one.mask)
            if key in self._seen:
                self.report.duplicates += 1
            else:
                self._seen.add(key)
                found.append(one)
        return found

    # ---- reward, log-probs, store

    def _graded(self, rendered: Sequence[Rendered]) -> list[Rendered]:
        """Those that the reward accepts, with failures if they are kept."""
        rows = self.target.questions.rows
        text = self.target.renderer.text
        texts = ((rows[one.question], text(one.ids, one.mask), self._truncated(one.ids)) for one in rendered)
        found = []
        for one, graded in zip(rendered, self.target.grading.grade(texts), strict=True):
            if graded.trouble:
                self.report.not_graded += 1
            elif graded.reward <= PASSED and not self.settings.keep_failures:
                self.report.failures += 1
            else:
                found.append(replace(one, reward=graded.reward))
        return found

    def _truncated(self, ids: np.ndarray) -> bool:
        """Whether the response ends at the limit, as the run's reward manager tells the reward."""
        return len(ids) >= self.target.max_response and int(ids[-1]) not in self.target.renderer.special

    def _with_log_probs(self, graded: Sequence[Rendered]) -> list[Rendered]:
        """Every trace with log-probs: its own, the start policy's, or 0 = log 1 by convention."""
        missing = [one for one in graded if one.log_probs is None]
        if self.settings.importance == "scored" and missing:
            values = self.score([(one.prompt, one.ids) for one in missing])
        else:
            values = [np.zeros(len(one.ids), np.float32) for one in missing]
        kind = SCORED if self.settings.importance == "scored" else ONE
        made = {id(one): value for one, value in zip(missing, values, strict=True)}
        return [
            replace(one, log_probs=made[id(one)], behaviour=kind)
            if one.log_probs is None
            else replace(one, behaviour=one.trace.behaviour)
            for one in graded
        ]

    def _store(self, one: Rendered, source: str) -> None:
        trace, buffer = one.trace, self.buffer
        buffer.origin = self._origin(one, source)
        born = trace.birth_step if self.target.born is None else self.target.born
        response = Response(one.ids, one.log_probs, one.mask, one.prompt)
        how = {"provenance": self._provenance(trace), "keep_prompt": True}
        try:
            new = buffer.add(one.question, response, one.reward, born, **how)
        except ValueError as error:
            self._bad(trace.place.bad(str(error).rstrip(".")))
            return
        if new:
            self._count(one.question, trace)
            self._note(one, source)
        else:
            self.report.duplicates += 1

    def _origin(self, one: Rendered, source: str) -> Origin:
        temperature = self.target.temperature if one.trace.temperature is None else one.trace.temperature
        answered = one.mask is not None and not one.mask.all()
        tools = self.target.tools.fingerprint if answered else ""
        found = Origin(source, self.target.chat_template, temperature, one.behaviour, tools)
        self._origins.add(found)
        if len(self._origins) > MAX_ORIGINS:
            raise one.trace.place.bad(f"more than {MAX_ORIGINS} different sources or temperatures")
        return found

    def _note(self, one: Rendered, source: str) -> None:
        self._filled.add(one.question)
        report = self.report
        report.imported += 1
        report.sources[source] += 1
        report.cut += one.cut
        report.kept_failures += one.reward <= PASSED
        setattr(report, one.behaviour, getattr(report, one.behaviour) + 1)

    def _provenance(self, trace: Trace) -> Provenance:
        """The group that a trajectory came from, under an id of this store."""
        if trace.provenance.group < 0:
            return trace.provenance
        key = trace.place.file, trace.provenance.group
        if key not in self._groups:
            self._groups[key] = self.buffer.new_group()
        return replace(trace.provenance, group=self._groups[key])

    def _count(self, question: str, trace: Trace) -> None:
        """A question's success count, where the store has none; of another group size it is scaled, as on resume."""
        size = self.buffer.group_size
        if trace.count is None or self.buffer.latest_count(question) is not None:
            return
        count = trace.count if trace.group_size in (0, size) else round(trace.count * size / trace.group_size)
        self.buffer.record(question, min(max(count, int(trace.count > 0)), size - 1))


def _first(one: Rendered, limit: int) -> Rendered:
    """The first `limit` tokens."""
    log_probs, mask = (None if part is None else part[:limit] for part in (one.log_probs, one.mask))
    return replace(one, ids=one.ids[:limit], log_probs=log_probs, mask=mask, cut=True)
