"""Chats become the prompts that transformers makes of them, and templates reach nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from serverless_triton.backend.engines import chat_template, template_sandbox
from serverless_triton.backend.engines.chat_template import ChatTemplate, load_chat_template
from serverless_triton.backend.engines.fake import ByteTokenizer, FakeEngineBuilder
from serverless_triton.backend.engines.intake import Intake
from serverless_triton.backend.engines.protocol import EngineSettings, GenerationRequest, InvalidRequest
from serverless_triton.backend.engines.torch.tokenizer import load_tokenizer

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Grüße & <b>汉字</b>"},
    {"role": "assistant", "content": "Hi.", "name": None},
    {"role": "user", "content": "  Two\nlines  "},
]
TEMPLATES = {
    "special_tokens": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "blocks_and_loop_controls": """{% for m in messages %}
    {% if loop.index0 == 2 %}
        {% continue %}
    {% endif %}
    {% generation %}{% set hidden = 1 %}{{ m.content }}{% endgeneration %}{{ hidden is defined }}
{% endfor %}""",
    "namespace_and_json": "{% set seen = namespace(system=false, texts=[]) %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set seen.system = true %}{% endif %}{% endfor %}"
    "{{ seen.system }} {{ messages | tojson(indent=2) }} {{ dict(a=1, b='<') | tojson }}",
    "absent_members": "{% for m in messages %}{{ m.name is defined }} {{ m.tool_calls }};{% endfor %}",
    "slices_and_macros": "{% macro say(m) %}<{{ m.role }}>{{ m.content.split('\\n')[-1] }}{% endmacro %}"
    "{% for m in messages[::-1] %}{{ say(m) }}{% endfor %}",
}


@pytest.fixture
def checkpoint(tmp_path: Path, make_tokenizer: Any) -> Path:
    """A tokenizer that begins every text with <s>, which a chat's prompt must not get twice."""
    make_tokenizer(bos=True).save(str(tmp_path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "</s>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def loaded(checkpoint: Path) -> ChatTemplate:
    template = load_chat_template(checkpoint)
    assert template is not None
    return template


def expected(checkpoint: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    return str(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(checkpoint: Path, name: str) -> None:
    (checkpoint / "chat_template.jinja").write_text(TEMPLATES[name])
    assert loaded(checkpoint).render(CHAT) == expected(checkpoint)


def test_the_demo_models_prompt_is_that_of_transformers(demo_model: Path) -> None:
    assert loaded(demo_model).render(CHAT) == expected(demo_model)


def write_config(checkpoint: Path, chat_template: Any) -> None:
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": chat_template}))


@pytest.mark.parametrize(
    "in_config", ["A{{ bos_token }}", [{"name": "rag", "template": "no"}, {"name": "default", "template": "A<s>"}]]
)
def test_a_template_may_stand_in_the_tokenizers_configuration(checkpoint: Path, in_config: Any) -> None:
    write_config(checkpoint, in_config)
    assert loaded(checkpoint).render(CHAT) == "A<s>"


def test_a_file_of_its_own_stands_over_the_configuration(checkpoint: Path) -> None:
    write_config(checkpoint, "config")
    (checkpoint / "chat_template.jinja").write_text("file")
    assert loaded(checkpoint).render(CHAT) == "file"


def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}, "pad_token": 3}')
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ eos_token }}{{ pad_token is defined }}"}')
    assert loaded(tmp_path).render(CHAT) == "</s>False"


def test_a_checkpoint_without_a_template_has_none(checkpoint: Path) -> None:
    assert load_chat_template(checkpoint) is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n._private = 1 %}",
        "{{ dict.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ range(1000000) | list }}",
    ],
)
def test_a_template_reaches_nothing_but_the_messages(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        ChatTemplate(source).render(CHAT)


def test_a_template_may_refuse_in_its_own_words() -> None:
    with pytest.raises(InvalidRequest, match="refuses the messages: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(CHAT)


def test_messages_that_break_a_template_are_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest, match="failed over them: TypeError"):
        ChatTemplate("{{ messages[0].content + 1 }}").render(CHAT)


def test_a_template_with_a_mistake_refuses_chats_alone() -> None:
    template = ChatTemplate("{% for %}")
    with pytest.raises(InvalidRequest, match=r"cannot be read: .* in line 1"):
        template.render(CHAT)


def test_what_a_template_writes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_CHARACTERS", 1000)
    with pytest.raises(InvalidRequest, match="more than 1000 characters"):
        ChatTemplate("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}").render(CHAT)


NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
DOUBLING = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}"


@pytest.mark.parametrize(
    "source",
    [
        NESTED.replace("BODY", ""),
        NESTED.replace("range(99999) %}BODY", "range(99999) if false %}"),
        "{% for i in range(99) recursive %}{% if loop.depth < 9 %}{{ loop(range(99)) }}{% endif %}{% endfor %}",
        DOUBLING,
        "{{ ('x' * 30000000) | map('upper') | select('string') | list | length }}",
        "{{ ('x' * 30000000) | map(attribute='a') | list | length }}",
    ],
)
def test_how_long_a_template_computes_is_bounded(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_SECONDS", 0.1)
    began_s = time.thread_time()
    with pytest.raises(InvalidRequest, match=r"chat template computes for more than 0\.1 s over the messages"):
        ChatTemplate(source).render(CHAT)
    assert time.thread_time() - began_s < 5


@pytest.mark.parametrize(
    "source",
    [
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x=3) %}{% for i in range(64) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ 10 ** 10 * [1] }}",
        "{{ [1] | slice(10 ** 12) | list }}",
        "{{ [1] | slice(1000000000000) | list }}",
        "{{ [1] | batch(1000000000000, 1) | list }}",
        "{{ 'x' | center(1000000000000) }}",
        "{{ 'x'.ljust(1000000000000) }}",
        "{{ 'x' | tojson(indent=1000000000000) }}",
        "{% set n = namespace(x='x') %}{% for i in range(64) %}{% set n.x = n.x + n.x %}{% endfor %}",
    ],
)
def test_no_single_operation_of_a_template_takes_for_ever(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template makes a value of more than"):
        ChatTemplate(source).render(CHAT)


def test_the_time_of_a_template_counts_anew_for_each_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: now_s[0])
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}")
    now_s[0] = 10 * template_sandbox.MOST_SECONDS
    assert template.render(CHAT[:1]) == "system"


def test_large_numbers_in_messages_are_only_written() -> None:
    number = 17 * 10**20
    text = ChatTemplate("{{ messages[0].content | tojson }} {{ '{}'.format(messages[0].content) }}").render(
        [{"role": "user", "content": number}]
    )
    assert text == f"{number} {number}"


@pytest.mark.parametrize("source", ["{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "{{ " + "(" * 9999])
def test_a_template_that_is_nested_too_deeply_refuses_chats_alone(source: str) -> None:
    template = ChatTemplate(source)
    with pytest.raises(InvalidRequest, match=r"cannot be read: \w+, it may be nested too deeply"):
        template.render(CHAT)


def intake(**changes: Any) -> Intake:
    settings: dict[str, Any] = {
        "vocabulary": 256,
        "tokenizer": ByteTokenizer(),
        "chat_template": ChatTemplate("{{ messages[0].content }}"),
    }
    return Intake(eos_ids=(), max_sequence_tokens=64, **{**settings, **changes})


def chat(**changes: Any) -> GenerationRequest:
    return GenerationRequest(request=1, messages=[{"role": "user", "content": "hi"}], **changes)


def test_a_chats_prompt_is_what_its_template_wrote() -> None:
    assert intake().begin(chat()).prompt_ids == tuple(b"hi")


def test_no_special_tokens_are_added_to_what_a_template_wrote(checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer is not None
    asked = intake(tokenizer=tokenizer, chat_template=ChatTemplate("<s>hi"), vocabulary=100_000).begin(chat())
    assert list(asked.prompt_ids) == tokenizer.encode("hi") == tokenizer.encode("<s>hi", add_special_tokens=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"chat_template": None}, "has no chat template"), ({"tokenizer": None}, "has no tokenizer; .* messages")],
)
def test_a_model_that_cannot_chat_says_so(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        intake(**changes).begin(chat())


def test_a_chat_beside_another_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="exactly one of text_input, input_ids and messages"):
        intake().begin(chat(text="hi"))


def test_the_fake_engine_chats() -> None:
    engine = FakeEngineBuilder().build("nowhere", {}, settings=EngineSettings(max_sequence_tokens=64))
    engine.submit(chat())
    (event,) = engine.step()
    assert bytes(event.prompt_ids) == b"user: hi\nassistant:"
