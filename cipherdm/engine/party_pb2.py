"""Messages and the service of party.proto, such as `party_pb2.Plan`; `read_messages` says how its description is made."""

from pathlib import Path

from .rpc import read_messages

globals().update(read_messages(Path(__file__).with_name("party.binpb")))
