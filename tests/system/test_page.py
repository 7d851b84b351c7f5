"""The page in a real browser, over real tiers: what is seen while a text travels, by mouse, by keys, and in trouble.

Every test ends with a look at what the browser reports: no error, nothing that the policy of content forbids, and no
request to another origin. Skipped where there is no Chromium.
"""

import json
import re
import threading
from dataclasses import replace

import pytest

from lab.docs.page import chromium
from shared.errors import BadSetting
from tests.engines import SlowEngine

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'tierwise[dev]'")
expect = playwright.expect
expect.set_options(timeout=20_000)
WATCH = "addEventListener('securitypolicyviolation', (event) => console.error(`forbidden: ${event.violatedDirective}`))"
STATUS = "Failed to load resource"  # Chromium's own line about a status that the test provoked


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as browser:
            yield browser
    except BadSetting as missing:
        pytest.skip(str(missing))


@pytest.fixture
def opened(browser):
    """A builder: the page of a tier in a tab of its own; looked over at the end."""
    tabs = []

    def open_(url, **options):
        page = browser.new_context(**options).new_page()
        seen = {"url": url, "errors": [], "asked": []}
        page.on("console", lambda line: line.type == "error" and seen["errors"].append(line.text))
        page.on("pageerror", lambda error: seen["errors"].append(str(error)))
        page.on("request", lambda request: seen["asked"].append(request.url))
        page.add_init_script(WATCH)
        page.goto(url)
        expect(page.locator("#way > li").first).to_be_visible()
        tabs.append((page, seen))
        return page

    yield open_
    for page, seen in tabs:
        assert [error for error in seen["errors"] if not error.startswith(STATUS)] == []
        assert [asked for asked in seen["asked"] if not asked.startswith(seen["url"])] == []
        page.context.close()


def exit_event(n, ms):
    said = {"index": 0, "tier": "end", "exit": n, "probabilities": {"positive": 1}, "confidence": 1, "ms": ms}
    return f"event: exit\ndata: {json.dumps(said)}\n\n"


SLOW = exit_event(1, 0.1) + exit_event(2, 600.0)  # shown 50 times slower: the second one after half a minute


def ask(page, text="a fine film with a strong cast"):
    page.get_by_label("Text to classify").fill(text)
    page.get_by_role("button", name="Classify").click()


def send_everything_on(page):
    page.get_by_label("offload threshold", exact=True).locator("input[type=number]").fill("1")


def answered(page):
    expect(page.locator("#answer .label")).to_be_visible()


def compared(page):
    page.get_by_role("button", name="Ask them").click()
    expect(page.get_by_role("status")).to_have_text("The other policies have answered.")


def states(page):
    return page.locator("#way .state")


def test_exits_light_up_one_by_one_and_stop_ends_the_work(opened, listening):
    url, server, _ = listening()
    worker, steps = server._app.state.tier.worker, threading.Semaphore(0)
    engine = SlowEngine(worker._classifier.engine, sleep=lambda _: steps.acquire(timeout=30))
    worker._classifier = replace(worker._classifier, engine=engine)
    page = opened(url)
    ask(page)
    lit = page.get_by_role("article", name="end").locator(".exits .lit")
    for count in (1, 2):
        steps.release()
        expect(lit).to_have_count(count)
        expect(page.get_by_role("article", name="end").locator(".state")).to_have_text(f"layer {count} of 3")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_contain_text("Stopped")
    expect(page.get_by_role("button", name="Classify")).to_be_focused()
    expect(page.get_by_role("article", name="end").locator(".state")).to_have_text("stopped")
    rejected = server._app.state.tier.telemetry.rejected.labels("end", "abandoned")
    tries = 0
    while rejected._value.get() == 0:  # the browser hangs up a little later
        page.wait_for_timeout(20)
        assert (tries := tries + 1) < 500, "the tier was never told"
    steps.release(10)
    page.get_by_role("button", name="Classify").click()  # the tier is free again
    answered(page)


def test_the_whole_way_is_shown_and_other_policies_are_asked(opened, three):
    page = opened(three)
    send_everything_on(page)
    page.get_by_text("Request", exact=True).click()
    page.get_by_label("Seed").fill("4")
    ask(page)
    answered(page)
    for tier in ("end", "edge", "cloud"):
        box = page.get_by_role("article", name=tier)
        expect(box.locator(".state")).to_contain_text("after layer")
        expect(box.locator(".exits .left")).to_have_count(1)
        expect(box.locator(".words")).to_contain_text("strong")
        assert box.locator(".words mark").count() >= 6
    expect(page.get_by_role("article", name="end")).to_contain_text("Sent on to edge")
    rule = "Sends on below 1.00; leaves early by similarity"
    expect(page.get_by_role("article", name="end").locator(".rule")).to_contain_text(rule)
    for arrow in page.locator(".arrow").all():
        assert re.search(r"ideal.*simulated.*\d ms.*\d B.*\d B", arrow.inner_text(), re.DOTALL)
    expect(page.locator("#answer")).to_contain_text("A tier was unsure and sent the text on")
    expect(page.locator("#answer table").nth(1)).to_contain_text("cloud")
    assert "answered by cloud" in page.get_by_role("status").inner_text()
    compared(page)
    rows = {row.split("\t")[0]: row.split("\t") for row in page.locator("#others tr").all_inner_texts()}
    assert next(iter(rows)) == "collaborative"
    assert {"tabi", "random", "end-only", "edge-only", "cloud-only"} < {*rows}
    assert rows["end-only"][-1] == "0"
    assert int(rows["cloud-only"][-1].replace(",", "")) > 100
    expect(page.locator("#others-note")).to_contain_text("teach them: adaee")
    expect(page.locator("#tally")).to_contain_text("(1 compared)")


def test_the_exits_that_were_never_computed_are_told_from_the_others(opened, three):
    page = opened(three)
    page.get_by_label("theta").locator("input[type=number]").fill("1")
    ask(page)
    answered(page)
    end = page.get_by_role("article", name="end")
    expect(end.locator(".state")).to_have_text("left early, after layer 2 of 3")
    expect(end.locator(".exits .skipped")).to_have_count(1)
    expect(end.get_by_role("listitem").nth(2)).to_have_text("exit 3: never computed")


def test_a_policy_that_asks_one_tier_shows_the_link_that_passes_over_the_tier_between(opened, three):
    page = opened(three)
    page.get_by_label("Policy").select_option("cloud-only")
    expect(page.locator("#parameters")).to_have_text("This policy has none.")
    ask(page)
    answered(page)
    expect(page.get_by_role("article", name="end").locator(".state")).to_have_text("passed it on unread")
    expect(page.get_by_role("article", name="edge").locator(".state")).to_have_text("not asked")
    expect(page.locator(".arrow.used")).to_contain_text("end → cloud")


def test_a_policy_without_a_threshold_is_not_said_to_send_nothing_on(opened, three):
    page = opened(three)
    page.get_by_label("Policy").select_option("recserve")
    ask(page)
    answered(page)
    rules = {name: page.get_by_role("article", name=name).locator(".rule") for name in ("end", "cloud")}
    expect(rules["end"]).to_contain_text("Sends on as the policy decides")
    expect(rules["cloud"]).to_contain_text("Sends nothing on")


def test_events_can_be_shown_slower_than_they_came(opened, three):
    page = opened(three)
    page.get_by_label("Show").select_option("50")
    page.route("**/v1/classify", lambda route: route.fulfill(body=SLOW, content_type="text/event-stream"))
    ask(page)
    expect(page.get_by_role("article", name="end").locator(".exits .lit")).to_have_count(1)
    page.wait_for_timeout(300)
    expect(page.get_by_role("article", name="end").locator(".exits .lit")).to_have_count(1)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_contain_text("Stopped")


def test_markup_in_a_text_or_a_label_stays_text(opened, three):
    markup = "a fine <img src=x onerror=alert(1)><b>film</b> <script>alert(2)</script>"
    page = opened(three)
    ask(page, markup)
    answered(page)
    for word in ("<img", "<script>alert(2)</script>"):
        expect(page.get_by_role("article", name="end").locator(".words")).to_contain_text(word)
    answer = page.request.post(f"{three}/v1/classify", data={"inputs": "a film", "options": {"explain": True}}).json()
    text = json.dumps(answer).replace("positive", "<b>p</b>").replace("negative", "<b>n</b>")
    page.route("**/v1/classify", lambda route: route.fulfill(body=text, content_type="application/json"))
    ask(page)
    expect(page.locator("#answer .label")).to_contain_text("<b>")
    assert page.locator("main img, main b, main script").count() == 0


def test_trouble_is_told_in_words_with_what_to_do(opened, three):
    page = opened(three)
    alert = page.get_by_role("alert")
    ask(page, "  ")
    expect(alert).to_contain_text("There is no text. The box is empty. Type a text, or take an example.")
    page.get_by_role("spinbutton", name="patience").fill("0")
    ask(page)
    expect(alert).to_contain_text("patience: expected a whole number from 1 to 64")
    page.get_by_role("spinbutton", name="patience").fill("2")
    broken = {"body": exit_event(1, 1.0), "content_type": "text/event-stream"}
    page.route("**/v1/classify", lambda route: route.fulfill(**broken))
    ask(page)
    expect(alert).to_contain_text("The answer broke off")
    page.unroute("**/v1/classify")
    page.route("**/v1/classify", lambda route: route.abort())
    ask(page)
    expect(alert).to_contain_text("The tier cannot be reached")
    page.unroute("**/v1/classify")
    ask(page)
    answered(page)
    expect(alert).to_be_empty()


def test_a_new_question_forgets_what_other_policies_said_of_the_text_before(opened, three):
    page = opened(three)
    ask(page)
    answered(page)
    compared(page)
    expect(page.locator("#others tr")).not_to_have_count(0)
    ask(page, "a dull film")
    expect(page.get_by_role("status")).to_contain_text("answered by")
    expect(page.locator("#others tr")).to_have_count(0)
    expect(page.locator("#others-region")).to_be_hidden()
    expect(page.locator("#others-note")).to_be_empty()


def test_what_the_page_itself_refuses_leaves_the_answer_before_as_it_is(opened, three):
    page = opened(three)
    sent = []
    page.on("request", lambda request: request.url.endswith("/classify") and sent.append(request.url))
    ask(page, "")
    expect(page.get_by_role("alert")).to_contain_text("There is no text")
    expect(page.locator("#answer")).to_have_text("Nothing asked yet.")
    expect(states(page)).to_have_text(["waiting"] * 3)
    assert sent == []
    ask(page)
    answered(page)
    before = [*states(page).all_inner_texts(), page.locator("#answer").inner_text()]
    ask(page, " ")
    expect(page.get_by_role("alert")).to_contain_text("There is no text")
    assert [*states(page).all_inner_texts(), page.locator("#answer").inner_text()] == before
    expect(page.get_by_role("button", name="Ask them")).to_be_enabled()
    assert len(sent) == 1


def test_what_the_tier_refuses_leaves_nothing_that_seems_to_run(opened, three):
    page = opened(three)
    ask(page)
    answered(page)
    page.get_by_text("Request", exact=True).click()
    page.get_by_label("Second text").fill(" ")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"Cannot classify this\. .*blank\. Change the text"))
    expect(page.locator("#answer")).to_have_text("Nothing asked yet.")
    expect(states(page)).to_have_text(["waiting"] * 3)
    expect(page.get_by_role("button", name="Ask them")).to_be_disabled()


def test_an_answer_that_breaks_off_leaves_its_exits_and_says_that_none_came(opened, three):
    page = opened(three)
    broken = {"body": exit_event(1, 1.0), "content_type": "text/event-stream"}
    page.route("**/v1/classify", lambda route: route.fulfill(**broken))
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("The answer broke off")
    expect(page.locator("#answer")).to_have_text("No answer came.")
    expect(states(page)).to_have_text(["stopped", "not asked", "not asked"])
    expect(page.get_by_role("article", name="end").locator(".exits .lit")).to_have_count(1)


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (1, "100 %"),
        (0.99995, "over 99.9 %"),
        (0.9994, "99.9 %"),
        (0.0004, "under 0.1 %"),
        (0.0006, "0.1 %"),
        (0, "0 %"),
    ],
)
def test_a_chance_is_shown_as_certain_only_if_it_is(opened, three, share, shown):
    page = opened(three)
    answer = page.request.post(f"{three}/v1/classify", data={"inputs": "a film", "options": {"explain": True}}).json()
    (result,) = answer["results"]
    result["confidence"] = share
    result["hops"][0] |= {"offload_probability": share, "draw": 0.5, "offloaded_to": None}
    page.route("**/v1/classify", lambda route: route.fulfill(json=answer))
    ask(page)
    expect(page.locator("#answer .label .quiet")).to_have_text(shown)
    chance = f"chance to go on {shown}, draw 0.50" if share else "Stayed here."
    expect(page.get_by_role("article", name="end")).to_contain_text(chance)


NAMELESS_INPUTS = """(top) => {
  const panel = document.querySelector("#parameters");
  panel.scrollTop = top;
  const box = panel.getBoundingClientRect();
  const shown = (node) => {
    const { top, bottom } = node.getBoundingClientRect();
    return Math.min(bottom, box.bottom) - Math.max(top, box.top);
  };
  return [...panel.querySelectorAll(".inputs input, .inputs select")]
    .filter((node) => shown(node) > 20 && shown(node.closest(".field").querySelector(".name")) < 12)
    .map((node) => node.ariaLabel);
}"""


def test_no_parameter_shows_its_value_without_its_name_wherever_the_panel_is_scrolled(opened, three):
    page = opened(three, viewport={"width": 1280, "height": 1000})
    info = page.request.get(f"{three}/info").json()
    info["policy"] |= {"offload_threshold": {"end": 0.8, "edge": 0.6}, "theta": {"end": 0.2, "edge": 0.1, "cloud": 0}}
    page.route("**/info", lambda route: route.fulfill(json=info))
    page.reload()
    expect(page.get_by_label("theta, cloud", exact=True)).to_be_visible()
    height = page.evaluate("() => document.querySelector('#parameters').scrollHeight")
    assert height > 400  # it does scroll
    assert [page.evaluate(NAMELESS_INPUTS, top) for top in range(0, height, 10)] == [[]] * len(range(0, height, 10))


@pytest.mark.parametrize("width", [390, 560, 1280])
def test_every_column_of_the_comparison_is_on_the_screen(opened, three, width):
    page = opened(three, viewport={"width": width, "height": 800})
    if width < 901:
        page.get_by_text("Parameters", exact=True).click()
    send_everything_on(page)
    ask(page)
    answered(page)
    compared(page)
    region = page.locator("#others-region")
    assert region.evaluate("(node) => node.scrollWidth - node.clientWidth") == 0
    for title in ("Policy", "Label", "Confidence", "Answered by", "ms", "Bytes"):
        head = region.get_by_role("columnheader", name=title, exact=True).bounding_box()
        assert head["x"] + head["width"] <= width
    aligned = """(node) => [...node.rows[0].cells].map((head, at) =>
      Math.abs(head.getBoundingClientRect().left - node.rows[1].cells[at].getBoundingClientRect().left) < 1)"""
    assert region.locator("table").evaluate(aligned) == [True] * 6  # each value is under its name


def test_a_degraded_answer_says_so_and_is_counted(opened, staying):
    url, *_ = staying(upstreams={"edge": "http://127.0.0.1:9"}, link_profiles={"edge": "ideal"})
    page = opened(url)
    send_everything_on(page)
    ask(page)
    expect(page.locator("#answer .warning")).to_contain_text("Degraded: a further tier could not be reached.")
    expect(page.get_by_role("article", name="edge").locator(".state")).to_have_text("gave no answer")
    assert "Degraded\n1" in page.locator("#tally").inner_text()


@pytest.mark.parametrize(
    ("policy", "edge", "cloud"),
    [("cloud-only", "not asked", "gave no answer"), ("edge-only", "gave no answer", "not asked")],
)
def test_only_a_tier_that_was_asked_is_said_to_have_given_no_answer(opened, staying, policy, edge, cloud):
    upstreams = {"edge": "http://127.0.0.1:9", "cloud": "http://127.0.0.1:9"}
    url, *_ = staying(upstreams=upstreams, link_profiles=dict.fromkeys(upstreams, "ideal"))
    page = opened(url)
    page.get_by_label("Policy").select_option(policy)
    ask(page)
    expect(page.locator("#answer .warning")).to_contain_text("Degraded")
    expect(states(page)).to_have_text([re.compile("after layer"), edge, cloud])


@pytest.mark.parametrize(
    ("policy", "degraded", "sent_to", "edge", "cloud"),
    [
        ("collaborative", "upstream_timeout", "edge", "gave no answer", "not asked"),
        ("collaborative", "breaker_open", "edge", "not asked for a while", "not asked"),
        ("collaborative", "deadline", None, "did not run", "did not run"),  # it may have come before the text was sent
        ("random", "upstream_timeout", None, "did not run", "did not run"),  # either may have been asked
        ("end-only", "deadline", None, "not asked", "not asked"),
        ("cloud-only", None, None, "not asked", "not asked"),
    ],
)
def test_what_is_said_of_tiers_that_did_not_run(opened, three, policy, degraded, sent_to, edge, cloud):
    page = opened(three)
    options = {"explain": True, "policy": "end-only"}
    answer = page.request.post(f"{three}/v1/classify", data={"inputs": "a film", "options": options}).json()
    answer["policy"]["name"], (result,) = policy, answer["results"]
    result["degraded"], result["hops"][0]["offloaded_to"] = degraded, sent_to
    page.route("**/v1/classify", lambda route: route.fulfill(json=answer))
    ask(page)
    answered(page)
    expect(states(page)).to_have_text([re.compile("after layer"), edge, cloud])


def test_a_tier_with_a_key_asks_for_it(opened, staying, tmp_path):
    (tmp_path / "key").write_text("0123456789abcdef")
    url, *_ = staying(door_key_file=tmp_path / "key")
    page = opened(url)
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("Type the key of this tier")
    page.get_by_label("Key of this tier").fill("schlüssel-0123456789")
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("The key cannot be sent")
    page.get_by_label("Key of this tier").fill("0123456789abcdef")
    ask(page)
    answered(page)
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


def test_links_can_be_changed_where_the_tier_allows_it(opened, three):
    page = opened(three)
    expect(page.locator("#links")).to_contain_text("Fixed when the tier started")
    assert page.get_by_role("switch").count() == 0
    info, puts = page.request.get(f"{three}/info").json(), []
    info |= {"link_control": True, "link_profiles": ["ideal", "lte"]}

    def put(route):
        puts.append((route.request.url.removeprefix(three), route.request.method, route.request.post_data_json))
        info["links"][0] |= puts[-1][2]
        route.fulfill(json=info["links"][0])

    page.route("**/info", lambda route: route.fulfill(json=info))
    page.route("**/v1/links/*", put)
    page.reload()
    page.get_by_label("Profile of the link to edge").select_option("lte")
    expect(page.get_by_label("Profile of the link to edge")).to_have_value("lte")
    page.get_by_role("switch", name="cut the link to edge").click()
    expect(page.locator("#links .warning")).to_have_text("cut")
    expect(page.get_by_role("switch", name="cut the link to edge")).to_be_focused()
    assert puts == [("/v1/links/edge", "PUT", {"profile": "lte"}), ("/v1/links/edge", "PUT", {"cut": True})]


def test_links_of_live_tiers_are_changed_cut_and_healed(opened, staying):
    cloud, *_ = staying(tier="cloud")
    edge, *_ = staying(tier="edge", upstreams={"cloud": cloud}, link_profiles={"cloud": "ideal"})
    links = {"upstreams": {"edge": edge}, "link_profiles": {"edge": "ideal"}}
    url, *_ = staying(**links, link_control=True, probe_ms=50, upstream_timeout_ms=3_000)
    page = opened(url)
    send_everything_on(page)
    menu = page.get_by_label("Profile of the link to edge")
    expect(menu).to_have_value("ideal")
    menu.select_option("3g")
    ask(page)
    answered(page)
    arrow = page.get_by_role("listitem").filter(has=page.get_by_role("article", name="edge")).locator(".arrow")
    expect(arrow).to_contain_text("3g")
    expect(arrow).to_contain_text("simulated")
    assert float(re.search(r"([\d.]+) ms", arrow.inner_text())[1].replace(",", "")) > 150  # 300, and jitter
    menu.select_option("ideal")
    page.get_by_role("switch", name="cut the link to edge").click()
    expect(page.locator("#links .warning")).to_have_text("cut")
    ask(page)
    expect(page.locator("#answer .warning")).to_contain_text("Degraded: a further tier did not answer in time.")
    expect(page.get_by_role("article", name="edge").locator(".state")).to_have_text("gave no answer")
    assert page.request.get(f"{url}/info").json()["links"][0]["cut"] is True
    page.reload()  # what the tier says is shown, not what was clicked
    send_everything_on(page)
    expect(page.get_by_role("switch", name="cut the link to edge")).to_be_checked()
    page.get_by_role("switch", name="cut the link to edge").click()
    expect(page.locator("#links")).to_contain_text("works")
    ask(page)
    expect(page.get_by_role("article", name="cloud").locator(".state")).to_contain_text("after layer")
    expect(page.locator("#answer .label")).to_be_visible()
    expect(page.locator("#answer")).not_to_contain_text("Degraded")


def test_the_page_can_be_used_by_keys_alone(opened, three):
    page = opened(three)
    keys = page.keyboard
    keys.press("Tab")
    keys.press("Enter")  # to the text
    keys.press("Tab") if not page.get_by_label("Text to classify").evaluate(
        "e => e === document.activeElement"
    ) else None
    keys.type("a fine film")
    expect(page.locator("#count")).to_have_text("3 words")
    keys.press("Control+Enter")
    answered(page)
    for _ in range(80):
        keys.press("Tab")
        if page.evaluate("() => document.activeElement.id") == "compare":
            break
    keys.press("Enter")
    expect(page.get_by_role("status")).to_have_text("The other policies have answered.")
    expect(page.get_by_role("button", name="Ask them")).to_be_focused()


CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (part) => {
    const c = part / 255;
    return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  };
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const ground = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return colour.startsWith("rgb(") || !node.parentElement ? colour : ground(node.parentElement);
  };
  const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  const seen = (node) => node.checkVisibility() && !node.matches(".hidden, :disabled, mark, noscript");
  return [...document.querySelectorAll("body *")].filter((node) => own(node) && seen(node))
    .map((node) => {
      const both = [getComputedStyle(node).color, ground(node)].map((colour) => luminance(rgb(colour)));
      const [a, b] = both.sort((x, y) => y - x);
      return [(a + .05) / (b + .05), node.outerHTML.slice(0, 80)];
    }).filter(([ratio]) => ratio < 4.5);
}"""
NAMELESS = """() => {
  const named = (node) => node.labels?.length || node.ariaLabel || node.getAttribute("aria-labelledby");
  return [...document.querySelectorAll("button, input, select, textarea, a, summary, [role=region], [role=group]")]
    .filter((node) => !named(node) && !node.textContent.trim()).map((node) => node.outerHTML);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_have_names_words_have_contrast_and_a_phone_is_wide_enough(opened, three, scheme):
    page = opened(three, color_scheme=scheme, viewport={"width": 360, "height": 700}, reduced_motion="reduce")
    page.get_by_text("Parameters", exact=True).click()
    send_everything_on(page)
    ask(page, "a fine film " * 30)
    answered(page)
    compared(page)
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    assert (page.locator("h1").count(), page.locator("main").count()) == (1, 1)
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.get_by_role("button", name="Dark").click()
    assert page.get_by_role("button", name="Dark").get_attribute("aria-pressed") == str(scheme == "light").lower()
    assert page.evaluate(ground) != before
    moving = "() => document.getAnimations().length"
    assert page.evaluate(moving) == 0
