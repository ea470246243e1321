"""Messages and the service of host.proto, such as `host_pb2.Manifest`; `read_messages` says how its description is made."""

from pathlib import Path

from ..engine import party_pb2 as party_pb2  # whose messages are in some of these
from ..engine.rpc import read_messages

globals().update(read_messages(Path(__file__).with_name("host.binpb")))
