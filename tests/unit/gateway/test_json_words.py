"""What a text that is no JSON is told."""

from __future__ import annotations

import json

import pytest

from serverless_triton.scheduler.gateway.json_words import rapid_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "The document is empty. at 0"),
        ("{bad", "Missing a name for object member. at 1"),
        ('{"a": [', "Invalid value. at 7"),
        ('{"a" 1}', "Missing a colon after a name of object member. at 5"),
        ('{"a": [] "b": 1}', "Missing a comma or '}' after an object member. at 9"),
        ('{"a]": {}, "b": [1 2]}', "Missing a comma or ']' after an array element. at 19"),
        ('{"a": [{"b": 1}, 2 3]}', "Missing a comma or ']' after an array element. at 19"),
        ('{"a": "b', "Missing a closing quotation mark in string. at 8"),
        ("{} x", "The document root must not be followed by other values. at 3"),
    ],
)
def test_it_is_told_in_rapidjsons_words(text: str, words: str):
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    assert rapid_words(caught.value) == words
