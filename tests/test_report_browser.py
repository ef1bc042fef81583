"""The report of a real evaluation in a real browser."""

from dataclasses import replace

import pytest

from soae_ext.cli import main
from soae_ext.evaluation.curves import PRESETS
from tests import chromium

pytestmark = pytest.mark.slow

DRAWN = """Promise.all([...document.images].map(image => image.decode().then(() => '', () => image.alt)))
    .then(failed => [document.images.length, failed.filter(alt => alt),
                     [...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length])"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What `soae evaluate` writes, with every section, of attacks that fool some of the images."""
    path = tmp_path_factory.mktemp("report") / "run.json"
    few = replace(PRESETS["quick"], radii=(0.0, 1.0), budgets=(1, 4), iterations=(1, 3), fd_steps=(1e-3, 1.0))
    words = ["evaluate", "--n", "24", "--eps", "0.34", "--attack", "FGSM", "PGD-5", "SOAE-4", "--output", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "quick", replace(few, thresholds=(1e-2, 1e-1)))
        assert main(words) == 0
    return path.with_suffix(".html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = chromium.find()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(chromium.NAMES)} is installed")
    with chromium.page(executable, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375, 320])
def test_the_report_in_chromium(report, browser, width, scheme):
    browser.open(report, width, 800, scheme)
    images, failed, empty = browser.evaluate(DRAWN)
    assert images > 50
    assert (failed, empty) == ([], 0)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(13, 17, 23)" if scheme == "dark" else "rgb(246, 248, 250)"
    )
    # The charts are those for the scheme: a dark one is not drawn on white.
    sources = "[...document.querySelectorAll('picture img')].map(i => i.currentSrc == i.src)"
    assert set(browser.evaluate(sources)) == {scheme == "light"}
    titles = browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")
    wanted = "Results,Worst case,Sanity checks,Examples,Perturbations,Curves,Edges,Features,Setup"
    assert set(wanted.split(",")) < set(titles)
    assert "PGD-5" in browser.evaluate("document.querySelector('main').innerText")
    # All links of the contents lead somewhere, and every id is there once.
    assert browser.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    assert browser.evaluate("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == browser.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    assert browser.evaluate("[...document.images].every(image => image.alt)")
    # Events of the page come in before the answers above.
    assert browser.of("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown") == []
    assert browser.of("Network.loadingFailed") == []
    urls = [event["request"]["url"] for event in browser.of("Network.requestWillBeSent")]
    assert [url for url in urls if not url.startswith("data:")] == [report.as_uri()]


def test_the_browser_would_notice(browser, tmp_path):
    """A broken picture, an error and a request to the network are seen by the checks above."""
    path = tmp_path / "broken.html"
    path.write_text(
        "<!doctype html><img alt='broken' src='data:image/png;base64,AAAA'>"
        "<script>console.error('no'); undefined_name()</script><img alt='far' src='http://127.0.0.1:9/far.png'>"
    )
    browser.open(path, 800, 600, "light")
    images, failed, empty = browser.evaluate(DRAWN)
    assert (images, sorted(failed), empty) == (2, ["broken", "far"], 2)
    assert browser.of("Runtime.consoleAPICalled")
    assert browser.of("Runtime.exceptionThrown")
    assert any(event["request"]["url"].startswith("http:") for event in browser.of("Network.requestWillBeSent"))
