"""What names, groups, payloads and URLs become; needs no server."""

from __future__ import annotations

import pytest

from taskq.errors import ConfigError, NotSupported, UrlError
from taskq.spi import parse_urls
from taskq_transport_sqs import names
from taskq_transport_sqs.client import Client, Target
from taskq_transport_sqs.options import MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, SqsOptions


@pytest.mark.parametrize("queue", ["q", "orders.dead", "a_.b", "a._b", "a.-b", "a..b", "A-b_c.p9", "x--y__z", "1"])
@pytest.mark.parametrize("fifo", [False, True])
def test_names_can_be_read_back(queue: str, fifo: bool) -> None:
    name = names.server_name("pre.fix-", queue, fifo=fifo)
    assert set(name.removesuffix(".fifo")) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert name.endswith(".fifo") is fifo
    assert names.queue_name(names.server_name("", "pre.fix-", fifo=False), name) == queue


def test_different_names_stay_different() -> None:
    queues = ["a.b", "a_b", "a-b", "a_.b", "a._b", "a.-b", "a-.b", "a..b", "ab", "A.b"]
    assert len({names.server_name("", queue, fifo=False) for queue in queues}) == len(queues)


def test_the_ending_fifo_is_the_same_queue() -> None:
    assert (
        names.server_name("", "orders.fifo", fifo=True) == names.server_name("", "orders", fifo=True) == "orders.fifo"
    )


@pytest.mark.parametrize("queue", ["a_-b", "a b", "a/b", "é", "", ".fifo", "q" * 81, "a:b"])
def test_names_that_cannot_be_are_refused(queue: str) -> None:
    with pytest.raises(NotSupported, match="SQS"):
        names.server_name("", queue, fifo=False)


def test_the_ending_counts_for_the_longest_name() -> None:
    assert names.server_name("", "q" * 75, fifo=True)
    with pytest.raises(NotSupported, match="at most 80"):
        names.server_name("", "q" * 76, fifo=True)


@pytest.mark.parametrize("group", ["customer-7", "Łódź", "50%", "a b", "100%20", "a/b:c"])
def test_groups_can_be_read_back(group: str) -> None:
    encoded = names.group_id(group)
    assert encoded.isascii()
    assert " " not in encoded
    assert names.group_name(encoded) == group


@pytest.mark.parametrize("group", ["", "g" * 129, "é" * 30])
def test_groups_that_cannot_be_are_refused(group: str) -> None:
    with pytest.raises(NotSupported, match="128"):
        names.group_id(group)


def test_long_ids_are_still_told_apart() -> None:
    one, two = (names.deduplication_id("i" * 200 + end) for end in "12")
    assert one != two
    assert len(one) <= 128


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(range(256)), b"x" * 1000])
def test_payloads_can_be_read_back(payload: bytes) -> None:
    body = names.to_body(payload)
    assert body
    assert names.to_payload(body) == payload


def test_the_largest_payload_fits() -> None:
    assert len(names.to_body(b"x" * MAX_PAYLOAD_BYTES)) == MAX_MESSAGE_BYTES
    assert len(names.to_body(b"x" * (MAX_PAYLOAD_BYTES + 1))) > MAX_MESSAGE_BYTES


@pytest.mark.parametrize("body", ['{"task": "x"}', "hello, world", "naïve", "====", "YQ", "Y Q="])
def test_foreign_texts_are_handed_on(body: str) -> None:
    assert names.to_payload(body) == body.encode()


# ---------------------------------------------------------------------------------------------------------------- URLs


def target(url: str, **options: object) -> Target:
    return Target(parse_urls(url), SqsOptions(**options))  # type: ignore[arg-type]


def test_a_region_and_an_account() -> None:
    found = target("sqs://eu-central-1/123456789012")
    assert (found.region, found.account, found.endpoint, found.key) == ("eu-central-1", "123456789012", None, None)
    assert found.is_amazon
    assert target("sqs://us-gov-west-1").region == "us-gov-west-1"
    assert target("sqs://", region="eu-west-2", account="123456789012").region == "eu-west-2"


def test_an_emulator() -> None:
    found = target("sqs://localhost:9324")
    assert found.endpoint == "http://localhost:9324"
    assert found.key == found.secret
    assert found.key  # boto must not go looking for credentials
    assert not found.is_amazon
    known = target("sqs://key:s%2Fecret@[::1]:9324")
    assert (known.endpoint, known.key, known.secret) == ("http://[::1]:9324", "key", "s/ecret")


def test_another_endpoint() -> None:
    found = target("sqs://eu-west-1", endpoint="https://vpce-1.sqs.eu-west-1.vpce.amazonaws.com")
    assert found.is_amazon
    assert found.key is None
    assert not target("sqs://eu-west-1", endpoint="https://amazonaws.com.example.org").is_amazon


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqs://one:9324;sqs://two:9324", "one URL"),
        ("sqs://somewhere", "neither an AWS region"),
        ("sqs://eu-west-1/orders", "12 digits"),
        ("sqs://key:hush-hush@eu-west-1", "belong into boto's own"),
    ],
)
def test_urls_that_cannot_be_are_refused(url: str, says: str) -> None:
    with pytest.raises(UrlError, match=says) as caught:
        target(url)
    assert "hush-hush" not in str(caught.value)


def test_two_servers_are_refused() -> None:
    with pytest.raises(UrlError, match="keep one"):
        target("sqs://localhost:9324", endpoint="http://localhost:9325")


def test_no_region_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(ConfigError, match="region"):
        Client(target("sqs://"))


def test_a_profile_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(ConfigError, match="nobody-has-this"):
        Client(target("sqs://eu-west-1", profile="nobody-has-this"))


def test_a_profile_gives_region_and_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    file = f"{tmp_path}/config"
    with open(file, "w") as config:
        config.write("[profile shop]\nregion = eu-north-1\naws_access_key_id = k\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", file)
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    client = Client(target("sqs://", profile="shop"))
    assert client.region == "eu-north-1"
    client.close()
