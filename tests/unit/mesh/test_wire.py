"""What nodes of a mesh say to each other: a head that is wrong is refused in words."""

import json

import pytest

from shared.errors import BadState
from shared.mesh.wire import Going, framed, unframed
from shared.model.state import frame

GOING = Going(call="c", id="i", text_sha256="0" * 64, segment=2, threshold=0.9, sender="n1")


def test_a_body_says_what_was_put_into_it():
    going, packed = unframed(framed(GOING, b"state"))
    assert (going, bytes(packed)) == (GOING, b"state")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"segment": 0}, "the head of the state: segment: must be greater than or equal to 1"),
        ({"segment": "two"}, "the head of the state: segment: expected a whole number"),
        ({"more": 1}, "the head of the state: more: unknown key"),
    ],
)
def test_a_wrong_head_is_named_by_its_key(change, says):
    head = GOING.model_dump() | change
    with pytest.raises(BadState) as refused:
        unframed(frame(json.dumps(head).encode(), [b"state"]))
    assert str(refused.value) == says


def test_a_head_that_is_no_json_has_no_key():
    with pytest.raises(BadState, match=r"^the head of the state: Invalid JSON"):
        unframed(frame(b"{", [b"state"]))
