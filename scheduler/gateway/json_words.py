"""What is wrong with a text that is no JSON, in the words and at the place of RapidJSON, which Triton passes on."""

from __future__ import annotations

import json
import re

# By Python's words.
_WORDS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Extra data": "The document root must not be followed by other values.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
    "Invalid control character at": "Invalid encoding in string.",
}
_COMMA = {"{": "Missing a comma or '}' after an object member.", "[": "Missing a comma or ']' after an array element."}
_STRINGS_AND_BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|[\[\]{}]', re.DOTALL)


def rapid_words(error: json.JSONDecodeError) -> str:
    """Without what the client wrote there."""
    if not error.doc.strip():
        return f"The document is empty. at {len(error.doc)}"
    if error.msg == "Expecting ',' delimiter":
        return f"{_COMMA[_innermost(error.doc[: error.pos])]} at {error.pos}"
    if error.msg == "Unterminated string starting at":
        return f"Missing a closing quotation mark in string. at {len(error.doc)}"
    return f"{_WORDS.get(error.msg, error.msg)} at {error.pos}"


def _innermost(text: str) -> str:
    """The bracket that is open at the end."""
    open_brackets: list[str] = []
    for found in _STRINGS_AND_BRACKETS.finditer(text):
        if found[0] in _COMMA:
            open_brackets.append(found[0])
        elif found[0] in "]}" and open_brackets:
            open_brackets.pop()
    return open_brackets[-1] if open_brackets else "{"
