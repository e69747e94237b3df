"""The address that the page is served at."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from glyphcrm.errors import UserError


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which does not listen yet; raise `UserError` if it is taken or there is none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # where it means: what a server that has ended left behind is no hindrance
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is taken; give another --port") from None
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host}, --port {port}: {reason}; give others") from None
    return listener


def names_of(listener: socket.socket, host: str) -> set[str] | None:
    """Return what browsers of this machine call a socket that no other machine reaches; None for any other socket."""
    address = listener.getsockname()[0]
    return {"localhost", address, host.lower()} if ipaddress.ip_address(address).is_loopback else None
