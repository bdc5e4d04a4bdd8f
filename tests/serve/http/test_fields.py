"""Fields at neutral values change no answer; at others they are rejected; docs and SDK list the same fields."""

import openai
import pytest
from openai.types import image_create_variation_params, image_edit_params, image_generate_params
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params, tool_param
from PIL import Image

from serve.http.errors import ApiError
from serve.http.forms import fields
from serve.http.forms.bodies import to_form
from serve.http.forms.chat import ChatBody
from serve.http.forms.images import EditsForm, ImagesBody, VariationsForm
from serve.http.forms.responses import ImageTool, ResponsesBody
from tests.serve.client import assert_refusal, data_url, question, raw, serving
from tests.serve.http import field_table

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
TALK = {"messages": question("What colour?")}
GENERATION = {"prompt": "a red circle"}
ROUTES = ((ChatBody, TALK, fields.CHAT), (ImagesBody, GENERATION, fields.IMAGES))
NOT_HONOURED = [
    ("frequency_penalty", 0.5),
    ("frequency_penalty", False),
    ("presence_penalty", "0"),
    ("logit_bias", {"50256": -100}),
    ("logprobs", True),
    ("logprobs", 0),
    ("top_logprobs", 5),
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice", "required"),
    ("response_format", {"type": "json_object"}),
    ("reasoning_effort", "high"),
    ("stop_token_ids", [7]),
    ("do_sample", True),
    ("extra_body", {"top_k": 40}),
]


@pytest.fixture(scope="module")
def server(reference):
    with serving(reference) as server:
        yield server


def neutral_values(table):
    return [(name, value) for name, rule in table.items() if isinstance(rule, fields.Neutral) for value in rule.values]


@pytest.mark.parametrize(("form", "plain", "table"), ROUTES)
def test_a_field_without_effect_leaves_the_request_as_it_is(form, plain, table):
    expected = to_form(plain, form)
    ignored = [name for name, rule in table.items() if isinstance(rule, fields.Ignored)]
    values = [*neutral_values(table), *((name, value) for name in ignored for value in ("x", 3, {}, [], True))]
    for name, value in [*values, *((name, None) for name in (*table, "anything_else"))]:
        assert to_form(plain | {name: value}, form) == expected, (name, value)
    assert to_form(plain | dict(values), form) == expected


@pytest.mark.parametrize(("name", "value"), NOT_HONOURED)
def test_another_value_would_change_the_answer_and_is_refused(name, value):
    with pytest.raises(ApiError) as caught:
        to_form(TALK | {name: value}, ChatBody)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, name, "unknown_parameter")
    assert f"send {fields.CHAT[name]}, or nothing" in caught.value.message


@pytest.mark.parametrize(
    ("form", "body", "name", "why"),
    [
        (ChatBody, TALK, "audio", "replies are text and images"),
        (ResponsesBody, {"input": "hi"}, "previous_response_id", "nothing is stored"),
    ],
)
def test_what_is_never_honoured_says_why(form, body, name, why):
    assert to_form(body | {name: None}, form) == to_form(body, form)
    with pytest.raises(ApiError, match=why) as caught:
        to_form(body | {name: "x"}, form)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, name, "unknown_parameter")


def test_what_only_changes_draws_is_refused_only_then():
    assert to_form(TALK | {"top_k": 40, "min_p": 0.1}, ChatBody) == to_form(TALK, ChatBody)
    with pytest.raises(ApiError, match="send -1 or 0, or nothing"):
        to_form(TALK | {"top_k": 40, "temperature": 0.7}, ChatBody)


def test_blank_strings_and_nulls_inside_are_neutral_too():
    assert to_form(TALK | {"verbosity": " medium "}, ChatBody) == to_form(TALK, ChatBody)
    written = {"response_format": {"type": "text", "json_schema": None}, "stop": [""]}
    assert to_form(TALK | written, ChatBody) == to_form(TALK, ChatBody)


def test_the_answer_is_that_of_the_request_without_them(server):
    neutral = dict(neutral_values(fields.CHAT)) | {"user": "me", "metadata": {"a": "b"}, "store": False}
    plain = raw("POST", server.url + CHAT, TALK | {"max_tokens": 4})
    sent = raw("POST", server.url + CHAT, TALK | {"max_tokens": 4} | neutral)
    assert sent.status == 200 and sent.json["choices"] == plain.json["choices"]
    generation = GENERATION | {"seed": 2}
    neutral = dict(neutral_values(fields.IMAGES)) | {"moderation": "low", "user": "me", "output_compression": None}
    plain, sent = (raw("POST", server.url + IMAGES, body) for body in (generation, generation | neutral))
    assert sent.status == 200 and sent.json["data"] == plain.json["data"]


def test_the_openai_client_may_send_all_that_it_has(server):
    """Each optional parameter of the SDK at the value that is its default in OpenAI's documentation."""
    defaults = {name: values[0] for name, values in _by_name(fields.CHAT).items() if name in _sdk_parameters()}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        reply = client.chat.completions.create(
            model="nano",
            max_completion_tokens=3,
            messages=question("What colour?"),
            n=1,
            seed=None,
            temperature=1,
            top_p=1,
            stream=False,
            stream_options=None,
            modalities=["text"],
            **defaults,
        )
        assert reply.choices[0].finish_reason in ("stop", "length")
        message = reply.choices[0].message.model_dump()  # as people send it back: every field, most of them null
        again = [*question("What colour?"), message, *question("Why?")]
        assert client.chat.completions.create(model="nano", max_tokens=2, messages=again).choices


def _by_name(table):
    return {
        name: rule.values if isinstance(rule, fields.Neutral) else ("auto" if name == "service_tier" else None,)
        for name, rule in table.items()
    }


def _sdk_parameters():
    return set(completion_create_params.CompletionCreateParamsBase.__annotations__)


def test_objects_inside_have_fields_without_effect_too():
    parts = [
        {"type": "text", "text": "What?", "annotations": [], "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:,x", "detail": None, "format": "image/png"}},
    ]
    sent = {
        "messages": [{"role": "user", "content": parts, "name": "ann"}],
        "stream_options": {"include_obfuscation": True},
    }
    plain = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    assert to_form(sent, ChatBody) == to_form({"messages": [{"role": "user", "content": plain}]}, ChatBody)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (lambda parts: parts[1]["image_url"].update(size=3), "messages.0.content.1.image_url.size"),
        (lambda parts: parts[0].update(bold=True), "messages.0.content.0.bold"),
        (lambda parts: parts[1].update(text="x"), "messages.0.content.1.text"),
    ],
)
def test_unknown_nested_fields_are_rejected_with_their_path(server, change, param):
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    change(parts)
    answer = raw("POST", server.url + CHAT, {"messages": [{"role": "user", "content": parts}]})
    assert_refusal(answer, 400, code="unknown_parameter", param=param)


def test_the_docs_have_every_field_and_option():
    text = field_table.DOCS.read_text(encoding="utf-8")
    assert text == field_table.page(), "python -m tests.serve.http.field_table renews the page"


@pytest.mark.parametrize(
    ("form", "parameters"),
    [
        (ImagesBody, image_generate_params.ImageGenerateParamsBase),
        (EditsForm, image_edit_params.ImageEditParamsBase),
        (VariationsForm, image_create_variation_params.ImageCreateVariationParams),
        (ChatBody, completion_create_params.CompletionCreateParamsBase),
        (ResponsesBody, response_create_params.ResponseCreateParamsBase),
        (ImageTool, tool_param.ImageGeneration),
    ],
)
def test_the_tables_know_every_parameter_of_the_sdk(form, parameters):
    assert not set(parameters.__annotations__) - {*form.model_fields, *form.neutral}
    assert not set(form.model_fields) & set(form.neutral)


def test_an_image_is_looked_at_whatever_its_detail(server):
    url = data_url(Image.new("RGB", (40, 40), "red"))
    [message] = question("What is it?", url)
    message["content"][0]["image_url"]["detail"] = "low"
    assert raw("POST", server.url + CHAT, {"messages": [message], "max_tokens": 1}).status == 200
    assert len(server.seen[-1].images) == 1
