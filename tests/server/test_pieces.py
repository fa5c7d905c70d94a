"""The way of pieces from a thread to the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import pytest

from medsight_core.server.pieces import Gone, Item, Pieces

PATIENCE = 30.0


def through(make: Callable[[Pieces], None], *, backlog: int = 64, keep_alive: float = PATIENCE) -> list[Item]:
    """What comes out at the other end of what a thread puts in."""

    async def run() -> list[Item]:
        pieces = Pieces(backlog=backlog, keep_alive_seconds=keep_alive)
        thread = threading.Thread(target=make, args=(pieces,), daemon=True)
        thread.start()
        with anyio.fail_after(PATIENCE):
            items = [item async for item in pieces]
        thread.join(PATIENCE)
        assert not thread.is_alive()
        return items

    return anyio.run(run)


def test_every_piece_comes_in_order_through_a_narrow_way() -> None:
    said = [f"{number} ".encode() for number in range(500)]

    def make(pieces: Pieces) -> None:
        for piece in said:
            pieces.put(piece)
        pieces.end()

    items = through(make, backlog=3)
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"".join(said)


def test_what_has_come_is_sent_together() -> None:
    async def run() -> list[Item]:
        pieces = Pieces(backlog=8, keep_alive_seconds=PATIENCE)
        for piece in (b"a", b"b", b"c"):
            pieces.put(piece)
        pieces.end()
        return [item async for item in pieces]

    assert anyio.run(run) == [b"abc"]


def test_an_error_comes_after_the_pieces_before_it() -> None:
    error = ValueError("broken")

    def make(pieces: Pieces) -> None:
        pieces.put(b"a")
        pieces.put(error)
        pieces.end()

    items = through(make)
    assert items[-1] is error
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"a"


def test_signs_of_life_while_nothing_comes() -> None:
    enough = threading.Event()

    async def run() -> list[Item]:
        pieces = Pieces(backlog=8, keep_alive_seconds=0.01)

        def make() -> None:
            enough.wait(PATIENCE)
            pieces.put(b"at last")
            pieces.end()

        threading.Thread(target=make, daemon=True).start()
        items: list[Item] = []
        async for item in pieces:
            items.append(item)
            if items.count(None) == 3:
                enough.set()
        return items

    items = anyio.run(run)
    assert items[:3] == [None] * 3
    assert items[-1] == b"at last"


def test_a_thread_that_waits_for_room_hears_that_nobody_takes_any_more() -> None:
    heard = threading.Event()

    async def run() -> None:
        pieces = Pieces(backlog=1, keep_alive_seconds=PATIENCE)

        def make() -> None:
            with pytest.raises(Gone):
                while True:
                    pieces.put(b"more")
            heard.set()
            pieces.end()  # to nobody, and no error

        thread = threading.Thread(target=make, daemon=True)
        thread.start()
        assert await pieces.__anext__() == b"more"
        pieces.close()
        await anyio.to_thread.run_sync(thread.join, PATIENCE)

    anyio.run(run)
    assert heard.is_set()
