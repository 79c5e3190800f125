"""What is written names no person, host or secret; the command line and its exit codes."""

import json
import platform
from pathlib import Path

import pytest

from recipe.exgrpo.cli import doctor
from recipe.exgrpo.cli.main import main
from recipe.exgrpo.doctor.coin import compute_score
from recipe.exgrpo.doctor.model import shape_fields, write_tokenizer
from recipe.exgrpo.doctor.redact import Redactor
from recipe.exgrpo.doctor.report import FILE, TEXT, Report
from recipe.exgrpo.doctor.verdicts import FAILED, OK, WARNING, Verdict
from recipe.exgrpo.presets.compose import ROOT

ENV = {
    "HF_TOKEN": "s3cr3t-of-mine",
    "WANDB_API_KEY": "0123456789abcdef",
    "PATH": "/usr/bin",
    "https_proxy": "http://me:pw@proxy:80",
    "RAY_AUTH_MODE": "token",
    "DB_PASSWORD": "horse",
}
ABOUT = {"device": "cpu", "sections": ["toy"], "commit": "abc", "complete": True}


@pytest.fixture
def redactor():
    return Redactor(Path("/data/alice/out"), ENV, home=Path("/home/alice"), user="alice")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("/data/alice/out/toy-exgrpo/metrics.jsonl", "OUT/toy-exgrpo/metrics.jsonl"),
        (f"{ROOT}/scripts/launch.sh", "CHECKOUT/scripts/launch.sh"),
        ("/home/alice/.cache/x of alice", "~/.cache/x of <user>"),
        ("/home/bob/x and /Users/carol/y", "/home/<user>/x and /Users/<user>/y"),
        ("token s3cr3t-of-mine, key 0123456789abcdef", "token <HF_TOKEN>, key <WANDB_API_KEY>"),
        ("via http://me:pw@proxy:80", "via <https_proxy>"),
        ("hf_abcdefghijklmnopqrstu and ghp_abcdefghijklmnopqrstu", "<secret> and <secret>"),
        ("git clone https://x:y@github.com/z", "git clone https://<secret>@github.com/z"),
        ("?token=abcdef123456&x=1", "?token=<secret>&x=1"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer <secret>"),
        ("worker at 10.1.2.3:6379, (pid=7, ip=10.1.2.3)", "worker at <ip>:6379, (pid=7, ip=<ip>)"),
        ("127.0.0.1:8000, cudnn 9.19.0.56, driver 580.65.06", "127.0.0.1:8000, cudnn 9.19.0.56, driver 580.65.06"),
        ("/usr/bin stays", "/usr/bin stays"),
        ("tokens of malice, a token, horseshoe", "tokens of malice, a token, horseshoe"),
        ("horse, pw=horse", "<DB_PASSWORD>, pw=<DB_PASSWORD>"),
    ],
)
def test_what_is_private_is_replaced(redactor, text, written):
    assert redactor.text(text) == written


def test_the_host_is_replaced(redactor, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "alices-box")
    assert Redactor(Path("/out"), {}, Path("/home/a"), "").text("on alices-box") == "on <host>"


def test_nothing_private_is_in_the_files(redactor, tmp_path):
    report = Report(
        {"started": "2026", "seconds": 1.0, "device": "cpu", "sections": ["toy"], "commit": "abc", "complete": True}
    )
    private = "/home/alice/x s3cr3t-of-mine"
    report.verdicts = [
        Verdict("toy", "exgrpo", FAILED, private, {"path": private, "none": None, "tokens_per_second": 1.0})
    ]
    report.logs, report.commands = {"toy exgrpo": [private]}, {"toy exgrpo": f"RUN={private}"}
    assert report.failed
    content = report.write(tmp_path, redactor)
    assert content["verdicts"][0]["figures"] == {
        "path": "~/x <HF_TOKEN>",
        "none": None,
        "tokens_per_second": 1.0,
    }
    for name in (FILE, TEXT):
        written = (tmp_path / name).read_text()
        assert "~/x <HF_TOKEN>" in written
        assert "alice" not in written
        assert "s3cr3t" not in written
    assert json.loads((tmp_path / FILE).read_text()) == content


def test_the_text_has_a_line_for_each_verdict(redactor, tmp_path):
    report = Report(
        {
            "started": "2026-11-30",
            "seconds": 61.0,
            "device": "cpu",
            "sections": ["toy"],
            "commit": "abc",
            "complete": True,
        }
    )
    report.verdicts = [Verdict("toy", "exgrpo", OK, "2 steps"), Verdict("machine", "shm", WARNING, "little")]
    report.write(tmp_path, redactor)
    assert (tmp_path / TEXT).read_text().splitlines() == [
        "exgrpo doctor, cpu: 1 ok, 1 warning",
        "2026-11-30, 61 s, part, commit abc",
        "",
        "machine",
        "  warning  shm                little",
        "",
        "toy",
        "  ok       exgrpo             2 steps",
    ]


# ---- the command


@pytest.fixture
def examined(monkeypatch, tmp_path):
    """examined(verdict, *arguments) -> (exit code, what the examination was asked for)."""
    asked = {}

    class Recorded(doctor.Examination):
        def run(self):
            asked.update(sections=self.sections, quick=self.quick, limit_s=self.limit_s, device=self.device)
            report = Report(self._about())
            report.verdicts = [Verdict("toy", "exgrpo", asked["verdict"], "so")]
            report.write(self.out, Redactor(self.out))
            return report

    def run(verdict: str, *arguments: str) -> tuple[int, dict]:
        asked["verdict"] = verdict
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(doctor, "Examination", Recorded)
        return main(["doctor", "--out", str(tmp_path / "out"), *arguments]), asked

    return run


@pytest.mark.parametrize(("verdict", "code"), [(OK, 0), (WARNING, 0), (FAILED, 1)])
def test_the_exit_code_is_of_the_worst(examined, verdict, code):
    assert examined(verdict)[0] == code


def test_options_reach_the_examination(examined, capsys):
    code, asked = examined(OK, "--only", "speed", "--only", "machine", "--limit", "60", "--json")
    assert (code, asked["sections"], asked["limit_s"]) == (0, ["machine", "speed"], 60.0)
    assert json.loads(capsys.readouterr().out)["verdicts"][0]["check"] == "exgrpo"
    assert examined(OK, "--quick")[1]["quick"]
    assert examined(OK)[1]["sections"] == ["machine", "toy", "model", "speed"]


@pytest.mark.parametrize("arguments", [["--only", "everything"], ["--limit", "0"], ["--limit", "soon"]])
def test_a_wrong_command_line_is_2(examined, arguments):
    with pytest.raises(SystemExit) as ended:
        examined(OK, *arguments)
    assert ended.value.code == 2


def test_what_cannot_be_begun_is_2_and_touches_nothing(examined, monkeypatch, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert examined(OK)[0] == 2
    assert "not a folder of doctor's" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.tex").exists()
    assert examined(OK, "--quick", "--only", "speed")[0] == 2


def test_an_interruption_leaves_what_was_found(examined, monkeypatch, tmp_path, capsys):
    examined(OK)

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor.Examination, "run", interrupted)
    assert main(["doctor", "--out", str(tmp_path / "out")]) == 1
    assert "what was found until then" in capsys.readouterr().err
    assert (tmp_path / "out" / FILE).is_file()


def test_an_earlier_examination_gives_way(examined, tmp_path):
    examined(FAILED)
    (tmp_path / "out" / "toy-exgrpo").mkdir()
    assert examined(OK)[0] == 0
    assert not (tmp_path / "out" / "toy-exgrpo").exists()


def test_a_cluster_is_not_this_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert main(["doctor", "--out", str(tmp_path)]) == 2
    assert "RAY_ADDRESS" in capsys.readouterr().err


def test_the_device_is_what_runs_would_take(monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(doctor, "accelerator_visible", lambda: True)
    assert doctor.device_here([]).gigabytes == 24.0
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert doctor.device_here([]).kind == "cpu"


# ---- the model with random weights


def test_every_id_of_the_vocabulary_is_a_text(tmp_path):
    from transformers import AutoTokenizer

    size = shape_fields(small=True)["vocab_size"]
    write_tokenizer(tmp_path, size)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == size
    special = set(tokenizer.all_special_ids)
    assert special == {size - 3, size - 2, size - 1}
    assert all(tokenizer.decode([number]) for number in range(size) if number not in special)


def test_the_shapes_are_of_one_family():
    small, whole = shape_fields(small=True), shape_fields(small=False)
    assert small.keys() == whole.keys()
    assert (
        small["hidden_size"] // small["num_attention_heads"]
        == whole["hidden_size"] // whole["num_attention_heads"]
        == 64
    )
    assert whole["vocab_size"] == 151936


def test_the_coin_is_fair_and_the_texts_own():
    rewards = [compute_score("toy", f" w{n} w{n + 1}", "4") for n in range(2000)]
    assert set(rewards) == {0.0, 1.0}
    assert 0.45 < sum(rewards) / len(rewards) < 0.55
    assert compute_score("toy", " w7", "4", {"index": 1}) == compute_score("other", " w7", "5")
