"""Prints versions, devices, and what of the optional parts is missing.

    llmrec env

What is required, and by which extra, is read from the metadata of the installed package.
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from llmrec import __file__ as package
from llmrec import __version__
from llmrec.messages import print_error


def main() -> None:
    sys.excepthook = print_error
    lines = [f"llmrec {__version__} in {Path(package).parent}"]
    lines += [
        f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPU cores",
        *devices(),
        "",
    ]
    try:
        lines += parts()
    except PackageNotFoundError:
        lines += ["llmrec is not installed as a package, which says what it requires: pip install llmrec"]
    sys.stdout.write("\n".join([*lines, ""]))


def devices() -> list[str]:
    if not torch.accelerator.is_available():
        return [f"no accelerator that PyTorch {torch.__version__} finds: models run on the CPU"]
    kind = torch.accelerator.current_accelerator().type
    if kind != "cuda":
        return [f"{torch.accelerator.device_count()} x {kind}"]
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{one.name}, {one.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}" for one in found]


def parts() -> list[str]:
    """What is required and what each extra brings, with versions, and the command that brings what is missing."""
    lines = ["required", *(f"  {line}" for line, _ in of_extra(""))]
    for extra in metadata("llmrec").get_all("Provides-Extra") or ():
        found = of_extra(extra)
        whole = all(fits for _, fits in found)
        lines += ["", f"{extra}: " + ("there" if whole else f'pip install "llmrec[{extra}]"')]
        lines += [f"  {line}" for line, _ in found]
    return lines


def of_extra(extra: str) -> list[tuple[str, bool]]:
    """A line for each requirement of an extra, or, for `""`, of the package itself, and whether it is met."""
    lines = []
    for line in requires("llmrec") or ():
        needed = Requirement(line)
        asked = needed.marker.evaluate({"extra": extra}) if needed.marker else not extra
        if not asked or (extra and needed.marker.evaluate({"extra": ""})):
            continue
        if needed.name == "llmrec":
            lines += [one for each in sorted(needed.extras) for one in of_extra(each)]
            continue
        try:
            there = version(needed.name)
        except PackageNotFoundError:
            lines.append((f"{needed.name} is missing ({needed.specifier})", False))
            continue
        fits = needed.specifier.contains(there, prereleases=True)
        lines.append((f"{needed.name} {there}" + ("" if fits else f" is there, {needed.specifier} is needed"), fits))
    return lines


if __name__ == "__main__":
    main()
