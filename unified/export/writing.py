"""Traced programs as files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from unified.dependencies import require
from unified.export.manifest import SUFFIXES, Entry, Format
from unified.export.nouns import Named


def entries(
    program: ExportedProgram, inputs: Named, dynamic: Sequence[Mapping[int, object] | None]
) -> Iterator[Entry]:
    """What a program takes; axes among ``dynamic`` may vary."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    users = [bool(nodes[name].users) for name in program.graph_signature.user_inputs]
    for (name, tensor), dims, used in zip(inputs.items(), dynamic, users, strict=True):
        shape = tuple(-1 if axis in (dims or {}) else n for axis, n in enumerate(tensor.shape))
        yield Entry(name, shape, str(tensor.dtype).removeprefix("torch."), used)


def drop_unused_weights(program: ExportedProgram) -> None:
    """Each program keeps the weights of its own part of the model only."""
    signature = program.graph_signature
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    kept = []
    for node, spec in zip(nodes, signature.input_specs, strict=True):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and not node.users:
            program.graph.erase_node(node)
            for weights in (program.state_dict, program.constants):
                weights.pop(str(spec.target), None)
        else:
            kept.append(spec)
    signature.input_specs[:] = kept
    program.graph_module.recompile()


def write_program(
    program: ExportedProgram, path: Path, format: Format, inputs: list[str], outputs: list[str]
) -> None:
    """Writes the file of one program; the suffix is that of the format."""
    target = path.with_name(path.name + SUFFIXES[format])
    if format == "torch":
        torch.export.save(program, target)
        return
    with TemporaryDirectory() as folder:
        onnx = target if format == "onnx" else Path(folder) / "program.onnx"
        _write_onnx(program, onnx, inputs, outputs)
        if format == "openvino":
            # Not its converter, which sends statistics of use.
            openvino = require("openvino")
            found = openvino.Core().read_model(str(onnx))
            openvino.save_model(found, str(target), compress_to_fp16=False)


def _write_onnx(
    program: ExportedProgram, path: Path, inputs: list[str], outputs: list[str]
) -> None:
    """Not by torch's own ``optimize``: one rule of it looks at all nodes once for each node.

    That took two thirds of an export; runtimes apply rules of their own.
    """
    found = torch.onnx.export(
        program,
        (),
        input_names=inputs,
        output_names=outputs,
        dynamo=True,
        verbose=False,
        optimize=False,
    )
    assert found is not None  # it is where no file is named
    passes = require("onnx_ir.passes.common")
    require("onnxscript.optimizer").fold_constants(found.model)
    for change in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
    ):
        change(found.model)
    found.save(str(path), external_data=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what tracers and converters report about themselves."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # has no counterpart elsewhere
    levels = {
        name: logging.getLogger(name).level
        for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.__trace")
    }
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
