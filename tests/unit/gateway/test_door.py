"""What one address may have open, and under which name it is counted."""

from __future__ import annotations

import gc
import socket
import warnings

import pytest

from serverless_triton.scheduler.gateway.door import Door, listening_sockets, network_of, network_of_peer


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_an_address_is_a_hosts_and_of_ipv6_its_network(host, network):
    assert network_of(host) == network


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:192.0.2.7:4567", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2::9%5D:4567", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:192.0.2.7]:4567", "192.0.2.7"),
        ("unix:/run/socket", "unix:/run/socket"),
    ],
)
def test_a_grpc_peer_is_counted_as_over_http(peer, network):
    assert network_of_peer(peer) == network


def test_each_address_has_its_own_room_and_all_together_what_there_is():
    door = Door("calls", most=3, most_each=2)
    assert [door.enter(name) for name in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
    door.leave("a")
    assert [door.enter(name) for name in ("c", "b")] == [True, False]


def test_a_refusal_is_told_once_until_there_is_room_again(caplog):
    door = Door("calls", most=None, most_each=1)
    door.enter("a")
    for _ in range(3):
        door.enter("a")
    door.leave("a")
    door.enter("a")
    door.enter("a")
    assert [record.getMessage() for record in caplog.records] == ["calls_refused address=a open=1"] * 2


@pytest.mark.parametrize("closes", [True, False])
def test_a_connection_counts_until_it_is_closed_or_forgotten(closes):
    (listening,) = listening_sockets("127.0.0.1", 0, Door("connections", most=None, most_each=1))
    with listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with pytest.raises(ConnectionAbortedError):
                listening.accept()
        if closes:
            accepted.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of what is forgotten while it is open
            del accepted
            gc.collect()
        with socket.create_connection(listening.getsockname()):
            listening.accept()[0].close()


def test_a_port_that_is_taken_leaves_nothing_open():
    door = Door("connections", most=None, most_each=1)
    (first,) = listening_sockets("127.0.0.1", 0, door)
    with first:
        first.listen()
        with pytest.raises(OSError, match="in use"):
            listening_sockets("127.0.0.1", first.getsockname()[1], door)
