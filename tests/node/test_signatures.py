"""With a secret, a candidate counts only if it is signed with the key of the site it names (P10)."""

import pytest

from pice.core import CLOUD_SITE, Candidate, Curve
from pice.errors import EngineError
from pice.message.codec import decode_as, encode
from pice.message.signing import SIGNATURE, is_signed, signature, site_key
from pice.node.telemetry import Telemetry
from pice.store.base import Counted
from pice.transport.base import CANDIDATES, Subscription
from tests.node.scripted import Script, ScriptedEngine, outline
from tests.node.stage import Site, Stage, a_request

SECRET = "between us"
GOOD = "fact number 0 about tides says that water rises twice a day"
FALSE = "fact number 0 about tides says that it was never asked for this"
PARIS = ("paris", "small")


class Guard(Telemetry):
    """Notes what a collector was shown and what it refused."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.seen: list[Counted] = []

    def forged(self, site: str) -> None:
        self.refused.append(site)

    def counted(self, candidate: Candidate, counted: Counted) -> None:
        self.seen.append(counted)


@pytest.fixture
def guard(stage: Stage) -> Guard:
    stage.secret, stage.telemetry = SECRET, (guard := Guard())
    return guard


@pytest.fixture
async def paris(stage: Stage) -> Site:
    return await stage.site(*PARIS)


def key(site: str, secret: str = SECRET) -> str:
    return site_key(secret, site)


async def send(stage: Stage, candidate: Candidate, header: bytes | None) -> None:
    headers = {} if header is None else {SIGNATURE: header}
    await stage.transport.publish(CANDIDATES, encode(candidate), key=candidate.request_id, headers=headers)


async def test_candidate_signed_by_its_site_is_counted(stage: Stage, guard: Guard, paris: Site) -> None:
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await paris.send(segment, GOOD)
    assert (await stage.answer()).text == GOOD
    assert (guard.refused, guard.seen) == ([], [Counted.NEW])


@pytest.mark.parametrize(
    "forgery", ["none", "junk", "of another site", "of another secret", "of other bytes", "with no key"]
)
async def test_candidate_in_the_name_of_another_is_put_aside_and_never_counted(
    stage: Stage, guard: Guard, paris: Site, forgery: str
) -> None:
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    forged = paris.candidate(segment, FALSE)
    payload = encode(forged)
    header = {
        "none": None,
        "junk": b"\xff\xfe",
        "of another site": signature(key("rome"), payload),
        "of another secret": signature(key("paris", "a guess"), payload),
        "of other bytes": signature(key("paris"), encode(paris.candidate(segment, GOOD))),
        "with no key": signature("", payload),
    }[forgery]
    await send(stage, forged, header)
    dead = await stage.dead()
    assert dead.payload == payload
    assert dead.headers["reason"] == b"it is not signed with the key of site 'paris', which it names"
    assert dead.headers.get(SIGNATURE) == header
    assert (guard.refused, guard.seen) == (["paris"], [])
    await paris.send(segment, GOOD)
    answer = await stage.answer()
    assert (answer.text, [scored.candidate.text for scored in answer.spans[0].candidates]) == (GOOD, [GOOD])
    assert stage.transport.num_messages(CANDIDATES) == 0


async def test_site_that_signs_in_its_own_name_for_what_it_was_not_given_is_foreign(
    stage: Stage, guard: Guard, paris: Site
) -> None:
    rome = await stage.site("rome", "tiny")
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await rome.send(segment, FALSE)
    assert b"never given" in (await stage.dead()).headers["reason"]
    assert (guard.refused, guard.seen) == ([], [Counted.FOREIGN])


async def test_forgery_is_told_once_with_its_ids(
    stage: Stage, guard: Guard, paris: Site, caplog: pytest.LogCaptureFixture
) -> None:
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await send(stage, paris.candidate(segment, FALSE), None)
    await stage.dead()
    assert caplog.messages == [
        f"{CANDIDATES} 0/0 put aside, whole: it is not signed with the key of site 'paris', which it names"
    ]


async def test_site_without_a_name_worth_printing_is_refused_in_few_words(stage: Stage, guard: Guard) -> None:
    stage.collector()
    await send(stage, Candidate("r", 1, 0, "x" * 100_000, "small", FALSE), b"")
    assert len((await stage.dead()).headers["reason"]) < 200


async def test_without_a_secret_signatures_are_not_asked_for(stage: Stage, paris: Site) -> None:
    stage.collector()
    (segment,) = await stage.sealed(PARIS)
    await send(stage, paris.candidate(segment, GOOD), b"whatever")
    assert (await stage.answer()).text == GOOD


async def received(candidates: Subscription) -> tuple[Candidate, bytes | None]:
    """The next candidate, and what it is signed with if that is not the key of paris."""
    delivery = await candidates.receive()
    await candidates.ack(delivery)
    header = delivery.headers.get(SIGNATURE)
    genuine = header is not None and is_signed(key("paris"), delivery.payload, header)
    return decode_as(Candidate, delivery.payload), b"genuine" if genuine else header


@pytest.mark.parametrize("script", [Script(GOOD), Script("", error=EngineError("out of memory"))], ids=["text", "none"])
async def test_edge_signs_whatever_it_hands_in(stage: Stage, guard: Guard, script: Script) -> None:
    candidates = await stage.transport.subscribe(CANDIDATES, group="test")
    stage.edge("paris", ScriptedEngine("small", script))
    stage.cloud(ScriptedEngine("big", Script(outline("one"))))
    await stage.submit(a_request(mode="progressive"))
    candidate, signed = await received(candidates)
    assert (candidate.error, signed) == (str(script.error or ""), b"genuine")


async def test_edge_without_a_key_signs_nothing(stage: Stage) -> None:
    candidates = await stage.transport.subscribe(CANDIDATES, group="test")
    stage.edge("paris", ScriptedEngine("small", Script(GOOD)))
    stage.cloud(ScriptedEngine("big", Script(outline("one"))))
    await stage.submit(a_request(mode="progressive"))
    assert (await received(candidates))[1] is None


async def test_request_is_answered_by_sites_that_sign(stage: Stage, guard: Guard) -> None:
    await stage.site(CLOUD_SITE, "big", curve=Curve((1,), (0.2,)))
    stage.edge("paris", ScriptedEngine("small", Script("Water rises and falls twice a day, as everybody knows.")))
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two"))))
    stage.collector(second_opinion_below=0.0)
    answer = await stage.client.ask(a_request(mode="progressive"))
    assert ([span.site for span in answer.spans], answer.degraded) == (["paris", "paris"], ())
    assert (guard.refused, guard.seen) == ([], [Counted.NEW, Counted.NEW])
