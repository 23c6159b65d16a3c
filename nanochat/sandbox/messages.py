"""Messages between processes: a length, then JSON; and plain Python values as JSON.

What comes from a worker is not trusted: sizes are bounded and only plain values are built.

encode((1, {2: b"x"}))  ->  ["tuple", 1, ["dict", 2, ["bytes", "78"]]]
"""

import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct(">I")
MAX_MESSAGE_BYTES = 16 << 20
MAX_JSON_INTEGER = 1 << 63  # larger ones in hexadecimal: decimal conversion is quadratic


class MessageError(Exception):
    """A message is not one: too long, not JSON, or not a value."""


def send(channel: socket.socket, value: Any) -> None:
    """Send a JSON value. Raises MessageError when it is too long, OSError after the other's end."""
    body = json.dumps(value).encode()
    if len(body) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{len(body)} bytes exceed {MAX_MESSAGE_BYTES}")
    channel.sendall(LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket) -> Any:
    """The next JSON value. Raises MessageError."""
    try:
        (length,) = LENGTH.unpack(_read(channel, LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise MessageError(f"{length} bytes exceed {MAX_MESSAGE_BYTES}")
        return json.loads(_read(channel, length))
    except (OSError, ValueError, RecursionError) as error:
        raise MessageError(f"{type(error).__name__}: {error}") from None


def _read(channel: socket.socket, size: int) -> bytes:
    chunks = []
    while size:
        try:
            chunk = channel.recv(min(size, 1 << 16))
        except ConnectionError:  # it left something unread
            chunk = b""
        if not chunk:
            raise MessageError("the other side has ended")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def encode(value: Any) -> Any:
    """A plain value as JSON; a subclass as what it derives from. Raises MessageError."""
    for base in (list, tuple, set, frozenset):
        if isinstance(value, base):
            return [base.__name__, *map(encode, value)]
    if isinstance(value, dict):
        return ["dict", *(encode(part) for item in value.items() for part in item)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= MAX_JSON_INTEGER:
        return ["int", hex(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise MessageError(f"a value of type {type(value).__name__} is not plain data")


def decode(value: Any) -> Any:
    """The value that `encode` was given, or an equal one. Raises MessageError."""
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise MessageError("an object")
        return value
    try:
        kind, *content = value
        if kind == "bytes":
            return bytes.fromhex(*content)
        if kind == "complex":
            return complex(*content)
        if kind == "int":
            return int(content[0], 16)
        items = map(decode, content)
        if kind == "dict":
            return dict(zip(items, items, strict=True))
        sequences: dict[str, type] = {
            "list": list, "tuple": tuple, "set": set, "frozenset": frozenset
        }  # fmt: skip
        return sequences[kind](items)
    except (ValueError, TypeError, KeyError) as error:
        raise MessageError(f"not a value: {type(error).__name__}") from None
