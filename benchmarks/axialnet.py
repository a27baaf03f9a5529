"""Time and memory of one step of AxialNet at full size: forward and backward pass of a volume of 405 x 420 x 420.

    python benchmarks/axialnet.py [--no-checkpointing] [--bfloat16] [--slices 405] [--side 420] [--threads 1]

Runs on the GPU where there is one. Memory is the peak of the process, or of the GPU.
"""

import argparse
import os
import resource
import time

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE"}

import torch

from helpers.models.axialnet import AxialNet, mask_loss
from helpers.settings import pick_device

LABELS = 80


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--slices", type=int, default=405)
    parser.add_argument("--side", type=int, default=420)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    device, groups = pick_device(), words.slices // 3
    model = AxialNet(LABELS, side=words.side).train().use_checkpointing(not words.no_checkpointing)
    model.to(device, memory_format=torch.channels_last)
    volume = torch.rand(1, groups, 3, words.side, words.side, device=device)
    labels = (torch.rand(1, LABELS, device=device) < 0.1).float()
    allowed = torch.rand(1, LABELS, groups, *[model.slices.grid] * 2, device=device) < 0.3
    begin, cpu = time.perf_counter(), time.process_time()
    with torch.autocast(device.type, torch.bfloat16, enabled=words.bfloat16):
        features = model.features(volume)
        loss = mask_loss(model.logits(features).float(), labels, model.attention(features), allowed)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    finite = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    print(f"{words.slices} x {words.side} x {words.side}, {LABELS} labels, {device.type}, {words.threads} threads, "
          f"checkpointing {not words.no_checkpointing}, bfloat16 {words.bfloat16}: {time.perf_counter() - begin:.1f} s "
          f"({time.process_time() - cpu:.1f} s of CPU), peak {peak:.2f} GiB, gradients finite {finite}")  # fmt: skip


if __name__ == "__main__":
    main()
