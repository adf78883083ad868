"""The unwinder of a process: exceptions and ``backtrace()`` must find their way through new code.

Frames of new code are registered with libgcc_s, the one unwinder that can be told of code that the dynamic linker did
not load.  Where another one is at work, or none, is said before anything is changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from hotupgrade.binary.build import Build
from hotupgrade.errors import NotNow, Reason
from hotupgrade.target.agent import Agent, Operation, call
from hotupgrade.target.images import register_frames
from hotupgrade.target.loader import wait_for_loader
from hotupgrade.target.modules import Module, read_modules
from hotupgrade.target.process import Process
from hotupgrade.target.scratch import Scratch
from hotupgrade.upgrade.ledger import ImageRecord, Ledger
from hotupgrade.upgrade.session import Session

_LIBRARY = "libgcc_s.so.1"
_OWN = ("_Unwind_RaiseException", "_Unwind_Resume")
#: The C library loads libgcc_s by itself when one of these is called first.
_USERS = frozenset({"backtrace", "pthread_exit", "pthread_cancel"})
_RTLD_NOW = 2
_LIMIT_S = 2.0
_BATCH = 12  # operations that fit into the agent's page


def unwinder(modules: Sequence[Module]) -> tuple[int, int]:
    """libgcc's (__register_frame_info, __deregister_frame_info) in the process; zeros if it has no unwinder loaded."""
    library = next((m for m in modules if m.name == _LIBRARY), None)
    if library is None:
        return 0, 0
    register = library.define("__register_frame_info", "")
    release = library.define("__deregister_frame_info", "")
    return (register.address, release.address) if register and release else (0, 0)


def refusals(name: str, builds: Sequence[Build], modules: Sequence[Module]) -> Iterator[Reason]:
    """Why exceptions could not cross the new code of module ``name``; ``builds``: the running one and the new one."""
    own = next((symbol for build in builds for symbol in _OWN if symbol in build.entities.names), None)
    if own is not None:
        text = (
            f"{name} holds an unwinder of its own ({own}; linked with -static-libgcc), which cannot be told of new "
            "code: the first exception through it would end the process; link both builds with -shared-libgcc"
        )
        yield Reason("own-unwinder", name, text)
    elif any(build.exception_tables for build in builds) and not unwinder(modules)[0]:
        text = (
            f"{name} handles exceptions, but the process has no {_LIBRARY} that could be told of new code: the first "
            f"exception through it would end the process; link the program with -shared-libgcc"
        )
        yield Reason("no-unwinder", name, text)


def complete(agent: Agent, session: Session, ledger: Ledger) -> Reason | None:
    """After a commit: register the frames of images that are not registered yet, because libgcc_s was not loaded.

    The C library loads it when ``backtrace()`` or ``pthread_exit()`` is called first.  For a process that may call
    them it is loaded now, as the C library would, on the main thread while that sleeps: it would be too late then.

    Returns:
        None, or a note on what does not work.
    """
    images = [image for module in ledger.modules for image in module.images[1:] if _unknown(session, image)]
    if not images:
        return None
    register = unwinder(session.modules)[0]
    if not register:
        user = next((m.name for m in session.modules if _uses(m)), None)
        if user is None:
            return None
        _load(agent, session)
        register = unwinder(session.modules)[0]
        if not register:
            text = f"{_LIBRARY} could not be loaded: backtrace() from new code, as {user} may call it, shows one frame"
            return Reason("no-unwinder", session.process.name, text)
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        agent.run([register_frames(register, image.start, image.size, image.eh_frame) for image in batch])
    return None


def _unknown(session: Session, image: ImageRecord) -> bool:
    return bool(image.eh_frame) and not registered(session.process, image.start + image.size)


def registered(process: Process, annex: int) -> int:
    """The table that libgcc was told of, by what it keeps in an image's annex; 0 if it was told of none.

    To release a table that it does not know ends the process.  Source: gcc 12, libgcc/unwind-dw2-fde.h, struct object
    (pc_begin, tbase, dbase, u, s) and struct fde_vector (orig_data first), which takes the table's place in ``u`` when
    the first exception has sorted it (lowest bit of ``s``).
    """
    _, _, _, table, state = struct.unpack("<5Q", process.read(annex, 40))
    return process.read_word(table) if table and state & 1 else int(table)


def release_frames(process: Process, modules: Sequence[Module], start: int, annex: int) -> list[Operation] | None:
    """Operations that have libgcc forget an image; None if that cannot be done, and the image must stay."""
    try:
        table = registered(process, annex)
    except ValueError:
        return None
    if not table:
        return []
    release = unwinder(modules)[1]
    return [call(release, table)] if release and start <= table < annex else None


def _uses(module: Module) -> bool:
    return any(symbol in _USERS for _, symbol in module.import_slots) or any(map(module.bound, _USERS))


def _load(agent: Agent, session: Session) -> None:
    library = next((m for m in session.modules if m.name.startswith("libc.so")), None)
    dlopen = library.define("dlopen", "") if library else None
    if dlopen is None:
        return  # a C library older than glibc 2.34
    with Scratch(agent, 4096) as scratch:
        name = scratch.put(_LIBRARY.encode() + b"\0")
        try:
            wait_for_loader(session.process, session.modules, _LIMIT_S)
            agent.run([call(dlopen.address, name, _RTLD_NOW)], only_main=True, timeout=_LIMIT_S)
        except NotNow:
            return
    session.modules = read_modules(session.process)
