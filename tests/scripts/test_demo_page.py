"""`make demo` ends by naming its page; tests/e2e and the demo itself make the run."""

import importlib.util
from pathlib import Path

from browse_runs import hostile_run, log
from rich.console import Console

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.py"


def test_the_demo_writes_its_page_and_names_it(tmp_path):
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    log(tmp_path / "on_policy", 3, ["a"], [0])  # a policy without a store saves no experience
    for run in (hostile_run(tmp_path / "run"), tmp_path / "on_policy"):
        console = Console(record=True, width=300)
        page = demo.draw_page(run, console)
        assert page == run / "browse.html"
        assert f"open in a browser: {page}" in console.export_text()
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
