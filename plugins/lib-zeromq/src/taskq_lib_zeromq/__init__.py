"""What the ZeroMQ transport and result store share: the hub, its protocol and connections."""

from __future__ import annotations
