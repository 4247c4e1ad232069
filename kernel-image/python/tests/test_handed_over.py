"""Connections that another process accepted and gave to the gateway."""

from __future__ import annotations

import os
import socket

import pytest
from gateway_client import DEADLINE_SECONDS, TOKEN


def hand_over(gateway, *descriptors: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(gateway.connections)
        socket.send_fds(channel, [b"\0"], descriptors)


def ask(connection: socket.socket, token: str) -> bytes:
    connection.settimeout(DEADLINE_SECONDS)
    connection.sendall(f"GET /api HTTP/1.1\r\nHost: x\r\nAuthorization: token {token}\r\n\r\n".encode())
    return connection.recv(65536)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
def test_are_served_like_those_to_its_port_and_by_nobody_else(gateway, pair):
    ours, theirs = pair()
    hand_over(gateway, theirs.fileno())
    theirs.close()
    with ours:
        assert ask(ours, TOKEN).startswith(b"HTTP/1.1 200 OK\r\n")
        assert ask(ours, TOKEN).startswith(b"HTTP/1.1 200 OK\r\n")
        ours.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""  # nobody holds another end of it


def test_need_the_token_as_any_other(gateway):
    ours, theirs = socket.socketpair()
    hand_over(gateway, theirs.fileno())
    theirs.close()
    with ours:
        assert b"401" in ask(ours, "wrong").split(b"\r\n", 1)[0]


def test_what_is_no_connection_harms_nobody(gateway):
    reader, writer = os.pipe()
    hand_over(gateway, reader)
    hand_over(gateway)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(gateway.connections)
        os.close(reader)
        os.close(writer)
        ours, theirs = socket.socketpair()
        hand_over(gateway, theirs.fileno())
        theirs.close()
        with ours:
            assert ask(ours, TOKEN).startswith(b"HTTP/1.1 200 OK\r\n")
