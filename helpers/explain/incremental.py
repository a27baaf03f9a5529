"""Forward passes of an image that is changed in a small window: early layers are computed only around the window."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

from helpers.explain.inference import CACHED, SAME, SHARE, Packed, gathered, in_cache, largest

WINDOWS = (Packed, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
POINTWISE = {
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.BatchNorm2d, nn.Dropout, nn.Identity, functional.relu,
    functional.dropout, torch.relu, torch.add, operator.add, operator.iadd, operator.sub, operator.mul,
    operator.truediv,
}  # fmt: skip
WORTHWHILE = 0.85  # share of a grid up to which a part of it is computed rather than the whole


class Reach(NamedTuple):
    """Along one side: output i hangs on the inputs from i * stride + low to i * stride + high."""

    stride: int = 1
    low: int = 0
    high: int = 0


class Segment(NamedTuple):
    """Nodes between two places through which everything flows, and their reach along rows and columns."""

    begin: fx.Node
    nodes: list
    reach: tuple[Reach, Reach]


class Piece(NamedTuple):
    """Along one side, for windows at several places: where the input is cut out and which outputs are kept."""

    cuts: list  # first input of each cut
    length: int  # inputs in a cut
    kept: list  # first output that is kept, of each window
    size: int  # outputs kept


def segments(network: fx.GraphModule) -> list[Segment]:
    """The beginning of a network, cut where a single tensor carries everything; up to what is not understood."""
    order = {node: place for place, node in enumerate(network.graph.nodes)}
    last_use = {node: max((order[user] for user in node.users), default=-1) for node in order}
    nodes = [node for node in order if node.op != "get_attr"]
    found, begin, inside, reach = [], nodes[0], [], {nodes[0]: (Reach(), Reach())}
    open_ends = [nodes[0]]
    for node in nodes[1:]:
        reach[node] = _reach(network, node, reach)
        if reach[node] is None:
            break
        inside.append(node)
        open_ends = [other for other in (*open_ends, node) if last_use[other] > order[node]]
        if open_ends == [node]:
            if found and reach[node] == (Reach(), Reach()):
                found[-1].nodes.extend(inside)
            else:
                found.append(Segment(begin, inside, reach[node]))
            begin, inside, reach = node, [], {node: (Reach(), Reach())}
    return found


def _reach(network, node, reach):
    inputs = [reach.get(source) for source in node.all_input_nodes if source.op != "get_attr"]
    if not inputs or None in inputs or len({(rows.stride, columns.stride) for rows, columns in inputs}) > 1:
        return None
    sides = [
        Reach(side[0].stride, min(r.low for r in side), max(r.high for r in side))
        for side in zip(*inputs, strict=True)
    ]  # fmt: skip
    module = network.get_submodule(node.target) if node.op == "call_module" else None
    if isinstance(module, WINDOWS):
        geometry = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
        if any(isinstance(value, str) for value in geometry):
            return None
        return tuple(_after(side, *(_of(value, i) for value in geometry)) for i, side in enumerate(sides))
    over_channels = node.target is torch.cat and (node.kwargs.get("dim") or (*node.args, 0)[1]) == 1
    if over_channels or (type(module) if module else node.target) in POINTWISE:
        return tuple(sides)
    return None


def _of(value, side):
    return value[side] if isinstance(value, (tuple, list)) else value


def _after(reach, kernel, stride, padding, dilation):
    first = reach.low - padding * reach.stride
    return Reach(reach.stride * stride, first, reach.high + (dilation * (kernel - 1) - padding) * reach.stride)


def _piece(reach, starts, size, n_in, n_out):
    first = [max(0, -(-(start - reach.high) // reach.stride)) for start in starts]
    last = [min(n_out - 1, (start + size - 1 - reach.low) // reach.stride) for start in starts]
    kept_size = max(b - a + 1 for a, b in zip(first, last, strict=True))
    kept = [min(a, n_out - kept_size) for a in first]
    begin = [max(0, k * reach.stride + reach.low) // reach.stride * reach.stride for k in kept]
    end = [min(n_in - 1, (k + kept_size - 1) * reach.stride + reach.high) for k in kept]
    length = max(b - a + 1 for a, b in zip(begin, end, strict=True))
    length = n_in - (n_in - length) // reach.stride * reach.stride
    return Piece([min(a, n_in - length) for a in begin], length, kept, kept_size)


class Changed:
    """Logits of one image in which a patch is changed, at many places; the rest of the image is computed once.

    Parameters
    ----------
    network : of `inference.packed` or `folded`; one that is no traced graph is run as a whole
    image : (1, C, H, W)
    memory : bytes that a batch may take
    """

    def __init__(self, network: nn.Module, image: torch.Tensor, memory: int):
        self.network, self.memory = network, memory
        self._image = image.contiguous(memory_format=torch.channels_last)
        self._segments, self._checked = [], False
        if isinstance(network, fx.GraphModule):
            self._interpreter = fx.Interpreter(network, garbage_collect_values=False)
            self._done_with = _done_with(network)
            with torch.inference_mode():
                self._interpreter.run(self._image)
            values = {n: v for n, v in self._interpreter.env.items() if isinstance(v, torch.Tensor)}
            self._bytes = {n: v.element_size() * v.numel() for n, v in values.items() if v.dim() == 4}
            self._segments = segments(network)
            ends = {node for segment in self._segments for node in (segment.begin, segment.nodes[-1])}
            self._values = {n: v for n, v in values.items() if n in ends or n.op == "get_attr"}
            self._interpreter.env = {}

    def logits(self, patches: torch.Tensor, rows: list, columns: list) -> torch.Tensor:
        """Logits (B, K) of the image with patch b of (B, C, h, w) put in at row b and column b of the lists."""
        steps, each = self._plan(patches.shape[-2:], rows, columns)
        fitting = in_cache(self.memory, CACHED, self._image.device)

        def compute(part):
            return self._pass(steps, patches[part], (rows[part], columns[part]), part)

        with torch.inference_mode():
            try:
                found = gathered(compute, len(patches), each, fitting)
            except RuntimeError:
                if not steps or self._checked:
                    raise
                found = None
            if steps and not self._checked:
                middle = slice(len(patches) // 2, len(patches) // 2 + 1)
                whole = self._pass([], patches[middle], (rows[middle], columns[middle]), middle)
                self._checked = True
                if found is None or (found[middle] - whole).abs().max() > SAME * whole.abs().max():
                    self._segments = []  # other logits than the whole network: do without them
                    return self.logits(patches, rows, columns)
        return found

    def _plan(self, size, *starts):
        """Steps (segment, piece along rows, piece along columns) that are worthwhile, and bytes per image."""
        steps, each = [], [0]
        for segment in self._segments:
            n_in, n_out = (self._values[node].shape[-2:] for node in (segment.begin, segment.nodes[-1]))
            sides = [_piece(*side) for side in zip(segment.reach, starts, size, n_in, n_out, strict=True)]
            share = sides[0].length * sides[1].length / (n_in[0] * n_in[1])
            if share > WORTHWHILE:
                break
            steps.append((segment, *sides))
            starts, size = [side.kept for side in sides], [side.size for side in sides]
            each.append(share * max(self._bytes[node] for node in segment.nodes))
        if isinstance(self.network, fx.GraphModule):
            done = {node for segment, *_ in steps for node in (segment.begin, *segment.nodes)}
            each.append(max((size for node, size in self._bytes.items() if node not in done), default=0))
        else:
            each.append(largest(self.network, self._image))
        return steps, int(SHARE * max(each))

    def _pass(self, steps, patches, at, part):
        for segment, *sides in steps:
            cuts, kept = ([getattr(side, name)[part] for side in sides] for name in ("cuts", "kept"))
            around = _cut_out(self._values[segment.begin], cuts, [side.length for side in sides], len(patches))
            _put_in(around, patches, _less(at, cuts))
            found = self._run(segment.begin, segment.nodes, around)
            inside = [[cut // reach.stride for cut in c] for c, reach in zip(cuts, segment.reach, strict=True)]
            patches, at = _cut_out(found, _less(kept, inside), [side.size for side in sides], len(patches)), kept
        begin = steps[-1][0].nodes[-1] if steps else None
        unchanged = self._values[begin] if steps else self._image
        whole = _empty((len(patches), *unchanged.shape[1:]), unchanged).copy_(unchanged)
        _put_in(whole, patches, at)
        if begin is None:
            return self.network(whole)
        nodes = list(self.network.graph.nodes)
        return self._run(begin, nodes[nodes.index(begin) + 1 :], whole)

    def _run(self, begin, nodes, value):
        constants = {node: v for node, v in self._values.items() if node.op == "get_attr"}
        self._interpreter.env = {**constants, begin: value}
        for node in nodes:
            self._interpreter.env[node] = self._interpreter.run_node(node)
            for value in self._done_with.get(node, ()):
                self._interpreter.env.pop(value, None)
        return self._interpreter.env.pop(nodes[-1])


def _done_with(network):
    """Values that nothing needs after a node."""
    last = {value: node for node in network.graph.nodes for value in node.all_input_nodes}
    found = {}
    for value, node in last.items():
        found.setdefault(node, []).append(value)
    return found


def _less(ones, others):
    return [[a - b for a, b in zip(one, other, strict=True)] for one, other in zip(ones, others, strict=True)]


def _empty(shape, like):
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _cut_out(values, at, size, n):
    """Windows (n, C, *size) of values (n or 1, C, H, W)."""
    made = _empty((n, values.shape[1], *size), values)
    for i, (y, x) in enumerate(zip(*at, strict=True)):
        made[i] = values[i % len(values), :, y : y + size[0], x : x + size[1]]
    return made


def _put_in(values, patches, at):
    height, width = patches.shape[-2:]
    for i, (y, x) in enumerate(zip(*at, strict=True)):
        values[i, :, y : y + height, x : x + width] = patches[i]
