"""Whatever comes in, it is answered, or refused with a problem document: never a 500.

TEST_TEXTS examples of each kind.
"""

import json
import os

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

every_character = st.characters(exclude_categories=())  # lone surrogates, too
texts = st.text(every_character, max_size=60)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | texts
names = (
    st.sampled_from(["inputs", "options", "text", "text_pair", "policy", "name", "seed", "theta", "explain"]) | texts
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))
number = int(os.environ.get("TEST_TEXTS", "200"))
quick = settings(max_examples=number, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def assert_answered_or_refused(response):
    if response.status_code == 200:
        assert response.json()["results"][0]["degraded"] is None
    else:
        assert 400 <= response.status_code < 500, response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == response.status_code


@given(text=texts)
@quick
def test_any_text_is_classified_or_refused(alone, text):
    assert_answered_or_refused(alone.classify(text))


@given(words=st.lists(texts, min_size=1, max_size=5), explain=st.booleans())
@quick
def test_any_text_with_a_known_word_is_classified(serve_edge, words, explain):
    """A word that the tokenizer knows makes a text readable, whatever stands beside it, and it travels."""
    readable = [word.encode(errors="replace").decode() for word in words]
    response = serve_edge.classify(["film " + " ".join(readable)], explain=explain)
    assert response.status_code == 200, response.text
    assert_answered_or_refused(response)


@given(inputs=values, options=values)
@quick
def test_any_json_is_classified_or_refused(alone, inputs, options):
    assert_answered_or_refused(alone.post(json.dumps({"inputs": inputs, "options": options})))


@given(body=st.binary(max_size=80))
@quick
def test_any_bytes_are_refused(alone, body):
    assert_answered_or_refused(alone.post(body))
