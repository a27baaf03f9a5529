"""Speed and memory of `explain` beside grad-cam and captum called directly; writes the table of the README.

    python benchmarks/explain.py [--rounds 3] [--architectures googlenet ...] [--readme README.md]

Every measurement is a process of its own with one thread; the two sides take turns, and the table holds medians. What
takes less than SHORT seconds runs once before it is measured, on either side, and then REPEATS times: the first call
of a process sets much up. Measurements are kept in results/benchmark.json, and what is there is not measured again. The
networks are torchvision's, with the weights of fold 0 of the quick profile (trained first, if they are missing) and
their usual memory format; the image is a test image of 224 x 224 pixels. The libraries' run time for Ablation-CAM,
Score-CAM and Occlusion is measured on a share of the feature maps or windows and multiplied, for it grows linearly
with them; ours is measured whole. "All" is the sum of the twelve maps.
"""

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from functools import lru_cache
from importlib import import_module
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

import captum.attr
import numpy as np
import torch
from pytorch_grad_cam import AblationCAM, EigenGradCAM, GradCAM, GradCAMPlusPlus, HiResCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchvision import models
from tqdm import tqdm

from helpers.explain.engine import explain
from helpers.explain.options import Options
from helpers.models import cross_validation as cv
from helpers.models.classifiers import stage
from helpers.models.held_out import held_out
from helpers.settings import ARCHITECTURES, ROOT, get_settings
from helpers.store import fingerprint, replacing

CAMS = {"Grad-CAM": GradCAM, "Grad-CAM++": GradCAMPlusPlus, "HiResCAM": HiResCAM, "EigenGrad-CAM": EigenGradCAM}
CASES = {
    "four gradient CAMs": tuple(CAMS),
    "Ablation-CAM": ("Ablation-CAM",),
    "Score-CAM": ("Score-CAM",),
    "Saliency": ("Saliency",),
    "Integrated Gradients": ("Integrated Gradients",),
    "GradientShap": ("GradientShap",),
    "Occlusion, three windows": ("Occlusion",),
}
TOLERANCE = 0.05
QUICK = f"Score-CAM, tolerance {TOLERANCE}"
SHORT, REPEATS = 10, 5
MARKS = "<!-- benchmark: made by make benchmark -->", "<!-- end of benchmark -->"


def network(settings, architecture):
    """The network as torchvision builds it, with the weights of fold 0, and a test image."""
    case = held_out(settings, architecture, 0)
    options = {"aux_logits": False, "init_weights": False} if architecture == "googlenet" else {}
    model = getattr(models, architecture)(num_classes=len(case.study.classes), **options)
    model.load_state_dict(case.model.cpu().state_dict())
    return model.eval(), case


def ours(model, image, target, layer, case):
    tolerance = {"tolerance": TOLERANCE} if case == QUICK else {}
    found = explain(model, image, CASES.get(case, ("Score-CAM",)), target, layer, **tolerance)
    return {name: (found[name].values, found[name].attrs["forwards"]) for name in found}


def library(model, image, target, layer, case, share):
    """Run a case with grad-cam or captum; returns how many times the measured work the whole is."""
    module, targets = model.get_submodule(layer), [ClassifierOutputTarget(target)]
    if case == "four gradient CAMs":
        for kind in CAMS.values():
            with kind(model, [module]) as method:
                method(image, targets)
    elif case in ("Ablation-CAM", "Score-CAM"):
        with (AblationCAM if case == "Ablation-CAM" else ScoreCAM)(model, [module]) as method:
            method.activations_and_grads(image)
            activations = method.activations_and_grads.activations[0].numpy()
            part = activations[:, : max(32, round(share * activations.shape[1]))]
            with torch.no_grad():
                method.get_cam_weights(image, module, targets, part, None)
        return activations.shape[1] / part.shape[1]
    elif case == "Occlusion, three windows":
        options, height, times = Options(), image.shape[-1], []
        for length in options.windows:
            window, stride = options.scaled(length, height), options.scaled(options.stride, height)
            coarse = min(window, max(stride, round(stride / share**0.5)))
            times.append((_count(height, window, stride), _count(height, window, coarse)))
            with torch.no_grad():
                captum.attr.Occlusion(model).attribute(image, (3, window, window), (3, coarse, coarse), target=target)
        return sum(whole for whole, _ in times) / sum(part for _, part in times)
    elif case == "GradientShap":
        captum.attr.GradientShap(model).attribute(
            image, torch.randn(5, *image.shape[1:]) * 0.001, stdevs=0.09, target=target
        )
    else:
        method = {"Saliency": captum.attr.Saliency, "Integrated Gradients": captum.attr.IntegratedGradients}[case]
        method(model).attribute(image.requires_grad_(), target=target)
    return 1.0


def _count(side, window, stride):
    return (-(-(side - window) // stride) + 1) ** 2


def measure(arguments):
    """The child process: one side of one case; prints a line of JSON."""
    torch.set_num_threads(1)
    settings = get_settings("quick", results=arguments.results, image_size=arguments.train_size)
    model, case = network(settings, arguments.architecture)
    which = case.surest[-1]
    image = torch.from_numpy(case.study.images(arguments.size, case.which[[which]]))
    target, layer = int(case.labels[which]), stage(arguments.architecture, 32)
    with torch.no_grad():
        model(image)  # what is set up once per process is no part of either side
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def run():
        begin, maps, factor = time.perf_counter(), {}, 1.0
        if arguments.side == "ours":
            maps = ours(model, image, target, layer, arguments.case)
        else:
            factor = library(model, image, target, layer, arguments.case, arguments.share)
        took = time.perf_counter() - begin
        return took * factor, took, maps

    seconds, took, maps = run()
    if took < SHORT:
        seconds = statistics.median(run()[0] for _ in range(REPEATS))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if arguments.keep:
        np.savez(arguments.keep, **{name: values for name, (values, _) in maps.items()})
    forwards = sum(spent for _, spent in maps.values())
    print(
        json.dumps(
            {"seconds": seconds, "peak_mib": peak / 1024, "added_mib": (peak - before) / 1024, "forwards": forwards}
        )
    )


def child(arguments, architecture, case, side, keep=""):
    """Run `measure` in a process of its own."""
    options = {"architecture": architecture, "case": case, "side": side, "keep": keep, "share": arguments.share,
               "size": arguments.size, "train-size": arguments.train_size, "results": arguments.results}  # fmt: skip
    words = [word for name, value in options.items() if value != "" for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, "measure", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{architecture}, {case}, {side}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@lru_cache(maxsize=1)
def _state() -> str:
    """Fingerprint of what is measured: the engine and this script, on this machine."""
    explaining = [
        import_module(f"helpers.explain.{path.stem}") for path in (ROOT / "helpers/explain").glob("[a-z]*.py")
    ]
    explaining.sort(key=lambda module: module.__name__)
    return fingerprint(*explaining, sys.modules[__name__], processor(), torch.__version__)[:12]


def compare(arguments) -> dict:
    """Every case on every architecture, the sides in turns; (architecture, case, side) to its measurements."""
    found, kept = {}, Path(arguments.measured)
    done = json.loads(kept.read_text()) if kept.exists() else {}
    jobs = [
        (a, case, side) for a in arguments.architectures for case in arguments.cases for side in ("library", "ours")
    ]
    jobs += [(a, QUICK, "ours") for a in arguments.architectures]
    folder = kept.with_suffix(".maps")
    folder.mkdir(parents=True, exist_ok=True)
    for turn in range(arguments.rounds):
        for architecture, case, side in tqdm(jobs, f"round {turn + 1} of {arguments.rounds}"):
            keep = folder / f"{architecture}-{case}.npz" if case in ("Score-CAM", QUICK) and side == "ours" else ""
            key = f"{architecture} {case} {side} {turn} {arguments.size} {arguments.share} {_state()}"
            if key not in done or (keep and not keep.exists()):
                done[key] = child(arguments, architecture, case, side, keep)
                with replacing(kept) as temporary:
                    temporary.write_text(json.dumps(done, indent=1))
            found.setdefault((architecture, case, side), []).append(done[key])
    for architecture in arguments.architectures:
        maps = [np.load(folder / f"{architecture}-{case}.npz")["Score-CAM"].ravel() for case in ("Score-CAM", QUICK)]
        found[architecture, "correlation"] = float(np.corrcoef(*maps)[0, 1])
    return found


def medians(found, architecture, case):
    """Median seconds of the library and of ours."""
    sides = ("library", "ours")
    return [statistics.median(m["seconds"] for m in found[architecture, case, side]) for side in sides]


def table(found, architectures, cases) -> str:
    """The comparison as Markdown: seconds of the library / ours, and how many times faster."""
    lines = [f"| 224 px, one image | {' | '.join(architectures)} |", "|---|" + "---|" * len(architectures)]

    def row(name, cells):
        lines.append(f"| {name} | {' | '.join(cells)} |")

    def cell(before, after):
        return f"{before:.3g} s / {after:.3g} s = **{before / after:.3g}**"

    pairs = {case: [medians(found, a, case) for a in architectures] for case in cases}
    for case, cells in pairs.items():
        row(case, [cell(*pair) for pair in cells])
    row(
        f"all {'twelve maps' if len(cases) == len(CASES) else 'of these'}",
        [cell(*map(sum, zip(*column, strict=True))) for column in zip(*pairs.values(), strict=True)],
    )
    quick = []
    for i, a in enumerate(architectures):
        runs, whole = found[a, QUICK, "ours"], found[a, "Score-CAM", "ours"][0]["forwards"]
        seconds, share = statistics.median(m["seconds"] for m in runs), runs[0]["forwards"] / whole
        before = pairs["Score-CAM"][i][0]
        quick.append(f"{cell(before, seconds)}; {share:.0%} of the forwards, correlation {found[a, 'correlation']:.4f}")
    row(QUICK, quick)
    for side, name in (("library", "captum"), ("ours", "here")) if "Integrated Gradients" in cases else ():
        peaks = [max(m["peak_mib"] for m in found[a, "Integrated Gradients", side]) for a in architectures]
        row(f"peak memory of Integrated Gradients, {name}", [f"{peak:.0f} MiB" for peak in peaks])
    return "\n".join(lines)


def growth() -> str:
    """Time against the number of images, and memory against the number of feature maps."""

    def run(kind, *numbers):
        return json.loads(subprocess.check_output([sys.executable, __file__, "grow", kind, *map(str, numbers)]))

    rows = [(f"{n} images", f"{seconds:.3g} s", "") for n, seconds in run("images", 1, 2, 4, 8).items()]
    rows += [(f"{n} feature maps", "", f"{run('channels', n)[str(n)]:.0f} MiB") for n in (256, 1024, 4096)]
    lines = ["| five gradient methods; Ablation-CAM and Score-CAM | time | memory added |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def grow(kind, *numbers):
    """The child process of `growth`; prints seconds per number of images, or MiB per number of feature maps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for n in map(int, numbers):
        if kind == "images":
            model, methods, size = models.mobilenet_v2(num_classes=3), (*CAMS, "Saliency"), n
        else:
            layers = torch.nn.Conv2d(3, 16, 3, 4), torch.nn.ReLU(), torch.nn.Conv2d(16, n, 3, 4), torch.nn.ReLU()
            head = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(n, 3)
            model, methods, size = torch.nn.Sequential(*layers, *head), ("Ablation-CAM", "Score-CAM"), 1
        images = torch.rand(size, 3, 224, 224)
        explain(model.eval(), images, "Grad-CAM", 0)
        before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
        for _ in range(3 if kind == "images" else 1):
            begin = time.perf_counter()
            explain(model, images, methods, 0)
            times.append(time.perf_counter() - begin)
        added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        found[n] = statistics.median(times) if kind == "images" else added
    print(json.dumps(found))


def processor() -> str:
    """Name of the processor."""
    try:
        return re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE).group(1).strip()
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def write(path, text) -> None:
    """Put the text between the marks of a Markdown file."""
    page = Path(path).read_text(encoding="utf-8")
    begin, end = (page.index(mark) for mark in MARKS)
    with replacing(path) as temporary:
        temporary.write_text(f"{page[: begin + len(MARKS[0])]}\n{text}\n{page[end:]}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="Score-CAM is always among them")
    parser.add_argument("--share", type=float, default=0.125, help="of the library's long runs")
    parser.add_argument("--size", type=int, default=224, help="of the image")
    parser.add_argument("--train-size", type=int, default=96, help="of the images that the networks were trained on")
    parser.add_argument("--results", default=ROOT / "results")
    parser.add_argument("--measured", default=ROOT / "results/benchmark.json", help="where measurements are kept")
    parser.add_argument("--readme", default=ROOT / "README.md")
    for name in ("architecture", "case", "side", "keep"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.command[:1] == ["measure"]:
        return measure(arguments)
    if arguments.command[:1] == ["grow"]:
        return grow(*arguments.command[1:])
    arguments.cases = [case for case in CASES if case in arguments.cases or case == "Score-CAM"]
    settings = get_settings("quick", results=arguments.results, image_size=arguments.train_size,
                            architectures=arguments.architectures)  # fmt: skip
    cv.train_folds(settings, folds=[0])
    found = compare(arguments)
    turns = f"median of {arguments.rounds}" if arguments.rounds > 1 else "measured once"
    machine = f"{processor()}, one thread, {turns}, {date.today():%d %B %Y}; torch {torch.__version__}"
    text = f"\n{table(found, arguments.architectures, arguments.cases)}\n\n*{machine}.*\n\n{growth()}\n"
    print(text)
    return write(arguments.readme, text)


if __name__ == "__main__":
    main()
