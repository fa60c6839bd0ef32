#!/usr/bin/env python3
"""Compiles and assembles every CUDA kernel for every GPU that it is for, without a GPU.

The compilers come from wheels on PyPI (scripts/cuda12_requirements.txt and cuda13_requirements.txt), into environments of their own, .venv-cuda12 and .venv-cuda13.
Fails if a kernel does not compile, spills registers, or if what is committed differs from what the sources give.

    scripts/cuda_report.py           checks kernels/cuda/ptx and docs/cuda_kernels.md against the sources
    scripts/cuda_report.py --write   writes both

NVRTC of CUDA 12.4 makes the PTX that is embedded in the program (PTX ISA 8.4, which every driver from CUDA 12.4 on takes);
ptxas of CUDA 12.4 and of CUDA 13 assemble it, and NVRTC of CUDA 13 compiles the sources once more.
"""

import argparse
import ctypes
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels" / "cuda"
REPORT = ROOT / "docs" / "cuda_kernels.md"
REQUIREMENTS = {12: ROOT / "scripts" / "cuda12_requirements.txt", 13: ROOT / "scripts" / "cuda13_requirements.txt"}

# GPUs by compute capability, and which of them a tool chain still has.
TARGETS = {
    12: ["sm_61", "sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90a"],
    13: ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"],
}
# Modules that need more than the lowest target: tensor cores multiply bytes by mma.sync m16n8k32 from sm_80 on, and wgmma is
# an instruction of sm_90a alone.
MODULE_ARCHITECTURE = {"attention_mma": "compute_80", "matmul_mma": "compute_80", "matmul_wgmma": "compute_90a"}
OPTIONS = ["-std=c++20", "-device-int128", f"-I{KERNELS}"]


def toolchain(major):
    """The packages' folder of one CUDA version; installs them the first time."""
    home = ROOT / f".venv-cuda{major}"
    python = home / "bin" / "python"
    wanted = REQUIREMENTS[major].read_text()
    stamp = home / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(home, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", REQUIREMENTS[major]], check=True)
        stamp.write_text(wanted)
    return next((home / "lib").glob("python*")) / "site-packages" / "nvidia"


def one(folder, pattern):
    found = sorted(folder.rglob(pattern))
    if not found:
        sys.exit(f"{pattern} is not in {folder}")
    return found[0]


class Nvrtc:
    """NVIDIA's run-time compiler, as a library."""

    def __init__(self, packages, major):
        self.compiler = ctypes.CDLL(str(one(packages, f"libnvrtc.so.{major}")))

    def call(self, name, *arguments):
        code = getattr(self.compiler, name)(*arguments)
        if code and name != "nvrtcCompileProgram":
            sys.exit(f"{name} failed with code {code}")
        return code

    def text(self, program, what):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.value.decode()

    def ptx(self, path, architecture):
        """The PTX of one source file. What the compiler says ends the program."""
        program = ctypes.c_void_p()
        source = path.read_bytes()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source, path.name.encode(), 0, None, None)
        options = [option.encode() for option in [f"-arch={architecture}", *OPTIONS]]
        failed = self.call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
        said = self.text(program, "ProgramLog").strip()
        if failed or said:
            sys.exit(f"{path.name} for {architecture}: {said or failed}")
        return self.text(program, "PTX")


def plain(ptx):
    """PTX without what the compiler says about itself, and without blank lines: it is the same text on every machine."""
    kept = [line.rstrip() for line in ptx.splitlines()]
    return "\n".join(line for line in kept if line and not line.startswith("//")) + "\n"


def assemble(ptxas, ptx, target):
    """(kernel, registers, shared bytes, stack bytes, spilled bytes) of every kernel of a module."""
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "module.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={target}", "-o", f"{folder}/module.cubin", source]
        done = subprocess.run(command, capture_output=True, text=True)
    # Where ptxas can't keep products of a warp group under way, it says so, and goes on.
    if done.returncode or "serialized" in done.stderr:
        sys.exit(f"ptxas for {target}: {done.stderr}")
    rows = []
    for part in re.split(r"Compiling entry function '", done.stderr)[1:]:
        name = part.split("'")[0]
        # What a function that is not inlined takes is listed after the kernels, and in their own stack.
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = re.search(r"(\d+) bytes smem", part)
        stack = int(re.search(r"(\d+) bytes stack frame", part)[1])
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", part))
        rows.append((name, registers, int(shared[1]) if shared else 0, stack, spilled))
    return rows


def targets_of(module, major):
    architecture = MODULE_ARCHITECTURE.get(module, "compute_0").removeprefix("compute_")
    if architecture.endswith("a"):
        return [f"sm_{architecture}"]
    return [t for t in TARGETS[major] if int(re.search(r"\d+", t)[0]) >= int(architecture)]


def compile_all(major):
    """PTX of every module, and what every kernel takes on every target."""
    packages = toolchain(major)
    nvrtc, ptxas = Nvrtc(packages, major), one(packages, "bin/ptxas")
    lowest = {12: "compute_61", 13: "compute_75"}[major]
    ptx, rows = {}, []
    for source in sorted(KERNELS.glob("*.cu")):
        module = source.stem
        ptx[module] = plain(nvrtc.ptx(source, MODULE_ARCHITECTURE.get(module, lowest)))
        for target in targets_of(module, major):
            rows += [(major, target, *row) for row in assemble(ptxas, ptx[module], target)]
        print(f"CUDA {major}: {module}", file=sys.stderr, flush=True)
    return ptx, rows


def table(rows, major):
    """Registers by kernel and target; shared memory and stack where there are any, the largest over all targets."""
    targets = TARGETS[major]
    lines = [f"| kernel | {' | '.join(targets)} | shared, bytes | stack, bytes |", f"|---|{'---:|' * (len(targets) + 2)}"]
    for kernel in sorted({row[2] for row in rows}):
        of_kernel = {row[1]: row for row in rows if row[2] == kernel}
        registers = [str(of_kernel[t][3]) if t in of_kernel else "" for t in targets]
        shared, stack = (max(row[i] for row in of_kernel.values()) for i in (4, 5))
        lines.append(f"| `{kernel}` | {' | '.join(registers)} | {shared} | {stack} |")
    return "\n".join(lines)


def report(rows):
    spilled = [f"`{row[2]}` on {row[1]}: {row[6]} bytes" for row in rows if row[6]]
    versions = {m: re.search(r"nvcc\S*==(\S+)", REQUIREMENTS[m].read_text())[1] for m in REQUIREMENTS}
    parts = [
        "# CUDA kernels as compiled\n",
        "Made by `scripts/cuda_report.py --write`; `scripts/cuda_report.py` compares, in every run of the tests. No GPU takes part:",
        "these are what NVIDIA's assembler says that a thread needs. An empty cell is a target that lacks the instructions.\n",
        f"Spilled registers: {', '.join(spilled) if spilled else 'none, for any kernel and target'}.\n",
    ]
    for major, version in versions.items():
        parts.append(f"## Registers a thread, CUDA {major} (ptxas {version})\n")
        parts.append(table([row for row in rows if row[0] == major], major) + "\n")
    return "\n".join(parts), spilled


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--write", action="store_true", help="write PTX and report instead of comparing them")
    write = arguments.parse_args().write
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        print("SKIPPED: these wheels of NVIDIA's compilers are for Linux on x86-64", file=sys.stderr)
        return
    ptx, rows = compile_all(12)
    rows += compile_all(13)[1]
    text, spilled = report(rows)
    files = {KERNELS / "ptx" / f"{module}.ptx": content for module, content in ptx.items()} | {REPORT: text}
    if write:
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
    stale = [path for path, content in files.items() if not path.exists() or path.read_text() != content]
    stale += [path for path in (KERNELS / "ptx").glob("*.ptx") if path not in files]
    if stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f"not what the sources give: {names}; if the sources are right: scripts/cuda_report.py --write")
    if spilled:
        sys.exit(f"registers are spilled: {', '.join(spilled)}")
    print(f"{len({row[2] for row in rows})} kernels assembled for {len({row[:2] for row in rows})} targets, nothing spilled")


if __name__ == "__main__":
    main()
