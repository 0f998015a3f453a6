"""Kafka by TLS."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pice.errors import ConfigError, TransportError
from tests.contract.own_kafka import OwnKafka, own_kafka
from tests.contract.own_redis import Certificates, make_certificates

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from pice.kafka_client import KafkaClient, KafkaOptions


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[OwnKafka]:
    folder = tmp_path_factory.mktemp("kafka")
    both = folder / "both.pem"
    both.write_text(certificates.key.read_text() + certificates.ca.read_text())
    settings = {
        "listener.security.protocol.map": "PLAINTEXT:SSL,CONTROLLER:PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
        "ssl.client.auth": "required",
    }
    with own_kafka(folder, settings=settings) as kafka:
        yield kafka


def options(kafka: OwnKafka, certificates: Certificates) -> KafkaOptions:
    shown, key = certificates.ca, certificates.key  # the broker's own, which vouches for itself
    return KafkaOptions(kafka.address, security_protocol="SSL", ca_file=shown, cert_file=shown, cert_key_file=key)


async def test_certificates_that_are_trusted_are_taken(kafka: OwnKafka, certificates: Certificates) -> None:
    async with KafkaClient(options(kafka, certificates)).admin() as admin:
        assert await admin.list_topics() == []


async def test_certificate_that_is_not_trusted_is_refused(kafka: OwnKafka, certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match=r"(?i)certificate.*check kafka\.ca_file"):
        await KafkaClient(replace(options(kafka, certificates), ca_file=None)).check()


async def test_host_of_another_name_is_refused(kafka: OwnKafka, certificates: Certificates) -> None:
    address = kafka.address.replace("127.0.0.1", "localhost")
    with pytest.raises(ConfigError, match=r"(?i)localhost.*check kafka\.ca_file"):
        await KafkaClient(replace(options(kafka, certificates), bootstrap_servers=address)).check()


async def test_who_shows_no_certificate_is_refused(kafka: OwnKafka, certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match=r"(?i)certificate.*check.*kafka\.cert_file"):
        await KafkaClient(replace(options(kafka, certificates), cert_file=None, cert_key_file=None)).check()


async def test_who_speaks_no_tls_is_told_what_may_be_wrong(kafka: OwnKafka) -> None:
    with pytest.raises(TransportError, match=r"kafka\.security_protocol does not fit"):
        await KafkaClient(KafkaOptions(kafka.address)).check()
