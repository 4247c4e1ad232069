from __future__ import annotations

from cellbox_kernel.sent_messages import KEPT_BYTES, SentMessages


def test_what_was_not_received_is_given_again_in_order():
    sent = SentMessages("client")
    sent.add([b"0", b"1"])
    sent.add([b"2"])
    assert sent.rewind(1) == ([b"1", b"2"], 0)
    # They are sent again, and lost again.
    sent.add([b"1", b"2", b"3"])
    assert sent.rewind(2) == ([b"2", b"3"], 0)
    assert sent.rewind(2) == ([], 0)


def test_a_client_that_has_everything_or_claims_more_gets_nothing():
    sent = SentMessages("client")
    sent.add([b"0"])
    assert sent.rewind(1) == ([], 0)
    assert sent.rewind(7) == ([], 0)


def test_memory_is_bounded_and_what_is_no_more_is_counted():
    sent = SentMessages("client")
    megabyte = b"x" * 1024 * 1024
    for _ in range(20):
        sent.add([megabyte])
    messages, lost = sent.rewind(5)
    assert (len(messages), lost) == (KEPT_BYTES // len(megabyte), 20 - 5 - KEPT_BYTES // len(megabyte))
