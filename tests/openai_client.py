"""The official OpenAI client against a running coordinator and worker.

    openai_client.py BASE_URL MODEL API_KEY

Every function here is a test. Nothing is mocked; a failed assertion ends the script with an error.
"""

import json
import math
import sys
import time
import urllib.request

import openai

BASE_URL, MODEL, API_KEY = sys.argv[1:4]
CLIENT = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=240)
QUESTION = [{"role": "user", "content": "How do I read a file line by line?"}]
PROMPT = "The function returns"


def get(path, access):
    """What a client sees of one of its jobs."""
    headers = {"Authorization": f"Bearer {API_KEY}", "Lockstep-Access": access}
    with urllib.request.urlopen(urllib.request.Request(BASE_URL + path, headers=headers)) as answer:
        return json.load(answer)


def raises(kind, code, call):
    try:
        call()
    except kind as error:
        assert error.code == code, (error.code, error)
        assert isinstance(error.body["message"], str) and error.body["type"], error.body
        assert error.request_id.startswith("req_"), error.request_id
        return error
    raise AssertionError(f"no {kind.__name__}")


def chat(**settings):
    settings = {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "temperature": 0} | settings
    return CLIENT.chat.completions.create(**settings)


def complete(**settings):
    settings = {"model": MODEL, "prompt": PROMPT, "max_tokens": 24} | settings
    return CLIENT.completions.create(**settings)


def test_models():
    models = list(CLIENT.models.list())
    assert [model.id for model in models] == [MODEL], models
    model = CLIENT.models.retrieve(MODEL)
    assert model.object == "model" and model.lockstep["capabilities"] == ["completions", "chat.completions"], model
    assert CLIENT.models.retrieve(model.lockstep["model_id"]) == model
    raises(openai.NotFoundError, "model_not_found", lambda: CLIENT.models.retrieve("none"))


def test_chat():
    answer = chat()
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    assert answer._request_id.startswith("req_"), answer._request_id
    (choice,) = answer.choices
    assert choice.index == 0 and choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 24 and usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    ours = answer.lockstep
    assert ours["model_id"].startswith(answer.system_fingerprint) and len(answer.system_fingerprint) == 16
    assert QUESTION[0]["content"] in ours["prompt"]
    (receipt,) = ours["receipts"]
    assert receipt["job"]["kind"]["generation"]["max_tokens"] == 24
    assert len(receipt["output"]) == usage.completion_tokens
    assert len(receipt["job"]["tokens"]) == usage.prompt_tokens
    assert get(f"/jobs/{ours['jobs'][0]}/receipt", ours["access"]) == receipt
    assert abs(answer.created - time.time()) < 3600
    assert chat().choices == answer.choices, "greedy answers are all the same"
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    assert chat(messages=parts, max_completion_tokens=24, max_tokens=openai.NOT_GIVEN).choices == answer.choices


def test_chat_stream():
    whole = chat().choices[0]
    chunks = list(chat(stream=True))
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert len(chunks) > 4, "it came at once"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == [whole.finish_reason]
    assert chunks[-1].choices[0].finish_reason and len(chunks[-1].lockstep["receipts"]) == 1
    assert chunks[0].lockstep["jobs"] == chunks[-1].lockstep["jobs"] and "receipts" not in chunks[0].lockstep

    counted = list(chat(stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None for chunk in counted[:-1])
    assert counted[-1].choices == [] and counted[-1].usage == chat().usage and counted[-1].lockstep["receipts"]


def test_seed():
    def text(seed):
        return complete(seed=seed, temperature=1.2, max_tokens=32).choices[0].text

    assert text(7) == text(7)
    assert len({text(seed) for seed in range(4)}) > 1
    ours = complete(seed=7).lockstep["receipts"][0]["job"]["seed"]
    assert ours == "07" + 31 * "00", ours
    # No seed is a new one each time.
    assert len({complete(temperature=1.5, max_tokens=32).choices[0].text for _ in range(4)}) > 1


def test_choices():
    one = complete(seed=3, temperature=1.5)
    two = complete(seed=3, temperature=1.5, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text != two.choices[1].text
    assert two.usage.prompt_tokens == one.usage.prompt_tokens
    assert len(two.lockstep["jobs"]) == len(two.lockstep["receipts"]) == 2

    texts = {0: "", 1: ""}
    for chunk in complete(seed=3, temperature=1.5, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {choice.index: choice.text for choice in two.choices}

    several = complete(prompt=[PROMPT, "A string is", "An error"], temperature=0, n=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert several.choices[0].text == complete(temperature=0).choices[0].text
    as_tokens = one.lockstep["receipts"][0]["job"]["tokens"]
    assert complete(prompt=as_tokens, seed=3, temperature=1.5).choices[0].text == one.choices[0].text


def test_stop():
    whole = complete(temperature=0, max_tokens=40).choices[0].text
    # Something from the middle, across tokens.
    middle = len(whole) // 2
    stop = whole[middle : middle + 5]
    for stops in (stop, [stop, "not in there"]):
        for stream in (False, True):
            answer = complete(temperature=0, max_tokens=40, stop=stops, stream=stream)
            choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
            assert "".join(choice.text for choice in choices) == whole[: whole.index(stop)], (whole, stop, choices)
            assert choices[-1].finish_reason == "stop"
    assert complete(temperature=0, max_tokens=1).choices[0].finish_reason == "length"


def test_settings():
    """All of them are taken, and end up in the job."""
    more = {"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    answer = chat(
        temperature=0.7,
        top_p=0.9,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias={"5": -100, "3": 1.5},
        seed=-1,
        user="somebody",
        extra_body=more | {"lockstep": {"date": "2025-02-03", "audit": "default"}, "unknown_field": 1},
    )
    job = answer.lockstep["receipts"][0]["job"]
    asked = job["kind"]["generation"]
    expected = {"temperature": 7000, "top_p": 9000, "top_k": 40, "min_p": 500, "repetition_penalty": 11000}
    expected |= {"presence_penalty": -5000, "frequency_penalty": 2500, "logit_bias": [[3, 15000], [5, -1000000]]}
    assert {key: asked[key] for key in expected} == expected, asked
    assert job["seed"] == 8 * "ff" + 24 * "00"


def test_logprobs():
    answer = chat(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)
    assert b"".join(bytes(entry.bytes or []) for entry in content).decode() == answer.choices[0].message.content
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3, entry
        assert entry.logprob == entry.top_logprobs[0].logprob and entry.token == entry.top_logprobs[0].token, "greedy"
        assert sum(math.exp(other.logprob) for other in entry.top_logprobs) < 1.001
    chunks = list(chat(logprobs=True, top_logprobs=3, stream=True))
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert [entry for part in streamed if part for entry in part.content] == content
    (receipt,) = answer.lockstep["receipts"]
    assert receipt["job"]["kind"]["generation"]["logprobs"] == 4 and receipt["worker"]["receipt"]["logprobs"]
    assert len(receipt["output"]) == 8 * answer.usage.completion_tokens

    answer = complete(logprobs=2, temperature=0.9, seed=5)
    (choice,) = answer.choices
    lists = choice.logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)
    for token, value, top, offset in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, lists.text_offset):
        assert len(top) == 2 and value <= max(top.values()) + 1e-9 and top.get(token, value) == value
        assert token.startswith("bytes:") or choice.text[offset:].startswith(token), (choice.text, offset, token)
    chunks = [chunk.choices[0] for chunk in complete(logprobs=2, temperature=0.9, seed=5, stream=True)]
    for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [item for chunk in chunks if chunk.logprobs for item in getattr(chunk.logprobs, key)]
        assert streamed == getattr(lists, key), key


def test_errors():
    bad = openai.BadRequestError
    raises(openai.NotFoundError, "model_not_found", lambda: chat(model="none"))
    too_long = raises(bad, "context_length_exceeded", lambda: complete(prompt="word " * 20_000))
    assert "maximum context length is" in too_long.message and too_long.param == "prompt"
    raises(bad, "context_length_exceeded", lambda: complete(prompt=[5] * 200, max_tokens=limit()))
    for param, settings in [("max_tokens", {"max_tokens": -1}), ("seed", {"seed": 2**70}),
                            ("messages[0].role", {"messages": [{"role": "wizard", "content": "x"}]})]:
        assert raises(bad, None, lambda settings=settings: chat(**settings)).param == param
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for code, settings in [
        ("unsupported_parameter", {"tools": tools}),
        ("unsupported_parameter", {"response_format": {"type": "json_object"}}),
        (None, {"logprobs": True, "top_logprobs": 21}),
        (None, {"temperature": -1}),
        (None, {"top_p": 1.5}),
        (None, {"max_tokens": 0}),
        (None, {"n": 0}),
        (None, {"n": 1000}),
        (None, {"messages": []}),
        (None, {"stop": ["a", "b", "c", "d", "e"]}),
        (None, {"logit_bias": {"x": 1}}),
        (None, {"stream": True, "extra_body": {"lockstep": {"audit": "hold"}}}),
        (None, {"extra_body": {"lockstep": {"typo": 1}}}),
        (None, {"extra_body": {"lockstep": {"date": "yesterday"}}}),
    ]:
        raises(bad, code, lambda: chat(**settings))
    raises(bad, "wrong_kind_of_model", lambda: CLIENT.embeddings.create(model=MODEL, input="x"))
    stranger = CLIENT.with_options(api_key="wrong")
    raises(openai.AuthenticationError, "invalid_api_key", stranger.models.list)
    # Harmless forms of what is refused otherwise.
    chat(tools=[], tool_choice="none", response_format={"type": "text"}, logprobs=False, max_tokens=1)


def limit():
    """More tokens than are left beside a prompt of 200, but not more than the model has."""
    return min(CLIENT.models.retrieve(MODEL).lockstep["max_tokens"] - 100, 4096)


def test_disconnect():
    """A client that goes away does not want its answer any more, and nobody works on it."""
    stream = complete(max_tokens=400, n=8, stream=True, temperature=1.0)
    chunk = next(iter(stream))
    ours = chunk.lockstep
    stream.close()
    for job in ours["jobs"]:
        for _ in range(600):
            status = get(f"/jobs/{job}", ours["access"])
            if status["status"] in ("failed", "done"):
                break
            time.sleep(0.05)
        else:
            raise AssertionError(status)
    ends = [get(f"/jobs/{job}", ours["access"]) for job in ours["jobs"]]
    cancelled = [end for end in ends if end["status"] == "failed" and "cancelled" in end["reason"]]
    # One or the other may have been through before the connection was seen to be closed.
    assert len(cancelled) >= 4, ends
    assert complete(max_tokens=1).choices, "the worker is free again"


def main():
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            start = time.monotonic()
            test()
            print(f"ok {name} {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
