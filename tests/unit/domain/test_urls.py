"""Which URLs are valid, and what the errors say."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.domain.errors import InvalidSubmission
from ingest.domain.validation import url_problem, validate_task
from tests.support.tasks import TASK


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example",
        "HTTPS://A.Example/x",
        "https://a.example./x",
        "https://r3---sn-4g5e.googlevideo.com/x",
        "https://xn--mnchen-3ya.de/",
        "https://localhost:8443",
        "https://1.2.3.4:65535/",
        "https://[::1]:443?q#f",
        "https://[2001:db8::8:800:200C:417A]/",
        "https://3.example.com?q=@:[]",
        "https://a.example/größe/日本/😀?q=ü#ß",
        "https://a.example/" + "x" * (2048 - 18),
        f"https://{'a' * 63}.example",
    ],
)
def test_url_is_valid(url: str) -> None:
    assert url_problem(url) is None
    assert validate_task(TASK | {"data_url": url})["data_url"] == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must be an https URL"),
        ("http://a.example", "must be an https URL"),
        ("https:a.example", "must be an https URL"),
        ("https:/a.example", "must be an https URL"),
        ("//a.example", "must be an https URL"),
        ("https://", "must have a host"),
        ("https:///x", "must have a host"),
        ("https://:443/", "must have a host"),
        ("https://user:pw@a.example/", "must not contain credentials"),
        ("https://user@a.example", "must not contain credentials"),
        ("https://a.example:65536/", "must have a port from 1 to 65535, or none"),
        ("https://a.example:0", "must have a port from 1 to 65535, or none"),
        ("https://a.example:/", "must have a port from 1 to 65535, or none"),
        ("https://a.example:https/", "must have a port from 1 to 65535, or none"),
        ("https://[::1]443/", "must have a valid host: [::1]443 is not an IPv6 address"),
        ("https://a.example/a b", "must not contain spaces, write %20"),
        (" https://a.example", "must not contain spaces, write %20"),
        ("https://a.example/\n", "must not contain invisible characters, here U+000A"),
        ("https://a.example/\u202egpj.exe", "must not contain invisible characters, here U+202E"),
        ("https://a\u200bb.example/", "must not contain invisible characters, here U+200B"),
        ("https://a.example/\u3164", "must not contain invisible characters, here U+3164"),
        ("https://[:::]/", "must have a valid host: [:::] is not an IPv6 address"),
        ("https://[::1", "must have a valid host: [::1 is not an IPv6 address"),
        ("https://[1:2:3:4:5:6:7:8:9]/", "must have a valid host: [1:2:3:4:5:6:7:8:9] is not an IPv6 address"),
        ("https://[fe80::1%25eth0]/", "must have a valid host: [fe80::1%25eth0] is not an IPv6 address"),
        (
            "https://[::ffff:1.2.3.4]/",
            "must have a valid host: [::ffff:1.2.3.4] has an IPv4 address in it, write hexadecimal digits only",
        ),
        ("https://999.1.1.1", "must have a valid host: 999.1.1.1 is not an IPv4 address"),
        ("https://1.2.3/", "must have a valid host: 1.2.3 is not an IPv4 address"),
        ("https://127.0.0.01/", "must have a valid host: 127.0.0.01 is not an IPv4 address"),
        ("https://0x7f.0x1/", "must have a valid host: 0x7f.0x1 is not an IPv4 address"),
        ("https://2130706433/", "must have a valid host: 2130706433 is not an IPv4 address"),
        ("https://münchen.de/", "must have its host in ASCII: write xn--mnchen-3ya.de for münchen.de"),
        ("https://Faß.DE:8443/", "must have its host in ASCII: write xn--fa-hia.de for Faß.DE"),
        ("https://☃.example", "must have a valid host: ☃.example is not a domain name"),
        ("https://.", "must have a valid host: . has an empty part"),
        ("https://a..example", "must have a valid host: a..example has an empty part"),
        ("https://.a", "must have a valid host: .a has an empty part"),
        (
            "https://*/",
            "must have a valid host: * may have only letters, digits and inner hyphens",
        ),
        (
            "https://my_bucket.example/",
            "must have a valid host: my_bucket may have only letters, digits and inner hyphens",
        ),
        (
            "https://-a.example/",
            "must have a valid host: -a may have only letters, digits and inner hyphens",
        ),
        (
            "https://a.example\\@b.example/",
            "must not contain credentials",
        ),
        (
            f"https://{'a' * 64}.example",
            f"must have a valid host: {'a' * 64}.example has a part of more than 63 characters",
        ),
        ("https://" + "a_." * 200, "must have a host of at most 253 characters"),
        ("https://a.example/" + "x" * 2031, "must be at most 2048 characters"),
    ],
)
def test_error_says_what_is_wrong_with_a_url(url: str, problem: str) -> None:
    assert url_problem(url) == problem
    with pytest.raises(InvalidSubmission) as error:
        validate_task(TASK | {"data_url": url})
    assert error.value.message == f"data_url {problem}"


# Since Python 3.13, `str` writes an IPv4-mapped address with an IPv4 address in it.
_V6_HOSTS = st.ip_addresses(v=6).map(str).filter(lambda host: "." not in host)


@given(st.text("0123456789abcdefABCDEF:", min_size=2) | _V6_HOSTS)
@example("1:2:3:4:5:6:7::")
@example("::2:3:4:5:6:7:8")
@example("1::3:4:5:6:7:8")
def test_ipv6_hosts_are_those_of_the_standard_library(host: str) -> None:
    try:
        is_address = ipaddress.IPv6Address(host) is not None
    except ValueError:
        is_address = False
    assert (url_problem(f"https://[{host}]/") is None) == is_address


@given(st.text() | st.from_regex(r"\Ahttps://[^/\s]{0,20}(/.*)?\Z", fullmatch=True))
def test_every_invalid_url_has_an_error(url: str) -> None:
    """The error names no part of the URL that is longer than a host."""
    problem = url_problem(url)
    assert problem is None or (problem.startswith("must ") and len(problem) < 400)
