"""Relinking: what the references and pointers of a new build become when names live at their homes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hotupgrade.binary.model import I32, I64, THREAD_LOCAL_FORMS, U8, DynamicSymbol, Flags, Form, Kind, Slot, TargetKind
from hotupgrade.binary.relocations import Relocation
from hotupgrade.binary.thread_locals import below_thread_pointer
from hotupgrade.errors import Reason
from hotupgrade.plan.bindings import Bindings
from hotupgrade.plan.homes import NEW, Homes, unsized
from hotupgrade.plan.model import Image, Scene
from hotupgrade.plan.pieces import TRANSFERS
from hotupgrade.plan.select import DATA, Selection
from hotupgrade.plan.targets import Targets, is_pair, thread_local_offset
from hotupgrade.plan.tls import is_whole_block

_REACH = 1 << 31
_STB_WEAK, _STB_GNU_UNIQUE = 2, 10
_STT_GNU_IFUNC = 10
_MASK64 = (1 << 64) - 1

NAMELESS = -1


@dataclass(frozen=True, slots=True)
class Word:
    """What the loader's work on an 8-byte word comes to.

    ``unnamed`` is the vaddr of the unnamed read-only data of the new build that the word points to, else NAMELESS.
    """

    value: int
    unnamed: int = NAMELESS


@dataclass(frozen=True)
class Fields:
    """4-byte fields in code and their new contents."""

    position: I64  # vaddr
    value: I32


class Linker:
    """Relinks one build for one base.  Problems are collected in ``refusals``."""

    def __init__(
        self,
        images: list[Image],
        targets: Targets,
        homes: Homes,
        selection: Selection,
        scene: Scene,
        base: int,
        reserve: Mapping[int, int],
    ) -> None:
        self.targets = targets
        self.new = targets.build
        self.base = base
        self.refusals: dict[tuple[str, str], Reason] = {}
        self._images = images
        self._homes = homes
        self._scene = scene
        self._selection = selection
        self._bindings = Bindings(images, scene)
        self._below = below_thread_pointer(self.new)
        in_image = base + self.new.entities.address.astype(np.int64)
        self.address: I64 = np.where(homes.owner == NEW, in_image, homes.address)
        self.code: I64 = np.where(selection.functions, in_image, self.address)
        self._unsized = unsized(self.new)
        self._place_thread_locals(reserve)
        self.copied: Flags = self._bind_new_copies()

    # -- code -----------------------------------------------------------------------------------------------------

    def fields(self, selected: np.ndarray[tuple[int], np.dtype[np.intp]] | None = None) -> Fields:
        """The reference fields that differ from the file, of the selected functions."""
        every = self._selection.every
        index = self._selection.references if selected is None else selected
        index = index[(every.target_kind[index] == TargetKind.ENTITY) & (every.form[index] != Form.SHORT)]
        row, form, addend = every.entity[index], every.form[index], every.addend[index]
        kind = self.new.entities.kind[row]
        following = self.base + every.following[index].astype(np.int64)
        transfer = np.isin(form, TRANSFERS)
        function = kind == Kind.FUNCTION
        inner = function & ~transfer & (addend != 0)  # a label's address: stays in the copy that runs
        absolute = np.where(function & (transfer | inner), self.code[row], self.address[row]) + addend
        stays = absolute == self.base + every.target[index].astype(np.int64)
        offset, value = self._thread_local_fields(form, self.address[row] + addend, absolute - following)
        present = every.target[index].astype(np.int64) - np.where(form == Form.TPOFF, self._below, 0)
        wanted = np.where(offset, value != present, ~stays)
        self._check_reach(row[wanted], value[wanted])
        return Fields(every.position[index][wanted].astype(np.int64), value[wanted].astype(np.int32))

    def _thread_local_fields(self, form: U8, in_block: I64, otherwise: I64) -> tuple[Flags, I64]:
        """Which fields hold thread-local offsets, and the values of all.  ``in_block``: offsets from the start of the
        module's block, ``otherwise``: the values of the fields that hold none."""
        from_pointer = form == Form.TPOFF
        if from_pointer.any() and self._scene.tls_block is None:
            self._refuse(
                "tls-layout",
                "thread-local storage",
                "it cannot be told where the program's thread-locals are in this process",
            )
        block = self._scene.tls_block or 0
        value = np.where(from_pointer, in_block + block, np.where(form == Form.DTPOFF, in_block, otherwise))
        return np.isin(form, THREAD_LOCAL_FORMS), value

    def function(self, row: int) -> bytes:
        """The relinked bytes of one function."""
        entities, every = self.new.entities, self._selection.every
        low = int(entities.address[row])
        content = bytearray(self.new.read(low, int(self.new.extent[row])))
        fields = self.fields(np.flatnonzero(every.function == row))
        for position, value in zip(fields.position.tolist(), fields.value.tolist(), strict=True):
            struct.pack_into("<i", content, position - low, value)
        return bytes(content)

    def _check_reach(self, rows: I32, values: I64) -> None:
        far = np.unique(rows[(values < -_REACH) | (values >= _REACH)])
        for row in far.tolist():
            name, place = self.new.entities.names[row], int(self.address[row])
            if self.copied[row]:
                text = (
                    f"the new build of the program names {name} of a library directly, as the running one does not, and"
                    f" so counts on a copy that only a start makes (R_X86_64_COPY); it lives at {place:#x}, more than 2"
                    " GiB away; compile what uses it with -fPIC or -mno-direct-extern-access"
                )
                self._refuse("copy-new", name, text)
                continue
            text = (
                f"{name} lives at {place:#x}, more than 2 GiB away from the free room at {self.base:#x}: no 32-bit"
                " displacement leads there"
            )
            self._refuse("out-of-reach", name, text)

    # -- data -----------------------------------------------------------------------------------------------------

    def pointer(self, row: int, addend: int, vaddr: int) -> Word:
        """What a link-time pointer to a place in this module becomes."""
        if row < 0 or self._unsized[row]:
            return Word(self.base + vaddr, vaddr)
        if int(self.new.entities.kind[row]) == Kind.FUNCTION and addend:
            return Word(int(self.code[row]) + addend)
        return Word(int(self.address[row]) + addend)

    def word(self, index: int) -> Word:
        """The value of a dynamic relocation."""
        targets = self.targets
        relocation = int(targets.type[index])
        row, addend = int(targets.row[index]), int(targets.addend[index])
        if relocation == Relocation.RELATIVE:
            self._check_doubt(index)
            return self.pointer(row, addend, int(targets.plain_addend[index]))
        if relocation == Relocation.IRELATIVE:
            return Word(self._chosen_implementation(row))
        if relocation in (Relocation.ABS64, Relocation.GLOB_DAT):
            return Word((self.symbol(int(targets.number[index])) + addend) & _MASK64)
        if relocation == Relocation.JUMP_SLOT:
            return Word(self.symbol(int(targets.number[index]), call=True))
        name = f"relocation {relocation} at {int(targets.vaddr[index]):#x}"
        self._refuse(
            "unknown-relocation", name, f"{name} of the new build is of a kind that cannot be applied in a process"
        )
        return Word(0)

    def end_meant(self, index: int) -> int | None:
        """For a pointer that may mean the end of an object with a home, or what follows it: the end."""
        ending = int(self.targets.doubtful[index])
        if ending < 0 or self._homes.owner[ending] == NEW:
            return None
        return int(self.address[ending]) + int(self.new.entities.size[ending])

    def _check_doubt(self, index: int) -> None:
        if self.end_meant(index) is None:
            return
        holder, ending = int(self.targets.container[index]), int(self.targets.doubtful[index])
        name = self.new.entities.names[holder] if holder >= 0 else f"the word at {int(self.targets.vaddr[index]):#x}"
        self._refuse(
            "adjacency",
            name,
            f"{name} points to where {self.new.entities.names[ending]} ends, which may be the start of what follows;"
            " the two will not be neighbours any more",
        )

    def symbol(self, number: int, *, call: bool = False) -> int:
        """The address that a symbol of the new build is bound to.

        With ``call`` it need not be comparable: the new copy itself, or the stub that leads to the function, will do.
        """
        symbol = self.new.dynamic_symbols[number]
        row = self.targets.rows.of_symbol(number)
        if row < 0:
            return self._imported(symbol.name, symbol.version, symbol.binding == _STB_WEAK, call)
        own = int(self.address[row])
        loaders = self._loaders_choice(symbol, row, call)
        bound = own if loaders is None else loaders
        if symbol.type == _STT_GNU_IFUNC and bound == own:
            return self._unchosen(symbol.name, symbol.version)
        return int(self.code[row]) if call and bound == own else bound

    def can_bind(self, number: int) -> bool:
        """Whether the loader's choice for a symbol is known, or there is none to be made."""
        symbol = self.new.dynamic_symbols[number]
        row = self.targets.rows.of_symbol(number)
        if row >= 0 and self._homes.owner[row] == NEW:
            return True
        return self._bindings.address(symbol.name, symbol.version) is not None

    def bound_data(self, row: int) -> int | None:
        """Where the process at large finds an exported object of this module; None if that is not known."""
        names = self.new.entities.aliases[row]
        for number, symbol in enumerate(self.new.dynamic_symbols):
            if symbol.defined and symbol.name in names and self.targets.rows.of_symbol(number) == row:
                return self._bindings.address(symbol.name, symbol.version)
        return None

    def _loaders_choice(self, symbol: DynamicSymbol, row: int, call: bool) -> int | None:
        """What a symbol that the module itself defines was bound to, or would be.

        A new one is the module's own, unless it is of the kind that all modules share.
        """
        if self._homes.owner[row] == NEW and symbol.binding not in (_STB_WEAK, _STB_GNU_UNIQUE):
            return None
        bound = self._bindings.callee(symbol.name, symbol.version) if call else None
        return self._bindings.address(symbol.name, symbol.version) if bound is None else bound

    def _imported(self, name: str, version: str, weak: bool, call: bool) -> int:
        bound = None
        if call:
            bound = self._bindings.callee(name, version) or self._bindings.stub(name, version)
        if bound is None:
            bound = self._bindings.address(name, version)
        if bound is None and not weak:
            self._refuse_unresolved(name, version)
        return bound or 0

    def _refuse_unresolved(self, name: str, version: str) -> None:
        text = (
            f"the new build needs {_versioned(name, version)}, which no module in the process defines; upgrade or load"
            " the library that defines it first"
        )
        self._refuse("unresolved-symbol", name, text)

    def _chosen_implementation(self, resolver: int) -> int:
        """What the loader's call of an IFUNC resolver returned."""
        owner = int(self._homes.owner[resolver]) if resolver >= 0 else NEW
        if owner == 0:
            first = self._images[0].build
            wanted = int(first.entities.address[int(self._homes.partner[resolver])])
            for slot in self._bindings.slots(Relocation.IRELATIVE):
                value = self._bindings.word_at(slot.vaddr)
                if slot.addend == wanted and value:
                    return value
        name = self.new.entities.names[resolver] if resolver >= 0 else "?"
        return self._unchosen(name, "")

    def _unchosen(self, name: str, version: str) -> int:
        stub = self._bindings.stub(name, version)
        if stub is None:
            self._refuse(
                "ifunc-new",
                name,
                f"{name} is an IFUNC whose implementation was never chosen in this process; only a restart runs its"
                " resolver",
            )
        return stub or 0

    # -- GOT slots ------------------------------------------------------------------------------------------------

    def slot(self, index: int) -> list[tuple[int, Word]]:
        """(vaddr, content) of a slot, and of the one behind it where the two are a pair."""
        slot = self.new.slots[index]
        if slot.relocation in (Relocation.DTPMOD64, Relocation.TLSDESC):
            return [(slot.vaddr + 8 * place, Word(value)) for place, value in enumerate(self._pair(index, slot))]
        if slot.relocation == Relocation.TPOFF64:
            return [(slot.vaddr, Word(self._from_thread_pointer(slot) & _MASK64))]
        relocation = self.targets.of_slot(slot)
        if relocation is None:
            if self._belongs_to_pair(index):
                return []
            return [(slot.vaddr, Word(int.from_bytes(self.new.read(slot.vaddr, 8), "little")))]
        if slot.relocation == Relocation.DTPOFF64:
            return []  # second half of a pair
        return [(slot.vaddr, self.word(relocation))]

    def _belongs_to_pair(self, index: int) -> bool:
        before = self.new.slot_at(self.new.slots[index].vaddr - 8)
        return before is not None and is_pair(self.new.slots[before])

    def _pair(self, index: int, slot: Slot) -> tuple[int, int]:
        if slot.relocation == Relocation.TLSDESC:
            return self._descriptor(index, slot)
        if slot.symbol and (found := self._loaded_pair(slot)) is not None:
            return found
        if is_whole_block(self.targets, index):
            return self._tls_module(slot), 0
        offset = thread_local_offset(self.targets, slot)
        if offset is None:
            return 0, self._unresolved_tls(slot)
        return self._tls_module(slot), self._home_offset(offset, slot) & _MASK64

    def _loaded_pair(self, slot: Slot) -> tuple[int, int] | None:
        """The same symbol's pair in image 0: the loader knows best."""
        module = self._bindings.slot(Relocation.DTPMOD64, slot.symbol, slot.version)
        if module is None:
            return None
        return self._bindings.word_at(module.vaddr), self._bindings.word_at(module.vaddr + 8)

    def _tls_module(self, slot: Slot) -> int:
        for loaded in self._bindings.slots(Relocation.DTPMOD64):
            if not loaded.symbol and (value := self._bindings.word_at(loaded.vaddr)):
                return value
        if self._scene.tls_module is None:
            self._refuse(
                "tls-layout",
                slot.symbol or "thread-local storage",
                "the running build of this module has no thread-local storage, the new one needs it",
            )
        return self._scene.tls_module or 0

    def _from_thread_pointer(self, slot: Slot) -> int:
        offset = thread_local_offset(self.targets, slot)
        if slot.symbol and (loaded := self._bindings.word(Relocation.TPOFF64, slot.symbol, slot.version)) is not None:
            return loaded
        if offset is None:
            return self._unresolved_tls(slot)
        if self._scene.tls_block is None:
            self._refuse(
                "tls-layout",
                slot.symbol or "thread-local storage",
                "the new build counts on static thread-local storage, which the process gave to this module at start"
                " only if the running build needed it",
            )
            return 0
        return self._scene.tls_block + self._home_offset(offset, slot)

    def _descriptor(self, index: int, slot: Slot) -> tuple[int, int]:
        """Takes over a TLS descriptor that the loader has filled in, or derives one from it."""
        offset = thread_local_offset(self.targets, slot)
        home = None if offset is None else self._home_offset(offset, slot)
        if is_whole_block(self.targets, index):
            home = 0
        for loaded in self._bindings.slots(Relocation.TLSDESC):
            entry, argument = self._bindings.word_at(loaded.vaddr), self._bindings.word_at(loaded.vaddr + 8)
            if self._bindings.in_stubs(entry):
                continue
            if slot.symbol and (loaded.symbol, loaded.addend) == (slot.symbol, slot.addend):
                return entry, argument
            if loaded.symbol or home is None:
                continue
            if loaded.addend == home:
                return entry, argument
            if self._scene.tls_block is not None and argument == (self._scene.tls_block + loaded.addend) & _MASK64:
                return entry, (self._scene.tls_block + home) & _MASK64
        self._unresolved_tls(slot)
        return 0, 0

    def _home_offset(self, offset: int, slot: Slot) -> int:
        row, addend = self.targets.rows.thread_local_at(offset)
        if row < 0:
            self._refuse(
                "tls-layout",
                slot.symbol or f"{offset:#x}",
                f"the new build's thread-local at offset {offset:#x} has no name",
            )
            return offset
        return int(self.address[row]) + addend

    def _unresolved_tls(self, slot: Slot) -> int:
        name = slot.symbol or "a thread-local"
        self._refuse(
            "unresolved-symbol",
            name,
            f"the new build uses the thread-local {name} of another module in a way the running build does not",
        )
        return 0

    # -- set-up ---------------------------------------------------------------------------------------------------

    def _place_thread_locals(self, reserve: Mapping[int, int]) -> None:
        tls = self.new.entities.kind == Kind.TLS
        fresh = tls & (self._homes.owner == NEW)
        self.address[fresh] = self.new.entities.address[fresh].astype(np.int64)
        for row in self._selection.thread_locals:
            if row in reserve:
                self.address[row] = reserve[row]
                continue
            name = self.new.entities.names[row]
            self._refuse(
                "tls-layout", name, f"{name} is a new thread-local, and there is no room for it in this process"
            )

    def _bind_new_copies(self) -> Flags:
        """A new COPY relocation: the program wants another module's variable in its own .bss, where it is not."""
        copied = np.zeros(len(self.new.entities), dtype=np.bool_)
        targets = self.targets
        for index in np.flatnonzero(targets.type == Relocation.COPY).tolist():
            row = int(targets.container[index])
            if row < 0 or self._homes.owner[row] != NEW or int(self.new.entities.kind[row]) not in DATA:
                continue
            symbol = self.new.dynamic_symbols[int(targets.number[index])]
            bound = self._bindings.address(symbol.name, symbol.version)
            copied[row] = True
            if bound is not None:
                self.address[row] = bound
            elif symbol.binding != _STB_WEAK:
                self._refuse_unresolved(symbol.name, symbol.version)
        return copied

    def _refuse(self, code: str, subject: str, text: str) -> None:
        self.refusals.setdefault((code, subject), Reason(code, subject, text))


def _versioned(name: str, version: str) -> str:
    return f"{name}@{version}" if version else name
