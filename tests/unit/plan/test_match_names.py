"""What is left of a name when the compiler's own additions are taken off."""

from __future__ import annotations

import pytest

from hotupgrade.plan.stem import Stem, stem_of


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("f", Stem("f", (), False)),
        ("rl.17", Stem("rl", (), True)),
        ("__func__.0", Stem("__func__", (), True)),
        ("f.cold", Stem("f", ("cold",), False)),
        ("f.part.0", Stem("f", ("part",), True)),
        ("f.isra.0.cold", Stem("f", ("isra", "cold"), True)),
        ("f.constprop.1.isra.0", Stem("f", ("constprop", "isra"), True)),
        ("f.lto_priv.3", Stem("f", ("lto_priv",), True)),
        (".LC0", Stem(".LC0", (), False)),
        ("a.b-c", Stem("a.b-c", (), False)),
        ("_ZZ3foovE1x.5", Stem("_ZZ3foovE1x", (), True)),
        ("", Stem("", (), False)),
    ],
)
def test_stems(name: str, stem: Stem) -> None:
    assert stem_of(name) == stem
