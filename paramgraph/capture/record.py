"""Recording one run of a network: its parameters, its inputs, its outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paramgraph.capture.recorder import MemoryGuard, Recorder
from paramgraph.capture.running import (
    ExampleInputs,
    OutputChoice,
    WroteParameterError,
    chosen_output,
    detached,
    evaluation_copy,
    output_tensors,
    plain_execution,
    run_network,
)
from paramgraph.capture.tape import Tape, entry_refs
from paramgraph.errors import CaptureError

__all__ = ["record"]


def record(
    network: nn.Module,
    example_inputs: ExampleInputs,
    output: OutputChoice = None,
    *,
    start: int = 0,
) -> Tape:
    """Run a copy of the network once, in evaluation mode, and write the tape.

    The network itself is not touched: not its parameters, mode, buffers, hooks or the global
    random state.

    Args:
        network: Any module.
        example_inputs: What to call it with; use a batch of two or more.
        output: Which of the outputs count, see ``capture``.
        start: Position of the first operation.

    Raises:
        CaptureError: The network failed on the example inputs or returned no tensor.

    Example:
        >>> tape = record(nn.Linear(3, 2), torch.randn(4, 3))
        >>> [entry.operation for entry in tape.entries]
        ['aten.t', 'aten.addmm']
    """
    try:
        own = evaluation_copy(network, share_parameters=True)
        return _record(own, network, example_inputs, output, start, is_shared=True)
    except WroteParameterError:
        own = evaluation_copy(network)
        return _record(own, network, example_inputs, output, start, is_shared=False)


def _record(
    network: nn.Module,
    original: nn.Module,
    example_inputs: ExampleInputs,
    output: OutputChoice,
    start: int,
    *,
    is_shared: bool,
) -> Tape:
    tape = Tape(start=start)
    recorder = Recorder(tape)
    _define_state(tape, recorder, network, is_shared)
    recorder.foreign = {id(t) for t in (*original.parameters(), *original.buffers())}
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks; its operations are recorded all the same
        module.register_forward_pre_hook(recorder.entering(path))
        module.register_forward_hook(recorder.leaving)
    state = {name for name, _ in network.named_parameters()}
    inputs = detached(example_inputs)
    tape.inputs = [recorder.define(t, is_constant=False) for t in output_tensors(inputs)]
    if not tape.inputs:
        raise CaptureError("example_inputs hold no tensor: capture needs something to run on.")
    try:
        with plain_execution(network), MemoryGuard(recorder), recorder:
            # The choice may compute (``lambda result: result[:, 0]``), so it is recorded too.
            result = chosen_output(run_network(network, inputs), output)
    except (CaptureError, WroteParameterError):
        raise
    except Exception as error:
        shapes = ", ".join(str(ref.shape) for ref in tape.inputs)
        raise CaptureError(
            f"the network {type(network).__name__} failed on the example inputs (shapes {shapes}) "
            f"in module {recorder.modules[-1] or 'top level'!r}: {type(error).__name__}: {error}"
        ) from error
    if new := {name for name, _ in network.named_parameters()} - state:
        raise CaptureError(
            f"the network {type(network).__name__} registered parameters while it ran "
            f"({', '.join(sorted(new))}): run it once before capturing it."
        )
    outputs = output_tensors(result)
    if not outputs:
        raise CaptureError(f"the network {type(network).__name__} returned no tensor.")
    tape.outputs = [recorder.reference(tensor) for tensor in outputs]
    tape.leafy = _acted_on(tape)
    return tape


def _define_state(tape: Tape, recorder: Recorder, network: nn.Module, is_shared: bool) -> None:
    """References of all parameters and buffers, tied ones once."""
    stored = network.state_dict().keys()
    seen: dict[object, str] = {}
    named: list[tuple[str, Tensor, bool]]
    named = [(n, p, False) for n, p in network.named_parameters(remove_duplicate=False)]
    named += [(n, b, True) for n, b in network.named_buffers(remove_duplicate=False)]
    is_trained = any(parameter.requires_grad for parameter in network.parameters())
    for name, tensor, is_buffer in named:
        # Tied are the same object, or two that are the same piece of memory.
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        has_memory = tensor.data_ptr() != 0
        first = seen.get(id(tensor)) or (seen.get(place) if has_memory else None)
        if first is not None:
            tape.aliases[first] = (*tape.aliases.get(first, ()), name)
            seen[id(tensor)] = first
            continue
        seen[id(tensor)] = seen[place] = name
        tape.parameters[name] = recorder.define(tensor, is_constant=is_buffer)
        if is_shared and not is_buffer:
            recorder.shared.add(tensor.untyped_storage()._cdata)
        if not is_buffer and is_trained and not tensor.requires_grad:
            tape.untrained.add(name)
        if is_buffer:
            tape.buffers.add(name)
            tape.constants.append(tape.parameters[name])
            if name in stored:
                tape.stored.add(tape.parameters[name].number)


_PASSES = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "detach", "alias", "_to_copy"),
    *("unsqueeze", "squeeze", "expand", "clone", "select", "slice", "lift_fresh"),
}


_CONTRACTIONS = {
    *("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution", "_grouped_mm"),
    *("native_layer_norm", "native_group_norm", "_fused_rms_norm"),
}


def _acted_on(tape: Tape) -> set[str]:
    """Parameters and running statistics that symmetries act on.

    Buffers are constants, except running statistics. So are tables (of positions) among trained
    parameters that are not trained themselves: a symmetry that moved them would leave the set of
    networks that training can reach.
    """
    names = {ref.number: name for name, ref in tape.parameters.items()}
    acted = {name for name in tape.parameters if name not in tape.buffers | tape.untrained}
    for entry in tape.entries:
        operation = entry.operation.removeprefix("aten.")
        if "batch_norm" in operation:
            refs = entry_refs([entry.args.get("running_mean"), entry.args.get("running_var")])
            acted |= {names[ref.number] for ref in refs if ref.number in names}
        if not tape.untrained:
            continue
        origins = [names[r.number] for r in entry_refs(entry.args) if r.number in names]
        if operation in _CONTRACTIONS:
            acted |= {name for name in origins if name in tape.untrained}
        elif operation in _PASSES and origins:
            names.update({ref.number: origins[0] for ref in entry.outputs if ref is not None})
    return acted
