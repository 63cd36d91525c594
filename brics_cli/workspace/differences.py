"""What differs between two identities, in words a user can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name: was X, now Y` for every entry that is not the same in both; sha256s are shortened."""
    return [
        f"{name}: was {_short(was.get(name))}, now {_short(now.get(name))}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text
