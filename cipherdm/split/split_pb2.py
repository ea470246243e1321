"""Messages and the service of split.proto, such as `split_pb2.Batch`; `read_messages` says how its description is made."""

from pathlib import Path

from ..engine.rpc import read_messages

globals().update(read_messages(Path(__file__).with_name("split.binpb")))
