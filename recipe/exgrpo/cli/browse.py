"""`exgrpo browse RUN`: one HTML page on a run, to open in a browser; no network, no server, no GPU.

RUN is a run's folder, a `global_step_N`, or its `experience` folder. With --serve the page is on http://127.0.0.1 and follows
the run.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from recipe.exgrpo.browse.page import MB, Limits, Page, render
from recipe.exgrpo.browse.serve import Server, Site
from recipe.exgrpo.browse.sources import READING, Content, read
from recipe.exgrpo.browse.tokens import Words
from recipe.exgrpo.runs.metrics import read_run
from verl_ext.files import write_atomically

NAME = "browse.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="RUN", help="a run's folder, a global_step_N or its experience folder"
    )
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="another run's folder: its curves beside these")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE", help=f"the page's file ({NAME} in the run's folder)")
    where.add_argument("--serve", action="store_true", help="serve the page on this machine and follow the run")
    parser.add_argument("--port", type=int, default=8765, help="of --serve, 0 for a free one (%(default)s)")
    parser.add_argument("--limit", type=int, default=50_000, help="trajectories shown, the newest (%(default)s)")
    parser.add_argument("--token-mb", type=float, default=24.0, help="megabytes of tokens in the page (%(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json (default: beside the experience)")
    parser.add_argument("--json", action="store_true", help="print what the page shows as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Write or serve the page; returns 2, after one sentence, when something cannot be read."""
    try:
        draw = partial(_draw, args, read_run(args.baseline) if args.baseline else None)
        if args.serve:
            return _serve(args, draw)
        with Console(stderr=True).status("reading and checking the run"):
            content = read(args.path)
            page = draw(content)
        out = args.out or (content.source.run or Path()) / NAME
        write_atomically(out, page.html)
    except READING as error:
        Console(stderr=True).print(f"[red]exgrpo browse:[/] {escape(str(error))}", soft_wrap=True)
        return 2
    _report(args, page, out)
    return 0


def _draw(args: argparse.Namespace, baseline, content: Content) -> Page:
    limits = Limits(args.limit, int(args.token_mb * MB))
    tokenizer = _tokenizer(args, content)
    return render(content, baseline, limits, tokenizer=tokenizer, served=args.serve)


def _tokenizer(args: argparse.Namespace, content: Content) -> Path | None:
    """The tokenizer.json named or beside the experience; None without one there."""
    if args.tokenizer is not None:
        if not (args.tokenizer / "tokenizer.json").is_file():
            raise FileNotFoundError(f"--tokenizer {args.tokenizer} has no tokenizer.json.")
        return args.tokenizer / "tokenizer.json"
    return content.source.tokenizer


def _report(args: argparse.Namespace, page: Page, out: Path) -> None:
    about = page.about
    if args.json:
        sys.stdout.write(json.dumps(about | {"page": str(out), "bytes": out.stat().st_size}) + "\n")
        return
    shown, there = about["trajectories_shown"], about["trajectories"]
    how_many = f"{there:,} trajectories" if shown == there else f"the newest {shown:,} of {there:,} trajectories"
    console = Console()
    console.print(
        f"{out}: {about['questions']:,} questions, {how_many}, {out.stat().st_size / MB:.1f} MB",
        soft_wrap=True,
        markup=False,
    )
    for remark in about["remarks"]:
        Console(stderr=True).print(remark, soft_wrap=True, markup=False)


def _serve(args: argparse.Namespace, draw) -> int:
    site = Site(partial(read, args.path), draw, lambda: Words(_tokenizer(args, site.content)))
    with Server(site, args.port) as server:
        if args.json:
            sys.stdout.write(json.dumps(site.page.about | {"address": server.address}) + "\n")
            sys.stdout.flush()
        else:
            Console().print(f"{server.address} (Ctrl-C ends it)", markup=False)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
