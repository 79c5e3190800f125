"""`exgrpo browse`: the file, what it prints, its errors, and the server."""

import json
import signal
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browse_runs import TOKENIZER, buffer_of, hostile_run, log, save

from recipe.exgrpo.browse.page import render
from recipe.exgrpo.browse.serve import Server, Site
from recipe.exgrpo.browse.sources import read
from recipe.exgrpo.browse.tokens import Words
from recipe.exgrpo.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    return hostile_run(tmp_path / "run")


def test_the_page_is_written_and_what_it_shows_is_said(run, tmp_path, capsys):
    assert main(["browse", str(run)]) == 0
    assert "browse.html: 10 questions, 18 trajectories" in capsys.readouterr().out.replace("\n", "")
    out = tmp_path / "new" / "page.html"
    log(tmp_path / "base", 3, ["a"], [0])
    assert (
        main(["browse", str(run), "--out", str(out), "--limit", "4", "--baseline", str(tmp_path / "base"), "--json"])
        == 0
    )
    about = json.loads(capsys.readouterr().out)
    assert (about["trajectories"], about["trajectories_shown"], about["bytes"]) == (18, 4, out.stat().st_size)
    assert about["baseline"] == str(tmp_path / "base")
    assert about["bytes"] < 2_000_000
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]  # nothing half-written beside it


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{run}/nowhere"], "is not a folder"),
        (["{run}/.."], "neither a run's folder"),
        (["{run}", "--baseline", "{run}/record"], "has no metrics.jsonl"),
        (["{run}", "--tokenizer", "{run}"], "has no tokenizer.json"),
        (["{run}", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_an_error_is_a_sentence_and_code_2(run, arguments, reason, capsys):
    assert main(["browse", *(argument.format(run=run) for argument in arguments)]) == 2
    assert reason in capsys.readouterr().err
    assert not (run / "browse.html").exists()


def test_damage_is_named_and_the_page_before_it_stays(run, capsys):
    assert main(["browse", str(run)]) == 0
    before = (run / "browse.html").read_bytes()
    history = run / "history.jsonl"
    history.write_text("{}\n" + history.read_text())
    assert main(["browse", str(run)]) == 2
    assert "history.jsonl, line 1" in capsys.readouterr().err.replace("\n", "")
    assert (run / "browse.html").read_bytes() == before


def test_help_says_what_a_run_is(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["browse", "--help"])
    assert "global_step_N" in capsys.readouterr().out


# ---- --serve


@pytest.fixture
def served(run):
    """ask(path, host=None) -> (status, text) of a server on a free port."""
    site = Site(lambda: read(run), lambda content: render(content, served=True), lambda: Words(TOKENIZER))
    server = Server(site, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(path, host=None):
        connection = HTTPConnection("127.0.0.1", server.server_port)
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_server_follows_the_run(served, run):
    status, first = served("/")
    assert status == 200
    stamp = served("/stamp")
    assert served("/stamp") == stamp
    log(run, 15, ["a", "b"], [0])
    assert served("/stamp") != stamp
    second = served("/")[1]
    assert second != first
    assert '"last_step":15' in second
    save(run, buffer_of({"new": [("1", 20)]}), 20)
    assert '"step":20' in served("/")[1]


def test_a_state_that_cannot_be_read_leaves_the_page(served, run):
    first = served("/")
    (run / "global_step_12" / "experience" / "manifest.json").write_text("{")
    assert served("/") == first


def test_tokens_are_served_by_handle(served):
    status, text = served("/tokens/0")
    assert status == 200
    assert set(json.loads(text)) == {"words", "data"}
    assert [served(path)[0] for path in ("/tokens/99999", "/tokens/x", "/tokens/%C2%B2", "/etc/passwd", "/../x")] == [
        404
    ] * 5


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(run):
    command = [sys.executable, "-m", "recipe.exgrpo.cli.main", "browse", str(run), "--serve", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        address = urlsplit(json.loads(process.stdout.readline())["address"])
        connection = HTTPConnection(address.hostname, address.port)
        connection.request("GET", "/")
        assert '"served":true' in connection.getresponse().read().decode()
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not (run / "browse.html").exists()


def test_another_host_name_is_refused(served):
    assert served("/", "evil.example:80")[0] == 403
    assert served("/tokens/0", "evil.example")[0] == 403
    assert served("/", "localhost:1")[0] == 200
