"""Request fields that come as JSON in a string."""

from __future__ import annotations

import pytest
from quire.errors import InvalidArgument
from quire.schema import parse_json_object


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("{", "malformed JSON: Expecting property name enclosed in double quotes at line 1 column 2"),
        ('{"a":\n  1,,}', None),
        ("", "malformed JSON: Expecting value at line 1 column 1"),
        ("[1]", "[1]"),
        ("3", "3"),
        ('{"top_p": NaN}', "malformed JSON: NaN is no JSON number"),
        ('{"top_p": -Infinity}', "malformed JSON: -Infinity is no JSON number"),
        ('{"top_p": 1, "top_p": 1}', 'the key "top_p" twice'),
        ('{"a": ' * 100_000, "JSON nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", None),
    ],
)
def test_malformed_json(text: str, given: str | None) -> None:
    """Malformed JSON is an error with its position, under the name of the field that holds it."""
    with pytest.raises(InvalidArgument) as caught:
        parse_json_object(text, "sampling_parameters")
    assert caught.value.field == "sampling_parameters"
    assert len(str(caught.value)) < 300
    if given is not None:
        assert given == caught.value.given
