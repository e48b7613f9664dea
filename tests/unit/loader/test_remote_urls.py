import pytest

from serverless_triton.loader.errors import RemoteUrlRefused
from serverless_triton.loader.remote.urls import parse_url, without_secrets


@pytest.mark.parametrize(
    ("text", "known_as"),
    [
        ("https://host/a/model.safetensors", "https://host/a/model.safetensors"),
        ("https://HOST:8443/a/", "https://host:8443/a"),
        ("http://127.0.0.1:80/a", "http://127.0.0.1:80/a"),
        ("http://localhost/a", "http://localhost/a"),
        ("http://[::1]:5/a", "http://[::1]:5/a"),
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
        ("s3://bucket", "s3://bucket"),
        ("file:///srv/a%20b", "file:///srv/a%20b"),
        ("hf://org/model", "hf://org/model"),
        ("hf://gpt2", "hf://gpt2"),
        ("hf://org/model@refs/pr/1", "hf://org/model@refs/pr/1"),
    ],
)
def test_a_url_is_known_under_one_spelling(text: str, known_as: str):
    assert str(parse_url(text)) == known_as
    assert str(parse_url(known_as)) == known_as


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://user:pa55word@host/a", "credentials"),
        ("https://pa55word@host/a", "credentials"),
        ("s3://key:pa55word@bucket/a", "credentials"),
        ("https://host/a?X-Amz-Signature=pa55word", "secret"),
        ("https://host/a?", "secret"),
        ("https://host/a#pa55word", "secret"),
        ("http://host/a", "https"),
        ("http://127.0.0.1.evil.example/a", "https"),
        ("ftp://host/a", "use one of"),
        ("https:///a", "host"),
        ("s3:///a", "bucket"),
        ("s3://bucket:9000/a", "AWS_ENDPOINT_URL"),
        ("file://host/a", "file:///path"),
        ("https://host/a/../b", "elsewhere"),
        ("https://host/a/%2e%2e/b", "elsewhere"),
        ("https://host/a/%2Fb", "elsewhere"),
        ("https://host/a//b", "elsewhere"),
        ("https://host/a/%00", "elsewhere"),
        ("https://host/a/%ff", "elsewhere"),
        ("https://host/a\\b", "ASCII"),
        ("https://host/a b", "ASCII"),
        ("https://höst/a", "ASCII"),
        ("https://host/" + "a" * 5000, "4096"),
        ("https://host:port/a", "no URL"),
        ("https://[::1/a", "no URL"),
        ("hf://a/b/c", "organisation"),
        ("hf://org/..", "organisation"),
        ("hf://org/model@", "organisation"),
        ("hf://org/model@../x", "organisation"),
        ("hf://user:pa55word@host/model", "organisation"),
    ],
)
def test_other_urls_are_refused_with_a_reason_and_without_their_secrets(text: str, reason: str):
    with pytest.raises(RemoteUrlRefused, match=reason) as failure:
        parse_url(text)
    assert "pa55word" not in str(failure.value)


def test_unencrypted_http_is_for_who_asks_for_it():
    assert str(parse_url("http://host/a", allow_http=True)) == "http://host/a"


def test_a_file_beside_a_url_is_encoded():
    assert parse_url("s3://bucket/a").child("x y#?%.safetensors") == "s3://bucket/a/x%20y%23%3F%25.safetensors"


def test_a_url_is_shown_without_user_query_and_fragment():
    assert without_secrets("https://a:b@host/p?q#f") == "https://host/p"
    assert without_secrets("/plain/path?x") == "/plain/path?x"
