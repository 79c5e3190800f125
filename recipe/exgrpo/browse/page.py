"""The page itself: data, script and style in one HTML file, under a policy that lets no other script run and loads nothing.

What models wrote is data to the page: it stands as JSON in blocks that are not scripts, with every "<" escaped, and the page's
script puts it into the document as text, never as markup. Should that fail, the Content-Security-Policy runs only the scripts
whose SHA-256 it names.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np

from recipe.exgrpo.browse import charts, tables, tokens
from recipe.exgrpo.browse.sources import Content
from recipe.exgrpo.runs.metrics import RunMetrics

MB = 1_000_000
STEP_BYTES = 8 * MB  # of the newest steps' details


@dataclass(frozen=True)
class Limits:
    """What a page may hold: trajectories in its table, and bytes of their tokens; of both the newest are kept."""

    trajectories: int = 50_000
    token_bytes: int = 24 * MB

    def __post_init__(self) -> None:
        if self.trajectories < 1 or self.token_bytes < 0:
            raise ValueError("--limit must be at least 1 and --token-mb at least 0.")


@dataclass(frozen=True)
class Page:
    """The file's text, and what it shows of what there is, JSON-able."""

    html: str
    about: dict


def render(content: Content, baseline: RunMetrics | None = None, limits: Limits | None = None, *, tokenizer: Path | None = None,
           served: bool = False) -> Page:  # fmt: skip
    """The page of `content`; `served` is one that asks its server for tokens and news."""
    known = tables.Questions(content.frozen.names if content.frozen else ())
    limits = limits or Limits()
    shown = tables.newest(content.frozen, limits.trajectories) if content.frozen else np.empty(0, int)
    words = tokens.Words(tokenizer)
    chunks = list(tokens.chunks(content.frozen, shown, words, limits.token_bytes)) if content.frozen else []
    steps, kept = step_blocks(tables.step_details(content.steps, known))
    questions = tables.questions(content, known)
    about = describe(content, baseline, questions) | {
        "trajectories_shown": len(shown),
        "with_tokens": sum(chunk.end - chunk.first for chunk in chunks),
        "steps_with_details": kept,
        "decoded": tokenizer is not None,
        "served": served,
    }
    data = {
        "about": about,
        "questions": questions,
        "trajectories": tables.trajectories(content.frozen, shown) if content.frozen else None,
        "words": words.texts(),
        "chunks": [[chunk.first, chunk.end] for chunk in chunks],
        "steps": [name for name, _ in steps],
    }
    blocks = {"data": escaped(data), "charts": escaped(charts_of(content.run, baseline))}
    blocks |= {f"chunk-{i}": chunk.data for i, chunk in enumerate(chunks)} | {
        f"steps-{i}": text for i, (_, text) in enumerate(steps)
    }
    return Page(fill(about["title"], blocks, served), about)


def charts_of(run: RunMetrics | None, baseline: RunMetrics | None) -> dict:
    """The two drawings, None for one that there is nothing for."""
    return {"curves": run and charts.curves(run, baseline), "buckets": run and charts.heat_map(run)}


def describe(content: Content, baseline: RunMetrics | None, questions: dict) -> dict:
    """What the page is about, in words and numbers."""
    frozen, run, source = content.frozen, content.run, content.source
    return {
        "title": str(source.run or source.experience),
        "run": source.run and str(source.run),
        "state": source.experience and str(source.experience),
        "baseline": baseline and str(baseline.folder),
        "remarks": list(source.remarks),
        "step": content.step,
        "last_step": run.last_step if run else None,
        "steps_recorded": len(content.steps),
        "policy": content.stored.fingerprint.get("policy") if content.stored else None,
        "group_size": frozen.meta["group_size"] if frozen else (run.group_size if run else None),
        "origins": frozen.meta["origins"] if frozen else [],
        "questions": sum(map(bool, questions["name"])),
        "retired": questions["state"].count("retired"),
        "trajectories": len(frozen.rows["row_serial"]) if frozen else 0,
        "tokens": int(frozen.rows["row_length"].sum()) if frozen else 0,
    }


def step_blocks(details: Sequence[dict]) -> tuple[list[tuple[list[int], str]], int]:
    """Blocks of up to 32 steps, newest first (their numbers, and base64 of gzip of JSON), within STEP_BYTES; how many steps."""
    found, size, kept = [], 0, 0
    for end in range(len(details), 0, -32):
        part = details[max(0, end - 32) : end]
        text = base64.b64encode(gzip.compress(json.dumps(part).encode(), 6, mtime=0)).decode()
        size += len(text)
        if size > STEP_BYTES:
            break
        found.append(([step["step"] for step in part], text))
        kept += len(part)
    return found, kept


def escaped(value) -> str:
    """JSON that no parser of HTML takes for markup; characters beyond ASCII, lone surrogates among them, are escapes."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def fill(title: str, blocks: dict[str, str], served: bool) -> str:
    """The template with everything in it."""
    scripts = [library(), resource("page.js")]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(resource("page.html.jinja")).render(
        title=title.encode("utf-8", "replace").decode(),
        policy=policy(scripts, served),
        style=resource("page.css"),
        scripts=scripts,
        blocks=blocks,
    )


def policy(scripts: Sequence[str], served: bool) -> str:
    """The Content-Security-Policy: scripts by hash, styles in place (Bokeh makes its own), pictures in place, nothing else."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    reached = "'self'" if served else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src {reached}; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def library() -> str:
    """Bokeh's script without its widgets, as its package has it."""
    import bokeh

    path = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    return path.read_text(encoding="utf-8").strip()


def resource(name: str) -> str:
    """A file beside this module."""
    return files("recipe.exgrpo.browse").joinpath(name).read_text(encoding="utf-8").strip()
