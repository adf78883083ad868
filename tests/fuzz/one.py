"""Fuzzes one target in this process: ``python -m fuzz.one TARGET`` and libFuzzer's own options."""

from __future__ import annotations

import os
import sys

import atheris

with atheris.instrument_imports(include=["hotupgrade"]):
    from fuzz.targets import TARGETS, mutate


def main() -> None:
    target = TARGETS[os.environ["FUZZ_TARGET"]]

    def structured(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, most, seed) if seed % 5 else bytes(atheris.Mutate(data, most))

    mutator = {"custom_mutator": structured} if target.structured else {}
    atheris.Setup(sys.argv, target.run, **mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
