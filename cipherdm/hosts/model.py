"""A model as its owner registers it with three hosts: values, programs, the plan, inputs and outputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..engine import EngineConfig, Plan, Spec
from ..engine.session import call_message
from . import host_pb2 as pb
from .manifest import check_manifest, variable


@dataclass(frozen=True, eq=False)
class Together:
    """How requests of several clients are computed in one run, a row for each.

    Attributes:
        requests: most requests of a run.
        plan: calls on the inputs of so many. It must compute each row from that row's inputs alone: parties hand out what
            stands in a row to the client that brought its inputs.
        inputs: shapes and dtypes of the inputs of so many requests, by name.
        parts: for each input, the number of equal parts in each of which the requests follow each other: 1 if they do so on
            the first axis, the number of steps for noise [steps, requests, ...]. The outputs have them on their first axis.
    """

    requests: int
    plan: Plan
    inputs: Mapping[str, Spec]
    parts: Mapping[str, int]

    def message(self) -> pb.Together:
        """Return the message of the manifest."""
        inputs = [variable(name, spec) for name, spec in self.inputs.items()]
        parts = [self.parts[name] for name in self.inputs]
        calls = [call_message(call) for call in self.plan.calls]
        return pb.Together(requests=self.requests, inputs=inputs, parts=parts, calls=calls)


@dataclass(frozen=True, eq=False)
class Model:
    """A model before it is registered.

    Attributes:
        name: name by which clients ask for it.
        plan: calls that the parties walk for each request.
        values: arrays of the owner, to be secret-shared.
        public: arrays that all parties may know.
        inputs: shapes and dtypes of a client's arrays, to be secret-shared, by name.
        outputs: names of the arrays that a client gets.
        engine: configuration of SPU.
        about: public facts that clients need, as JSON.
        together: how requests of several clients are computed in one run; None to compute each alone.
    """

    name: str
    plan: Plan
    values: Mapping[str, np.ndarray]
    inputs: Mapping[str, Spec]
    outputs: tuple[str, ...]
    public: Mapping[str, np.ndarray] = field(default_factory=dict)
    engine: EngineConfig = EngineConfig()  # noqa: RUF009 (a frozen value)
    about: Mapping[str, Any] = field(default_factory=dict)
    together: Together | None = None

    def manifest(self, registration: str) -> pb.Manifest:
        """Return all but the values' contents, checked as the parties will check it.

        Raises:
            CipherDMError: a program reveals a secret, or names and shapes do not fit together.
        """
        plans = (self.plan,) if self.together is None else (self.plan, self.together.plan)
        programs = {call.program.id: call.program for plan in plans for call in plan.calls}
        values = [variable(name, Spec.of(np.asarray(array))) for name, array in self.values.items()]
        values += [variable(name, Spec.of(np.asarray(array), public=True)) for name, array in self.public.items()]
        manifest = pb.Manifest(
            name=self.name,
            registration=registration,
            fraction_bits=self.engine.fraction_bits,
            exp=self.engine.exp,
            programs=[
                pb.Code(id=program.id, name=program.name, text=program.code, walk=program.walk)
                for program in programs.values()
            ],
            calls=[call_message(call) for call in self.plan.calls],
            values=values,
            inputs=[variable(name, spec) for name, spec in self.inputs.items()],
            outputs=self.outputs,
            about=json.dumps(self.about),
            together=None if self.together is None else self.together.message(),
        )
        check_manifest(manifest)
        return manifest
