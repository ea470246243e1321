"""Connections between hosts and their callers: mutual TLS, a check of the party's name, and signs of life."""

import json

import grpc

from ..engine.rpc import Stub
from ..engine.wire import GRPC_OPTIONS
from . import host_pb2 as pb
from .certificates import Certificates
from .config import PARTY_NAMES, CallerConfig, Timeouts

# Only these calls are retried: they change nothing, so they may be asked twice. A connection that was cut and mended can
# fail at its next use, before it is made anew.
_RETRIED = [{"service": "cipherdm.hosts.Host", "method": method} for method in ("Describe", "Status", "Slot")]
_RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def keepalive_options(timeouts: Timeouts) -> tuple[tuple[str, int], ...]:
    """Return gRPC's options with which both ends notice, while a call lasts, that the other is gone or cut off."""
    milliseconds = round(timeouts.keepalive * 1000)
    return (
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.http2.ping_timeout_ms", milliseconds),  # a minute by default; keepalive_timeout_ms does not change that
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", min(1000, milliseconds // 2)),
        ("grpc.http2.min_ping_interval_without_data_ms", min(1000, milliseconds // 2)),
    )


def connect(config: CallerConfig, rank: int) -> tuple[grpc.Channel, Stub]:
    """Return a channel to one party. It connects when it is first used, and again when the party is back after a failure.

    The party must present a certificate with its name, party0 and so on, as a DNS name: a host that has taken over its
    address cannot take its place.
    """
    retries = ("grpc.service_config", json.dumps({"methodConfig": [{"name": _RETRIED, "retryPolicy": _RETRIES}]}))
    channel = open_channel(config.parties[rank], PARTY_NAMES[rank], config.identity, config.timeouts, retries)
    return channel, Stub(channel, pb.DESCRIPTOR)


def open_channel(
    address: str, name: str, identity: Certificates, timeouts: Timeouts, *more: tuple[str, str]
) -> grpc.Channel:
    """Return a channel over mutual TLS to whoever presents a certificate with that name; `more` are options of gRPC."""
    options = (
        *GRPC_OPTIONS,
        *keepalive_options(timeouts),
        *more,
        ("grpc.ssl_target_name_override", name),
        # gRPC's own pauses grow to two minutes; a party that was restarted is to be found again within a second.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one address share a connection and its pauses
    )
    return grpc.secure_channel(address, identity.to_call(), options)
