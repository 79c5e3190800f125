"""What `exgrpo check` says of `exgrpo.experience.init_from`."""

import pytest
from run_folders import save

from recipe.exgrpo.checks.experience import experience_findings
from recipe.exgrpo.checks.findings import ERROR, WARNING
from recipe.exgrpo.checks.preflight import inspect_run
from recipe.exgrpo.checks.run import Run
from recipe.exgrpo.presets.compose import compose


def found(tmp_path, *overrides):
    run = Run.of(compose(["hardware=tiny", f"trainer.default_local_dir={tmp_path / 'run'}", *overrides]))
    return [(finding.severity, finding.text) for finding in experience_findings(run)]


def test_nothing_is_said_without_it(tmp_path):
    assert found(tmp_path) == []


@pytest.mark.parametrize("name", ["none.jsonl", "table.csv", "folder"])
def test_what_is_not_there_is_an_error(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "table.csv").write_text("a\n")
    ((severity, text),) = found(tmp_path, f"exgrpo.experience.init_from=[{tmp_path / name}]")
    assert severity == ERROR
    assert str(tmp_path / name) in text
    assert "exgrpo experience import" in text


def test_a_run_that_resumes_needs_no_traces(tmp_path):
    save(tmp_path / "run", 3)
    assert found(tmp_path, "exgrpo.experience.init_from=[gone.jsonl]") == []


def test_a_method_that_keeps_nothing_reads_nothing(tmp_path):
    ((severity, text),) = found(tmp_path, "method=on_policy", "exgrpo.experience.init_from=[gone.jsonl]")
    assert (severity, "keeps no experience" in text) == (WARNING, True)


def test_luffy_without_traces_is_the_baseline(tmp_path):
    ((severity, text),) = found(tmp_path, "method=luffy", "exgrpo.experience.init_from=[]")
    assert (severity, "trains as on-policy" in text) == (WARNING, True)


def test_the_check_of_a_run_says_it(tmp_path):
    config = compose(["hardware=tiny", f"exgrpo.experience.init_from=[{tmp_path / 'none.jsonl'}]"])
    assert any("init_from" in finding.text for finding in inspect_run(config))
