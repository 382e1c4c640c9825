"""Requests to an API with a key that the guest does not have, by the real server with the API's stand-in behind it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest
from proxy_support import GUEST, KEY, OPENAI_KEY, PLACEHOLDER, SSE, TOKEN, World, play, until
from vmw_proxy import keys, policy, tally, usage

if TYPE_CHECKING:
    from pathlib import Path

MESSAGES = "/anthropic/v1/messages"


def counts(world: World, api: str = "anthropic") -> dict[str, int]:
    """Return what is noted for today."""
    found: dict[str, int] = world.noted("usage.json").get("days", {}).get(usage.today(), {}).get(api, {})
    return found


def test_the_placeholder_becomes_the_key(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        body = b'{"model": "m", "messages": []}'
        sent = {"anthropic-version": "2023-06-01", "Cookie": "c=d", "Proxy-Authorization": "p", "X-Forwarded-For": "1.2.3.4"}
        status, headers, answer = await world.ask(f"{MESSAGES}?beta=true", body, sent)
        assert status == 200
        assert json.loads(answer)["size"] == len(body)
        (got,) = world.seen
        assert (got.method, got.path, got.body) == ("POST", "/v1/messages?beta=true", body)
        assert got.headers["x-api-key"] == KEY
        assert got.headers["anthropic-version"] == "2023-06-01"
        assert not {"cookie", "proxy-authorization", "x-forwarded-for", "authorization"} & set(got.headers)
        assert headers["request-id"] == "r"
        assert not {"set-cookie", "anthropic-organization-id", "x-echo"} & set(headers)

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("secrets", "path", "header", "value"),
    [
        (f"ANTHROPIC_AUTH_TOKEN={TOKEN}", MESSAGES, "authorization", f"Bearer {TOKEN}"),
        (f"ANTHROPIC_AUTH_TOKEN={TOKEN}\nANTHROPIC_API_KEY={KEY}", MESSAGES, "x-api-key", KEY),
        (f"export OPENAI_API_KEY='{OPENAI_KEY}' # mine", "/openai/v1/responses", "authorization", f"Bearer {OPENAI_KEY}"),
    ],
)
def test_each_key_has_its_header(tmp_path: Path, secrets: str, path: str, header: str, value: str) -> None:
    async def story(world: World) -> None:
        world.secrets(secrets)
        assert (await world.ask(path))[0] == 200
        assert {name: got for name, got in world.seen[0].headers.items() if name in {"x-api-key", "authorization"}} == {
            header: value
        }

    play(tmp_path, story)


def test_the_guests_header_says_which_of_two_keys(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.secrets(f"ANTHROPIC_API_KEY={KEY}\nANTHROPIC_AUTH_TOKEN={TOKEN}\n")
        assert (await world.ask(MESSAGES, headers={"x-api-key": "", "Authorization": "Bearer anything"}))[0] == 200
        assert world.seen[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert "x-api-key" not in world.seen[0].headers

    play(tmp_path, story)


def test_the_file_is_read_anew_for_each_request(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert (await world.ask(MESSAGES))[0] == 200
        world.secrets("ANTHROPIC_API_KEY=rotated\n")
        assert (await world.ask(MESSAGES))[0] == 200
        assert [got.headers["x-api-key"] for got in world.seen] == [KEY, "rotated"]
        world.vm(keys={"mode": "proxy"}, secrets_profile="work")
        world.secrets("ANTHROPIC_API_KEY=of-work\n", "work")
        assert (await world.ask(MESSAGES))[0] == 200
        assert world.seen[2].headers["x-api-key"] == "of-work"

    play(tmp_path, story)


@pytest.mark.parametrize(
    "secrets",
    ["", "ANTHROPIC_API_KEY=\n", "ANTHROPIC_API_KEY=with blank\n", "#ANTHROPIC_API_KEY=x\n", f"OPENAI_API_KEY={OPENAI_KEY}\n"],
)
def test_without_a_usable_key_nothing_is_sent(tmp_path: Path, secrets: str) -> None:
    async def story(world: World) -> None:
        world.secrets(secrets)
        status, _, answer = await world.ask(MESSAGES)
        assert status == 401
        assert json.loads(answer)["error"]["type"] == "authentication_error"
        assert world.seen == []

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("secrets", "path", "sent"),
    [
        (f"ANTHROPIC_API_KEY={KEY}\nANTHROPIC_BASE_URL=", f"{MESSAGES}?beta=true", "/gw/v1/messages?beta=true"),
        (f"OPENAI_API_KEY={OPENAI_KEY}\nOPENAI_BASE_URL=", "/openai/v1/responses", "/gw/responses"),
    ],
)
def test_a_gateway_of_the_profiles_own_gets_its_requests(tmp_path: Path, secrets: str, path: str, sent: str) -> None:
    async def story(world: World) -> None:
        makers_own, world.api = world.api, 1
        world.settings()
        for slash in ("", "/"):
            world.secrets(f"{secrets}https://127.0.0.1:{makers_own}/gw{slash}\n")
            assert (await world.ask(path))[0] == 200
        assert [got.path for got in world.seen] == [sent, sent]
        # The other API goes where the setting says, and another profile too: there is nobody.
        world.secrets(f"ANTHROPIC_API_KEY={KEY}\nOPENAI_API_KEY={OPENAI_KEY}\n", "work")
        world.vm(keys={"mode": "proxy"}, secrets_profile="work")
        assert (await world.ask(path))[0] == 502

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("ftp://127.0.0.1", "/openai/v1/responses"),
        ("gateway", "/openai/v1/responses"),
        ("https://user:word@127.0.0.1", "/openai/v1/responses"),
        ("https://127.0.0.1:{}", "/openai/other"),
    ],
)
def test_what_cannot_go_to_the_gateway_goes_nowhere_else(tmp_path: Path, address: str, path: str) -> None:
    async def story(world: World) -> None:
        world.secrets(f"OPENAI_API_KEY={OPENAI_KEY}\nOPENAI_BASE_URL={address.format(world.api)}\n")
        status, _, answer = await world.ask(path)
        assert status == 404
        assert "OPENAI_BASE_URL of the secrets profile default" in json.loads(answer)["error"]["message"]
        assert world.seen == []

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("record", "status", "kind"),
    [
        ({"mode": "file"}, 403, "permission_error"),
        ({}, 403, "permission_error"),
        ({"mode": "proxy", "revoked": True}, 403, "permission_error"),
        ({"mode": "proxy", "daily_requests": 1}, 429, "rate_limit_error"),
        ({"mode": "proxy", "daily_tokens": 15}, 429, "rate_limit_error"),
        ({"mode": "proxy", "daily_requests": 2, "daily_tokens": 16}, 200, None),
    ],
)
def test_the_record_decides(tmp_path: Path, record: dict[str, object], status: int, kind: str | None) -> None:
    async def story(world: World) -> None:
        # Of 15 tokens.
        assert (await world.ask(MESSAGES))[0] == 200
        world.vm(keys=record)
        got, _, answer = await world.ask(MESSAGES)
        assert got == status
        if kind:
            assert json.loads(answer)["type"] == "error"
            assert json.loads(answer)["error"]["type"] == kind
        assert len(world.seen) == (1 if kind else 2)
        got, _, answer = await world.ask("/openai/v1/responses")
        if kind and status == 403:
            assert (got, json.loads(answer)["error"]["code"]) == (status, kind)

    play(tmp_path, story)


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "PROPFIND"])
def test_no_method_that_might_show_the_key_is_passed_on(tmp_path: Path, method: str) -> None:
    async def story(world: World) -> None:
        head = f"{MESSAGES} HTTP/1.1\r\nHost: x\r\nx-api-key: {PLACEHOLDER}\r\nConnection: close\r\n\r\n"
        for allowed in policy.METHODS:
            assert (await world.say(f"{allowed} {head}".encode()))[0] == 200, allowed
        assert [got.method for got in world.seen] == list(policy.METHODS)
        status, whole = await world.say(f"{method} {head}".encode())
        assert (status, b"invalid_request_error" in whole, b"Allow: GET, HEAD, " in whole) == (405, True, True)
        assert len(world.seen) == len(policy.METHODS)

    play(tmp_path, story)


def test_a_placeholder_must_be_sent(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert (await world.ask(MESSAGES, headers={"x-api-key": ""}))[0] == 401
        assert world.seen == []

    play(tmp_path, story)


@pytest.mark.parametrize(
    "path", ["/anthropic/../openai/v1/x", "/anthropic/v1/%2e%2e/admin", "/anthropic//evil.example/x", "/anthropic/v1/..%5cx"]
)
def test_no_path_leaves_the_api(tmp_path: Path, path: str) -> None:
    async def story(world: World) -> None:
        assert (await world.ask(path))[0] in {400, 404}
        assert world.seen == []

    play(tmp_path, story)


def test_an_answer_comes_piece_by_piece(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        reader, writer = await world.open()
        writer.write(
            f"POST /anthropic/v1/stream HTTP/1.1\r\nHost: x\r\nx-api-key: {PLACEHOLDER}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"text/event-stream" in head
        assert b"Set-Cookie" not in head
        # The API says no more until it is let, so that this would never come if it were kept until the end.
        assert b"message_start" in await reader.readuntil(b"\n\n")
        # What is told counts at once.
        told = {"requests": 1, "input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 1}
        await until(lambda: counts(world) == told)
        world.held.set()
        assert b"message_stop" in await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        wanted = {"requests": 1, "input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 15}
        await until(lambda: counts(world) == wanted)

    play(tmp_path, story)


async def leave_early(world: World) -> None:
    """Ask for a stream and go when it has begun; the rest comes piece by piece."""
    world.pause = 0.05
    reader, writer = await world.open()
    writer.write(
        f"POST {MESSAGES} HTTP/1.1\r\nHost: x\r\nx-api-key: {PLACEHOLDER}\r\nContent-Length: 8\r\n\r\n".encode() + b'"stream"'
    )
    await reader.readuntil(b"message_start")
    writer.transport.abort()
    await until(lambda: not world.proxy.server.count)
    world.held.set()


def test_what_a_guest_does_not_wait_for_is_counted(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await leave_early(world)
        await until(lambda: not world.proxy._keys._under_way)
        assert counts(world) == {"requests": 1, "input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 15}

    play(tmp_path, story)


@pytest.mark.parametrize(("bound", "value"), [("REST_BYTES", 1), ("REST_SECONDS", 0.0)])
def test_what_is_not_waited_for_to_its_end_is_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: float
) -> None:
    monkeypatch.setattr(keys, bound, value)

    async def story(world: World) -> None:
        await leave_early(world)
        await until(lambda: not world.proxy._keys._under_way)
        told = f"event: message_start\ndata: {json.dumps(SSE[0])}\n\n"
        assert counts(world)["input_tokens"] == 25
        assert counts(world)["output_tokens"] >= 1 + len(told) // 4
        assert counts(world)["output_tokens"] != 15

    play(tmp_path, story)


def test_what_is_read_on_ends_when_the_keys_are_withdrawn(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await leave_early(world)
        world.held.clear()
        world.pause = 3600
        assert world.proxy._keys._under_way
        world.vm(keys={"mode": "proxy", "revoked": True})
        world.proxy.look()
        await until(lambda: not (world.proxy._keys._under_way or world.proxy._running))

    play(tmp_path, story)


@pytest.mark.parametrize(("limit", "status"), [(0, 200), (1_000_000, 403)])
@pytest.mark.parametrize(
    "path",
    [
        "/anthropic/v1/messages/batches",
        "/anthropic/v1/messages/",
        "/anthropic/v1/mess%61ges",
        "/anthropic/v1/complete",
        "/anthropic/v1/files",
        "/openai/v1/embeddings",
        "/openai/v1/images/generations",
        "/openai/v1/batches",
        "/openai/v1/responses/r_1",
    ],
)
def test_with_a_limit_of_tokens_a_path_tells_what_it_takes(tmp_path: Path, path: str, limit: int, status: int) -> None:
    async def story(world: World) -> None:
        world.secrets(f"ANTHROPIC_API_KEY={KEY}\nOPENAI_API_KEY={OPENAI_KEY}\n")
        world.vm(keys={"mode": "proxy", "daily_tokens": limit})
        for told in (f"{MESSAGES}?beta=true", f"{MESSAGES}/count_tokens", "/openai/v1/responses", "/openai/v1/chat/completions"):
            assert (await world.ask(told))[0] == 200, told
        assert (await world.ask("/anthropic/v1/models", None))[0] == 200
        assert (await world.ask("/openai/v1/models/m", None))[0] == 200
        got, _, answer = await world.ask(path)
        assert (got, len(world.seen)) == (status, 6 if status == 403 else 7)
        assert (b"permission_error" in answer) == (status == 403)

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("body", "least"),
    [(b'{"stream": true, "untold": "' + b"x" * 4000 + b'"}', 1000), (b'{"untold": 1}', tally.BACKGROUND_TOKENS)],
)
def test_usage_that_is_not_told_is_estimated(tmp_path: Path, body: bytes, least: int) -> None:
    async def story(world: World) -> None:
        world.held.set()
        world.secrets(f"OPENAI_API_KEY={OPENAI_KEY}\n")
        assert (await world.ask("/openai/v1/embeddings", body))[0] == 200
        assert counts(world, "openai") == {"requests": 1}
        assert (await world.ask("/openai/v1/chat/completions"))[0] == 200
        assert counts(world, "openai") == {"requests": 2, "input_tokens": 10, "output_tokens": 5}
        assert (await world.ask("/openai/v1/chat/completions", body))[0] == 200
        await until(lambda: not world.proxy._keys._under_way)
        assert least + 5 <= counts(world, "openai")["output_tokens"] <= least + 200

    play(tmp_path, story)


def test_few_requests_at_once_pass_a_limit_of_tokens(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.vm(keys={"mode": "proxy", "daily_tokens": 1})
        asking = [asyncio.create_task(world.ask(MESSAGES, b'{"stream": true, "untold": 1}')) for _ in range(20)]
        await until(lambda: sum(task.done() for task in asking) == 20 - tally.FEW)
        refused = [task.result() for task in asking if task.done()]
        assert {(status, headers.get("retry-after")) for status, headers, _ in refused} == {(429, "1")}
        world.held.set()
        answers = [status for status, _, _ in await asyncio.gather(*asking)]
        assert (answers.count(200), len(world.seen)) == (tally.FEW, tally.FEW)
        await until(lambda: not world.proxy._keys._under_way)
        assert (await world.ask(MESSAGES))[0] == 429
        # Without a limit there may be as many.
        world.vm(keys={"mode": "proxy"})
        answers = [status for status, _, _ in await asyncio.gather(*(world.ask(MESSAGES) for _ in range(20)))]
        assert answers == [200] * 20

    play(tmp_path, story)


def test_a_stream_ends_when_the_keys_are_withdrawn(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        reader, writer = await world.open()
        writer.write(
            f"POST /anthropic/v1/stream HTTP/1.1\r\nHost: x\r\nx-api-key: {PLACEHOLDER}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        )
        await reader.readuntil(b"message_start")
        world.proxy.look()
        assert not reader.at_eof()
        world.vm(keys={"mode": "proxy", "revoked": True})
        world.proxy.look()
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"message_stop")
        world.held.set()

    play(tmp_path, story)


def test_large_bodies_pass(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        body = b'{"x": "' + b"y" * (8 << 20) + b'"}'
        status, _, answer = await world.ask(MESSAGES, body, {"Expect": "100-continue"})
        # The answer is the one behind `100 Continue`.
        assert status == 100
        assert str(len(body)).encode() in answer

    play(tmp_path, story)


def test_usage_is_counted_by_api_and_kept_over_a_restart(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.secrets(f"ANTHROPIC_API_KEY={KEY}\nOPENAI_API_KEY={OPENAI_KEY}\n")
        for _ in range(2):
            assert (await world.ask(MESSAGES))[0] == 200
        assert (await world.ask("/openai/v1/chat"))[0] == 200
        assert counts(world) == {"requests": 2, "input_tokens": 20, "output_tokens": 10}
        assert counts(world, "openai") == {"requests": 1, "input_tokens": 3, "output_tokens": 4}

    async def again(world: World) -> None:
        world.vm(keys={"mode": "proxy", "daily_requests": 3})
        assert (await world.ask(MESSAGES))[0] == 429
        # Another VM of the same name begins anew.
        world.vm(uuid="another", keys={"mode": "proxy", "daily_requests": 3})
        (tmp_path / "instances/feature-x/usage.json").unlink()
        assert (await world.ask(MESSAGES))[0] == 200

    play(tmp_path, story)
    play(tmp_path, again)


def test_an_api_that_does_not_answer_is_an_error_of_its_own_form(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.api = 1
        world.settings()
        status, _, answer = await world.ask(MESSAGES)
        assert (status, json.loads(answer)["error"]["type"]) == (502, "api_error")

    play(tmp_path, story)


def test_an_api_that_nobody_vouches_for_gets_no_key(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        assert (await world.ask(MESSAGES))[0] == 200
        settings = (tmp_path / "proxy/settings.json").read_text()
        (tmp_path / "proxy/settings.json").write_text(settings.replace("127.0.0.1", "localhost"))
        assert (await world.ask(MESSAGES))[0] == 502
        assert len(world.seen) == 1

    play(tmp_path, story)


def test_the_key_is_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def story(world: World) -> None:
        told = b""
        world.held.set()
        for path in (MESSAGES, "/anthropic/v1/stream", "/anthropic/v1/denied", "/anthropic/v1/%0d", "/openai/v1/responses"):
            status, headers, answer = await world.ask(path)
            told += str((status, headers)).encode() + answer
        assert b"does not take ANTHROPIC_API_KEY" in told
        world.api = 1
        world.settings()
        told += (await world.ask(MESSAGES))[2]
        assert KEY.encode() not in told
        assert [got.headers["x-api-key"] for got in world.seen] == [KEY] * 3
        world.noted("usage.json")

    play(tmp_path, story)
    files = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path.name for path, text in files.items() if KEY in text] == ["secrets.env"]
    out = capfd.readouterr()
    # The stand-in of the API is aiohttp too, and logs nothing of headers.
    assert KEY not in out.out + out.err + caplog.text
    assert "feature-x: ClientConnectorError" in caplog.text


def test_notes_are_the_users_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.ask(MESSAGES)
        await world.say(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        directory = tmp_path / "instances/feature-x"
        assert world.refused()
        assert counts(world)
        assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir() if path.name != "instance.json"} == {
            "usage.json": 0o600,
            "refused.json": 0o600,
        }

    play(tmp_path, story)


def test_nothing_is_written_for_a_vm_that_is_gone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        directory = world.vm("short-lived", "127.0.0.4", egress={"mode": "allowlist"})
        vm = world.proxy._records.who("127.0.0.4", "br0")
        assert vm
        assert (await world.say(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "127.0.0.4"))[0] == 403
        (directory / "refused.json").unlink()
        (directory / "leaving").touch()
        world.proxy._refusals.note(vm, "late.example", 443, "late")
        world.proxy._notes.flush()
        assert {path.name for path in directory.iterdir()} == {"instance.json", "leaving"}
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        world.proxy._refusals.note(vm, "late.example", 443, "later")
        world.proxy._notes.flush()
        assert not directory.exists()

    play(tmp_path, story)


# --- reading the usage -----------------------------------------------------------------------------------------------


def metered(content_type: str, data: bytes, size: int) -> dict[str, int]:
    """Return what a meter reads of an answer in parts."""
    meter = usage.Meter(content_type)
    for start in range(0, len(data), size):
        meter.feed(data[start : start + size])
    meter.end()
    return meter.tokens


@pytest.mark.parametrize("size", [1, 5, 1 << 20])
def test_usage_is_read_from_a_stream_in_parts(size: int) -> None:
    data = "".join(f"event: {event['type']}\r\ndata: {json.dumps(event)}\r\n\r\n" for event in SSE).encode()
    assert metered("text/event-stream", data, size) == {"input_tokens": 25, "cache_read_input_tokens": 7, "output_tokens": 15}


def test_usage_is_read_from_each_apis_form() -> None:
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 2, "output_tokens": 3, "total_tokens": 5}}}
    assert metered("text/event-stream", f"data: {json.dumps(done)}\n\ndata: [DONE]\n\n".encode(), 9) == {
        "input_tokens": 2,
        "output_tokens": 3,
    }
    assert metered("application/json", b'{"usage": {"prompt_tokens": 1, "completion_tokens": 2}}', 9) == {
        "input_tokens": 1,
        "output_tokens": 2,
    }
    assert metered("text/html", b'{"usage": {"prompt_tokens": 1}}', 9) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000,
        b'{"usage": 3}',
        b'{"usage": {"input_tokens": "9"}}',
        b'{"usage": {"input_tokens": -9}}',
        b"\xff",
        b"{",
    ],
)
def test_an_answer_without_usage_has_none(data: bytes) -> None:
    assert metered("application/json", data, 1000) == {}
    assert metered("text/event-stream", b'data: "usage"' + data + b"\n\n", 1000) == {}


def test_a_line_too_long_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "LARGEST_EVENT", 100)
    monkeypatch.setattr(usage, "LARGEST_BODY", 100)
    line = b'data: {"usage": {"input_tokens": 4}}\n'
    long = b'data: {"usage": {"input_tokens": 9}, "x": "' + b"y" * 200 + b'"}\n'
    assert metered("text/event-stream", long + line, 30) == {"input_tokens": 4}
    assert metered("application/json", long.removeprefix(b"data: "), 30) == {}


def test_all_answers_together_keep_so_much() -> None:
    budget = usage.Budget(100)
    answer = b'{"usage": {"input_tokens": 4}}'
    first, second, third = (usage.Meter("application/json", budget) for _ in range(3))
    first.feed(b'{"x": "' + b"y" * 50)
    second.feed(b'{"x": "' + b"y" * 50)
    third.feed(answer)
    assert (first.missed, second.missed, third.missed) == (False, True, False)
    second.feed(answer)
    for meter in (second, third):
        meter.end()
    assert (second.tokens, third.tokens) == ({}, {"input_tokens": 4})
    first.feed(b'", ' + answer.removeprefix(b"{"))
    first.end()
    assert first.tokens == {"input_tokens": 4}
    stream = usage.Meter("text/event-stream", budget)
    stream.feed(b"data: " + b"y" * 200)
    stream.feed(b"\n" + b"data: " + answer + b"\n" + b"data: and no more")
    assert (stream.tokens, budget.left) == ({"input_tokens": 4}, 100 - len(b"data: and no more"))
    stream.end()
    assert budget.left == 100


def test_usage_beyond_what_is_kept_is_estimated(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        whole = world.proxy._keys._usage.budget.left
        body = b'{"x": "' + b"y" * 4000 + b'"}'
        assert (await world.ask(MESSAGES, body))[0] == 200
        assert counts(world)["output_tokens"] == 5
        world.proxy._keys._usage.budget.left = 10
        assert (await world.ask(MESSAGES, body))[0] == 200
        assert 1005 <= counts(world)["output_tokens"] <= 1100
        assert world.proxy._keys._usage.budget.left == 10
        world.proxy._keys._usage.budget.left = whole

    play(tmp_path, story)


def test_only_so_many_days_are_kept(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        days = {f"2020-{month:02}-{day:02}": {"anthropic": {"requests": 1}} for month in (1, 2, 3) for day in range(1, 29)}
        path = tmp_path / "instances/feature-x/usage.json"
        path.write_text(json.dumps({"schema": 1, "days": days}))
        assert (await world.ask(MESSAGES, address=GUEST))[0] == 200
        assert len(world.noted("usage.json")["days"]) == usage.DAYS

    play(tmp_path, story)
