"""The page in a real browser: every place in it, hostile text, a state of 50,000 trajectories. Skips where there is none.

Debian: `apt-get install chromium chromium-driver` (which .ci/run tries).
"""

import shutil
import threading
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from browse_runs import HOSTILE, HOSTILE_IDS, TOKENIZER, K, buffer_of, hostile_run, log, save

from recipe.exgrpo.browse.page import Limits, render
from recipe.exgrpo.browse.serve import Server, Site
from recipe.exgrpo.browse.sources import read
from recipe.exgrpo.browse.tokens import Words
from recipe.exgrpo.cli.main import main
from recipe.exgrpo.core.buffer import ExperienceBuffer, Response

pytestmark = pytest.mark.slow
BROWSERS, DRIVER = ("chromium", "chromium-browser", "google-chrome"), "chromedriver"
OPENS_WITHIN_MS = 3000
READY = "return document.body.dataset.ready && document.body.dataset.shown === (location.hash || '#curves')"


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    binary, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which(DRIVER)
    if not binary or not driver:
        pytest.skip("needs a browser and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def visit(browser):
    """visit(address, hash) -> the text shown there, once it is complete; no complaint and no script of a model's since."""
    from selenium.webdriver.support.ui import WebDriverWait

    def go(address: str, hash: str = "") -> str:
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(address + hash)
        WebDriverWait(browser, 60, poll_frequency=0.05).until(lambda b: b.execute_script(READY))
        complaints = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
        assert complaints == []  # a script refused by the policy would be one
        assert browser.execute_script("return window.pwned") is None
        return browser.execute_script("return document.querySelector('section:not([hidden])').innerText")

    return go


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = hostile_run(tmp_path_factory.mktemp("page") / "run")
    log(run.parent / "base", 6, ["a"], [0])
    assert main(["browse", str(run), "--baseline", str(run.parent / "base")]) == 0
    return (run / "browse.html").as_uri()


def seen(text: str) -> str:
    """Text as the page shows it: what is invisible or turns the line around is spelled out."""
    return "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text)


def drawn(browser) -> int:
    """Canvases that Bokeh has painted, in whatever shadow tree."""
    script = """
        const all = (root) => [...root.querySelectorAll("*")].flatMap((e) => [e, ...(e.shadowRoot ? all(e.shadowRoot) : [])]);
        const here = all(document.querySelector("section:not([hidden])"));
        return here.filter((e) => e.tagName === "CANVAS" && e.width > 50).length;
    """
    return browser.execute_script(script)


def test_curves_and_buckets_are_drawn(visit, browser, page):
    visit(page)
    assert drawn(browser) >= 2
    visit(page, "#buckets")
    assert drawn(browser) >= 1


def test_questions_are_listed_searched_and_sorted(visit, browser, page):
    text = visit(page, "#questions")
    for name in HOSTILE_IDS:
        assert seen(name) in text
    box = browser.find_element("css selector", "#tab-questions input")
    box.send_keys("retired")
    rows = browser.find_elements("css selector", "#tab-questions tbody tr")
    assert [row.text.startswith("4") for row in rows] == [True]
    box.clear()
    box.send_keys("nothing like it")
    assert "nothing found" in browser.find_element("css selector", "#tab-questions .pager").text
    visit(page, "#questions")
    for first, last in (("0", "lone"), ("lone", "0")):  # rising, then falling
        browser.find_elements("css selector", "#tab-questions th")[0].click()
        rows = browser.find_elements("css selector", "#tab-questions tbody tr")
        assert rows[0].text.startswith(first)
        assert rows[-1].text.startswith(last)


def test_a_click_leads_from_a_question_to_a_trajectory(visit, browser, page):
    visit(page, "#questions")
    browser.find_elements("css selector", "#tab-questions tbody tr")[0].click()
    visit(page, browser.execute_script("return location.hash"))
    browser.find_elements("css selector", "#tab-questions tbody tr")[0].click()
    assert browser.execute_script("return location.hash").startswith("#trajectory=")


@pytest.mark.parametrize("i", [i for i in range(len(HOSTILE)) if i != 4])  # that one's question is retired
def test_what_a_model_wrote_is_text_and_runs_nothing(visit, browser, page, i):
    text = visit(page, f"#trajectory={2 * i}")
    shown = browser.execute_script("return document.querySelector('.text').textContent")
    assert shown == "prompt" + seen(HOSTILE[i])
    assert seen(HOSTILE_IDS[i]) in text
    markup = "return document.querySelectorAll('main img, main a, main script, main svg, main style').length"
    assert browser.execute_script(markup) == 0


def test_own_tokens_tools_and_prompt_are_told_apart(visit, browser, page):
    text = visit(page, "#trajectory=0")
    kinds = browser.execute_script("return [...document.querySelectorAll('.text span')].map((s) => s.className)")
    trajectory = read(Path(urlparse(page).path).parent).buffer.trajectory(0)
    own = ["own" if mine else "other" for mine in trajectory.mask]
    assert [kind for kind in kinds if kind] == ["prompt"] * len(trajectory.prompt_ids) + own
    colours = browser.execute_script(
        "return [...document.querySelectorAll('.own')].map((s) => s.style.backgroundColor)"
    )
    assert len(set(colours)) == 1
    assert "uses 1" in text
    assert f"last ratio {np.exp(-0.4 + 0.5):.3f}" in text
    assert "age, steps 11" in text


def test_a_token_has_the_colour_of_its_log_prob(visit, browser, tmp_path):
    log_probs, buffer = [0.0, -0.5, -2.5, -5.0, -9.0], ExperienceBuffer(K)
    buffer.record("a", 1)
    buffer.add("a", Response([40, 41, 42, 43, 44], log_probs), 1.0, step=1)
    save(tmp_path, buffer, 2)
    assert main(["browse", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    visit((tmp_path / "page.html").as_uri(), "#trajectory=0")
    script = """return [...document.querySelectorAll('.text .own')].map(
        (s) => [s.title, getComputedStyle(s).backgroundColor.match(/\\d+/g).map(Number)])"""
    titles, colours = zip(*browser.execute_script(script), strict=True)
    assert [float(title.split()[1].rstrip(",")) for title in titles] == log_probs
    green = [rgb[1] for rgb in colours]  # white where the model was sure, red where it was not, from 5 nats on alike
    assert green[0] == 255
    assert green[:4] == sorted(set(green), reverse=True)
    assert green[3] == green[4]


def test_a_step_says_what_was_replayed_and_why(visit, page):
    text = visit(page, "#step=5")
    assert "Stored trajectories in the update of step 5: 1." in text
    assert "1 taken of 3" in text
    assert "0.1250" in text
    assert "and 1 more, ranked lower" in text


def test_fifty_thousand_trajectories_open_in_three_seconds(visit, browser, tmp_path, record_property):
    run, rng = tmp_path / "large", np.random.default_rng(0)
    buffer = ExperienceBuffer(K)
    for q in range(10_000):
        buffer.record(str(q), 1 + q % (K - 1))
        for j in range(5):
            ids = rng.integers(0, 280, 40)
            buffer.add(str(q), Response(ids, -rng.exponential(0.3, 40)), 1.0, step=j)
    save(run, buffer, 100)
    log(run, 100, [str(q) for q in range(10_000)], list(range(50_000)))
    assert main(["browse", str(run)]) == 0
    text = visit((run / "browse.html").as_uri(), "#trajectories")
    assert "1–50 of 50,000" in text
    ready, size = (
        int(browser.execute_script("return document.body.dataset.ready")),
        (run / "browse.html").stat().st_size,
    )
    record_property("opens_ms", ready)
    record_property("bytes", size)
    assert ready < OPENS_WITHIN_MS, f"{ready} ms for {size:,} bytes"
    visit((run / "browse.html").as_uri(), "#trajectory=49999")
    assert browser.execute_script("return document.querySelectorAll('.own').length") == 40


def test_a_served_page_gets_tokens_and_follows(visit, browser, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    run = hostile_run(tmp_path / "run")
    site = Site(lambda: read(run), lambda content: render(content, served=True), lambda: Words(TOKENIZER))
    server = Server(site, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        visit(server.address, "#trajectories")
        log(run, 33, ["a"], [0])
        waiting = WebDriverWait(browser, 20, poll_frequency=0.2)
        waiting.until(lambda b: "step 33" in b.find_element("id", "summary").text)
        assert browser.execute_script("return location.hash") == "#trajectories"  # where the reader was
    finally:
        browser.get("about:blank")
        server.shutdown()
        thread.join()
        server.server_close()


def test_tokens_that_are_not_in_the_page_come_from_its_server(visit, browser, tmp_path):
    save(tmp_path, buffer_of({"a": [("1 + 1 = 2", 3)]}), 4)
    made = lambda content: render(content, limits=Limits(token_bytes=0), tokenizer=TOKENIZER, served=True)  # noqa: E731
    server = Server(Site(lambda: read(tmp_path), made, lambda: Words(TOKENIZER)), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        visit(server.address, "#trajectory=0")
        assert browser.execute_script("return document.querySelector('.text').textContent") == "prompt1 + 1 = 2"
    finally:
        browser.get("about:blank")
        server.shutdown()
        thread.join()
        server.server_close()
