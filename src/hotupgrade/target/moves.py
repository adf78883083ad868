"""The table of threads that are led out of their loops, in the target's own memory.

A return address on a thread's stack may lead to the agent's landing, and that looks here for where to go on.  So the
table, once it is there, stays for as long as the process lives.  The calls of a loop that come by the agent have rows
of their own, and long lists of operations their place.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator, Sequence

from hotupgrade.errors import NotNow, Reason
from hotupgrade.target import abi
from hotupgrade.target.agent import (
    MAP_PRIVATE,
    NAME,
    PROT_READ,
    PROT_WRITE,
    SYS_CLOSE,
    SYS_MMAP,
    Agent,
    system_call,
)
from hotupgrade.target.maps import PAGE, mapping_at

MOVES_NAME = f"{NAME}-moves"
#: Rows for threads and for calls, bytes for operations; pages that are not used take no memory.
MOST_MOVES, MOST_SITES, _OPERATIONS = 1024, 1024, 256 << 10
_MOVE, _SITE = ctypes.sizeof(abi.Move), ctypes.sizeof(abi.Site)
_SITES_AT = MOST_MOVES * _MOVE
_OPERATIONS_AT = -(-(_SITES_AT + MOST_SITES * _SITE) // PAGE) * PAGE
_SPARE_AT = _OPERATIONS_AT + _OPERATIONS
_SIZE = _SPARE_AT + PAGE
#: In these states a return address of the thread may lead to the landing.
_UNMOVED = frozenset((abi.MoveState.WAITING, abi.MoveState.REVOKED))
LED_HERE = frozenset((abi.MoveState.WAITING, abi.MoveState.LEAVING, abi.MoveState.LANDED, abi.MoveState.REVOKED))


class MoveTable:
    """The table, present in the process.  See :func:`bring_moves`."""

    def __init__(self, agent: Agent, base: int) -> None:
        self._agent = agent
        self._base = base
        agent.more_room = base + _OPERATIONS_AT

    @property
    def landing(self) -> int:
        """The address that loops return to."""
        return int(self._agent.base + self._agent.header.landing)

    @property
    def gate(self) -> int:
        """The address that stubs of calls jump to."""
        return int(self._agent.base + self._agent.header.site)

    @property
    def spare(self) -> int:
        """A few bytes that system calls may write to."""
        return self._base + _SPARE_AT

    def rows(self) -> list[abi.Move]:
        """All rows that may be in use; the index is that of the operations."""
        count = min(self._agent.get("move_count"), MOST_MOVES)
        return list((abi.Move * count).from_buffer_copy(self._agent.process.read(self._base, count * _MOVE)))

    def led_here(self) -> Iterator[abi.Move]:
        """Rows of threads with a return address that leads to the landing."""
        for row in self.rows():
            if row.state in LED_HERE and self._leads_here(row):
                yield row

    def left_behind(self) -> dict[int, tuple[int, abi.Move]]:
        """Threads that were to leave their loop and did not: index and row, by control block.

        They stand in the code that the row names.  The slot of one that was not seen at work since still leads here.
        """
        return {
            int(row.tcb): (index, row)
            for index, row in enumerate(self.rows())
            if not row.drop and (row.state == abi.MoveState.STAYED or (row.state in _UNMOVED and self._leads_here(row)))
        }

    def _leads_here(self, row: abi.Move) -> bool:
        return bool(self._agent.process.read_word(int(row.slot)) == self.landing)

    def forget(self, blocks: Collection[int]) -> None:
        """Free the rows that nothing leads to: of threads that have ended, and those of stops that were not made.

        ``blocks``: the control blocks of the threads that live.  In a forked child a thread keeps its block, and the
        way that it is led, but not its number.
        """
        for index, row in enumerate(self.rows()):
            if row.state == abi.MoveState.FREE:
                continue
            if row.tcb not in blocks or (row.state in _UNMOVED and not self._leads_here(row)):
                self.set_state(index, abi.MoveState.FREE)

    def set_state(self, index: int, state: abi.MoveState) -> None:
        self._agent.process.write(self._base + index * _MOVE, int(state).to_bytes(8, "little"))

    def put(self, moves: Sequence[abi.Move]) -> int:
        """Write rows one after the other, over none that may still be asked for; returns the index of the first.

        Raises:
            NotNow: there is no room.
        """
        rows = self.rows()
        kept = (*LED_HERE, abi.MoveState.ENTERED, abi.MoveState.STAYED)
        taken = {index for index, row in enumerate(rows) if row.state in kept}
        first = max(taken, default=-1) + 1
        free = next((i for i in range(first) if not taken & set(range(i, i + len(moves)))), first)
        if free + len(moves) > MOST_MOVES:
            text = f"more than {MOST_MOVES} threads of the process would have to be restarted"
            raise NotNow(Reason("too-many-threads", str(self._agent.process.pid), text))
        self._agent.process.write(self._base + free * _MOVE, b"".join(bytes(move) for move in moves))
        self._agent.set(move_count=max(len(rows), free + len(moves)))
        return free

    def renew(self, index: int, patience_ns: int) -> None:
        """Give a thread that is led here already another while to wait for its group."""
        at = self._base + index * _MOVE + abi.Move.patience_ns.offset
        self._agent.process.write(at, patience_ns.to_bytes(8, "little"))

    def put_site(self, index: int, site: abi.Site) -> None:
        self._agent.process.write(self._base + _SITES_AT + index * _SITE, bytes(site))


def find_moves(agent: Agent) -> MoveTable | None:
    """The table, if the process has one."""
    base = agent.get("moves")
    mapping = mapping_at(agent.process.maps(), base) if base else None
    if mapping is None or mapping.path != f"/memfd:{MOVES_NAME} (deleted)" or mapping.start != base:
        return None
    return MoveTable(agent, base)


def bring_moves(agent: Agent) -> MoveTable:
    """The table, made if it is not there.

    Raises:
        NotNow: the process may not map it.
    """
    if (table := find_moves(agent)) is not None:
        return table
    descriptor = agent.create_file(MOVES_NAME, [], _SIZE)
    mapping = system_call(SYS_MMAP, 0, _SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0)
    results = agent.run([mapping, system_call(SYS_CLOSE, descriptor, fatal=False)])
    agent.check([mapping], results[:1])
    agent.set(move_count=0, sites=results[0] + _SITES_AT, moves=results[0])
    return MoveTable(agent, results[0])
