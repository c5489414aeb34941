"""JSON Web Tokens prove what a key of the configuration signed, and nothing else."""

import json
from contextlib import suppress
from typing import Any, Final

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from proxy.gate import tokens as judged
from proxy.gate.tokens import ALGORITHMS, BrokenKeys, KeySet, KeysMissing, Tokens, WrongToken
from tests.gate.tokens import (
    AUDIENCE,
    ISSUER,
    NOW,
    Keys,
    base64url,
    claims,
    every_key,
    jwks,
    private_key,
    public_jwk,
    signed,
    token,
)


CANARY: Final = "canary-Of.a-token"


def judge(keys: Keys | None = None, now: float = NOW) -> Tokens:
    return Tokens(keys or Keys(every_key()), issuer=ISSUER, audience=AUDIENCE, clock=lambda: now)


def refusal(text: str, keys: Keys | None = None, now: float = NOW) -> str:
    """Why a token is refused; twice the same, since nothing that is bad is remembered as good."""
    tokens = judge(keys, now)
    told = []
    for _ in range(2):
        with pytest.raises(WrongToken) as caught:
            tokens.claims(text)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert CANARY not in told[0]
    return told[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_of_every_algorithm_proves_its_subject(algorithm: str) -> None:
    assert judge().claims(token(algorithm)).subject == "ann"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_token_that_another_key_signed_proves_nothing(algorithm: str) -> None:
    kid = public_jwk(algorithm)["kid"]
    assert "not signed by a key" in refusal(token(algorithm, 1, header={"kid": kid}))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["header", "payload", "signature"])
def test_token_that_was_changed_proves_nothing(algorithm: str, place: int) -> None:
    parts = token(algorithm).split(".")
    letter = parts[place][5]
    parts[place] = parts[place][:5] + ("A" if letter != "A" else "B") + parts[place][6:]
    refusal(".".join(parts))


def test_audience_may_be_one_of_several() -> None:
    assert judge().claims(token(aud=["other", AUDIENCE])).subject == "ann"


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"iss": "https://login.example.org"}, id="another issuer"),
        pytest.param({"iss": f"{ISSUER}/"}, id="nearly the issuer"),
        pytest.param({"iss": [ISSUER]}, id="a list with the issuer"),
        pytest.param({"iss": None}, id="no issuer"),
        pytest.param({"aud": "other"}, id="another audience"),
        pytest.param({"aud": ["other", f"{AUDIENCE}-2"]}, id="other audiences"),
        pytest.param({"aud": []}, id="no audience in the list"),
        pytest.param({"aud": None}, id="no audience"),
        pytest.param({"aud": {AUDIENCE: 1}}, id="an audience that is a table"),
        pytest.param({"aud": [AUDIENCE, 5]}, id="an audience that is a number"),
        pytest.param({"sub": None}, id="no subject"),
        pytest.param({"sub": ""}, id="an empty subject"),
        pytest.param({"sub": 5}, id="a subject that is a number"),
        pytest.param({"sub": ["ann"]}, id="a list of subjects"),
        pytest.param({"exp": None}, id="no end"),
        pytest.param({"exp": NOW - 31}, id="expired"),
        pytest.param({"exp": 0}, id="expired long ago"),
        pytest.param({"exp": str(NOW + 60)}, id="an end that is a text"),
        pytest.param({"exp": True}, id="an end that is true"),
        pytest.param({"nbf": NOW + 31}, id="not good yet"),
        pytest.param({"nbf": "soon"}, id="a beginning that is a text"),
        pytest.param({"nbf": None, "exp": [NOW + 60]}, id="an end that is a list"),
    ],
)
def test_token_with_wrong_claims_proves_nothing(more: dict[str, Any]) -> None:
    refusal(token(**more))


def test_token_put_together_by_hand_is_good_unless_something_is_odd() -> None:
    """The claim beneath the next."""
    assert judge().claims(signed(claims(), "ES256", private_key("ES256"), {"kid": "ES256-0"})).subject == "ann"


def odd(until: bytes) -> bytes:
    """The claims of a token that ends at a time that is written as no library would."""
    return msgspec.json.encode(claims(exp=0)).replace(b'"exp":0', b'"exp":' + until)


@pytest.mark.parametrize(
    ("payload", "header"),
    [
        pytest.param(odd(b"1e999"), {}, id="for ever"),
        pytest.param(odd(b"NaN"), {}, id="NaN"),
        pytest.param(odd(b"9" * 400), {}, id="too far"),
        pytest.param(b'{"exp":%b}' % (b"9" * 5000), {}, id="a number without end"),
        pytest.param(b"[" * 5000, {}, id="lists without end"),
        pytest.param(b"[]", {}, id="no table"),
        pytest.param(b"\xff", {}, id="no text"),
        pytest.param(b"", {}, id="nothing"),
        pytest.param(claims(), {"crit": ["exp"]}, id="a critical extension"),
        pytest.param(claims(), {"crit": []}, id="no critical extensions"),
        pytest.param(claims(), {"b64": False, "crit": ["b64"]}, id="a payload that is not encoded"),
        pytest.param(claims(), {"b64": False}, id="the same, unsaid"),
        pytest.param(claims(), {"b64": True, "crit": ["b64"]}, id="an extension that changes nothing"),
        pytest.param(claims(), {"kid": 5}, id="a key that is a number"),
        pytest.param(claims(), {"kid": ["ES256-0"]}, id="a list of keys"),
        pytest.param(claims(), {"kid": None}, id="no key, where there are several"),
        pytest.param(claims(), {"alg": None}, id="no algorithm"),
        pytest.param(claims(), {"alg": "none"}, id="the algorithm none"),
        pytest.param(claims(), {"alg": "None"}, id="the algorithm None"),
        pytest.param(claims(), {"alg": ""}, id="an empty algorithm"),
        pytest.param(claims(), {"alg": ["ES256"]}, id="a list of algorithms"),
        pytest.param(claims(), {"alg": "HS256"}, id="a shared secret"),
        pytest.param(claims(), {"alg": "RS256"}, id="the algorithm of another kind of key"),
        pytest.param(claims(), {"alg": "ES384"}, id="the algorithm of another curve"),
        pytest.param(claims(), {"alg": "ES256K"}, id="the algorithm of a curve that is none of ours"),
        pytest.param(claims(), {"kid": "RS0"}, id="the key of another algorithm"),
        pytest.param(claims(), {"kid": "x" * 5000}, id="a name without end"),
    ],
)  # fmt: skip
def test_token_of_odd_shape_proves_nothing(payload: object, header: dict[str, object]) -> None:
    refusal(signed(payload, "ES256", private_key("ES256"), {"kid": "ES256-0"} | header))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "....",
        f"{CANARY}.{CANARY}.{CANARY}",
        "\udcff.\udcff.\udcff",
        "ä.ö.ü",
        "a" * 100_000,
        base64url(b'{"alg":"ES256","kid":"ES256-0"}') + "..",
        base64url(b"[" * 5000) + ".e30.e30",
    ],
)
def test_what_is_no_token_proves_nothing(text: str) -> None:
    refusal(text)


def test_huge_token_is_refused_before_it_is_read() -> None:
    assert "longer than" in refusal(token(padding="x" * 20_000))


@pytest.mark.parametrize("form", ["pem", "der", "jwk", "n"])
def test_public_key_is_no_secret_to_sign_with(form: str) -> None:
    """Algorithm confusion: HS256 with what everybody may know."""
    key = private_key("RS256")
    assert isinstance(key, rsa.RSAPrivateKey)
    public = key.public_key()
    secret = {
        "pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "jwk": msgspec.json.encode(public_jwk("RS256")),
        "n": public_jwk("RS256")["n"].encode(),
    }[form]
    header, payload, _ = signed(claims(), "ES256", private_key("ES256"), {"alg": "HS256", "kid": "RS0"}).split(".")
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        f"{header}.{payload}".encode(), secret
    )
    refusal(f"{header}.{payload}.{base64url(signature)}")


@pytest.mark.parametrize("name", ["none", "None", "NONE"])
def test_token_without_signature_proves_nothing(name: str) -> None:
    header = base64url(msgspec.json.encode({"alg": name, "kid": "ES256-0"}))
    refusal(f"{header}.{base64url(msgspec.json.encode(claims()))}.")


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_key_that_a_token_brings_is_not_looked_at(name: str) -> None:
    brought: dict[str, Any] = {
        "jwk": public_jwk("ES256", 1),
        "jku": "http://127.0.0.1:1/",
        "x5u": "http://127.0.0.1:1/",
        "x5c": ["MAA="],
    }
    refusal(token("ES256", 1, header={"kid": "ES256-0", name: brought[name]}))
    assert judge().claims(token(header={name: brought[name]})).subject == "ann"


# Times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"exp": NOW - 29}, {"nbf": NOW + 29}], ids=["just expired", "nearly good"])
def test_clocks_may_be_half_a_minute_apart(more: dict[str, Any]) -> None:
    assert judge().claims(token(**more)).subject == "ann"


def test_token_proves_nothing_later_than_it_says() -> None:
    """It is not read again, yet judged again."""
    now = NOW
    tokens = Tokens(Keys(every_key()), issuer=ISSUER, audience=AUDIENCE, clock=lambda: now)
    text = token()
    assert tokens.claims(text).until == NOW + 60 + judged.LEEWAY_SECONDS
    now = NOW + 60 + 31
    with pytest.raises(WrongToken, match="expired"):
        tokens.claims(text)


# Keys -----------------------------------------------------------------------------------------------------------------


def test_without_keys_a_token_cannot_be_judged_yet() -> None:
    with pytest.raises(KeysMissing):
        judge(Keys(None)).claims(token())


@pytest.mark.parametrize(("coming", "kind"), [(True, KeysMissing), (False, WrongToken)], ids=["fetched", "looked for"])
def test_unknown_key_is_sought(*, coming: bool, kind: type[WrongToken]) -> None:
    keys = Keys(every_key(), coming=coming)
    with pytest.raises(WrongToken) as caught:
        judge(keys).claims(token("ES256", 1))
    assert type(caught.value) is kind
    assert keys.sought == ["ES256-1"]


def test_no_key_is_sought_for_what_is_no_token_of_ours() -> None:
    keys = Keys(every_key())
    for text in ("a.b.c", token(header={"alg": "none", "kid": "x"}), token(header={"kid": "x" * 1000})):
        refusal(text, keys)
    assert keys.sought == []


def test_token_without_the_name_of_a_key_is_judged_by_the_only_one() -> None:
    keys = Keys(KeySet(jwks(public_jwk("ES256"))))
    assert judge(keys).claims(token(header={"kid": None})).subject == "ann"
    refusal(token("ES256", 1, header={"kid": None}), keys)


def test_two_keys_of_one_name_are_both_tried() -> None:
    keys = Keys(
        KeySet(jwks(public_jwk("ES256", 1, kid="k"), public_jwk("ES256", 0, kid="k"), public_jwk("RS256", kid="k")))
    )
    for algorithm, which in (("ES256", 0), ("ES256", 1), ("RS256", 0)):
        assert judge(keys).claims(token(algorithm, which, header={"kid": "k"})).subject == "ann"


def test_token_whose_key_is_gone_proves_nothing_any_more() -> None:
    keys = Keys(every_key())
    tokens, text = judge(keys), token()
    tokens.claims(text)
    keys.keys = KeySet(jwks(public_jwk("ES256", 1)))
    with pytest.raises(WrongToken):
        tokens.claims(text)


def test_key_is_good_for_its_own_algorithm_alone() -> None:
    keys = Keys(KeySet(jwks(public_jwk("RS256", alg="RS512"))))
    refusal(token("RS256"), keys)
    assert judge(keys).claims(token("RS512")).subject == "ann"


def test_signature_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, text = judge(), token()
    first = tokens.claims(text)
    monkeypatch.setattr(jwt, "decode", None)
    assert tokens.claims(text) is first


def test_memory_of_tokens_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "_MOST_KNOWN", 4)
    tokens = judge()
    for number in range(20):
        tokens.claims(token(sub=str(number)))
        assert len(tokens._known) <= 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[5]}',
        b'{"keys":[{"kty":5}]}',
        b'{"keys":[{"kty":"EC","crv":["P-256"]}]}',
        b"\xff",
        CANARY.encode(),
        b'{"keys":' + b"[" * 5000,
        jwks({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}),
        jwks(public_jwk("ES256", use="enc")),
        jwks(public_jwk("ES256", key_ops=["sign"])),
        jwks(public_jwk("ES256", key_ops="verify")),
        jwks(public_jwk("ES256", alg="HS256")),
        jwks(public_jwk("ES256", alg=["ES256"])),
        jwks(public_jwk("ES256", x=CANARY)),
        jwks(public_jwk("ES256", crv="secp256k1")),
        jwks(public_jwk("EdDSA", crv="Ed448")),
        jwks(public_jwk("RS256", n=base64url(b"\xff" * 128))),
        jwks(public_jwk("RS256", n=5)),
        jwks(*[public_jwk("ES256")] * 65),
    ],
)
def test_what_holds_no_usable_key_is_told_and_not_quoted(content: bytes) -> None:
    with pytest.raises(BrokenKeys, match=r"^expected") as caught:
        KeySet(content)
    assert CANARY not in str(caught.value)


def test_keys_of_other_kinds_are_passed_over() -> None:
    others = [{"kty": "oct", "k": "c2VjcmV0"}, public_jwk("ES256", 1, use="enc"), {}, {"kty": "x", "kid": 5}]
    keys = Keys(KeySet(jwks(*others, public_jwk("ES256"))))
    assert judge(keys).claims(token()).subject == "ann"


def test_private_part_of_a_key_is_left_behind() -> None:
    key = private_key("ES256")
    described: dict[str, Any] = jwt.get_algorithm_by_name("ES256").to_jwk(key, as_dict=True)
    assert "d" in described
    [found] = KeySet(jwks(described | {"kid": "k"})).find("k")
    assert not hasattr(found.value, "private_numbers")


@given(st.text(alphabet=st.characters(max_codepoint=0x2FFF)), st.integers(0, 3))
def test_nothing_but_our_errors_leaves(text: str, dots: int) -> None:
    with pytest.raises(WrongToken):
        judge().claims(".".join([text] * (dots + 1)))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti"]),
)
def test_no_claim_is_too_odd(value: object, name: str) -> None:
    payload = json.dumps(claims() | {name: value}).encode()
    try:
        proved = judge().claims(signed(payload, "EdDSA", private_key("EdDSA"), {"kid": "EdDSA-0"}))
    except WrongToken:
        return
    assert proved.subject == (value if name == "sub" else "ann")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["kty", "crv", "x", "y", "n", "e", "use", "alg", "kid", "key_ops"]),
)
def test_no_key_is_too_odd(value: object, name: str) -> None:
    for algorithm in ("ES256", "RS256", "EdDSA"):
        content = json.dumps({"keys": [public_jwk(algorithm) | {name: value}]}).encode()
        with suppress(BrokenKeys):
            KeySet(content)
