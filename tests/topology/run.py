#!/usr/bin/env python3
"""Every topology file of a folder through `rowen fabric import`: a table of what became of each.

    ROWEN=target/debug/rowen tests/topology/run.py FOLDER

Formats go by name: *.conf is Slurm's, *.xml is NCCL's, a YAML file below `models` is topograph's,
a file that begins as ibnetdiscover's output does (.xz too) is one; all others are only counted. A
file is either imported or refused in one line that says why; anything else (a crash, a
refusal without a reason) fails. The project needs no such folder: point it at whatever you have.
"""

import json
import lzma
import os
import pathlib
import subprocess
import sys


def text_of(path):
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def format_of(path, text):
    if path.suffix == ".conf":
        return "slurm"
    if path.suffix == ".xml":
        return "nccl"
    if path.suffix in (".yaml", ".yml") and "models" in path.parts:
        return "topograph"
    if b"# Topology file: generated" in text[:400] or b"\nswitchguid=" in text[:100_000]:
        return "ibnetdiscover"
    return None


def look(rowen, path):
    """Format, whether all is well, and what became of the file."""
    text = text_of(path)
    form = format_of(path, text)
    if form is None:
        return "-", True, "left out: of no format that Rowen imports"
    command = [rowen, "fabric", "import", "--from", form, "-", "-o", "json"]
    run = subprocess.run(command, input=text, capture_output=True, timeout=600)
    said = run.stderr.decode(errors="replace").strip()
    if run.returncode == 0:
        answer = json.loads(run.stdout)
        found = answer["found"]
        odd = len(found["irregularities"])
        names = ("nodes", "gpus", "racks", "leafs", "spines")
        what = ", ".join(f"{found[name]} {name}" for name in names)
        return form, True, f"imported: {what}, {odd} irregularities, {len(answer['remarks'])} remarks"
    one_line = said and "\n" not in said and "panicked" not in said
    fine = run.returncode in (1, 2) and bool(one_line)
    return form, fine, f"refused: {said}" if fine else f"FAILED ({run.returncode}): {said[:300]}"


def main():
    if len(sys.argv) != 2 or not pathlib.Path(sys.argv[1]).is_dir():
        print("SKIPPED: no folder of topology files was named; tests/topology/run.py FOLDER")
        return 0
    folder = pathlib.Path(sys.argv[1])
    rowen = os.environ.get("ROWEN", "target/debug/rowen")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [(str(path.relative_to(folder)), *look(rowen, path)) for path in files]
    others = sum(row[1] == "-" for row in rows)
    rows = [row for row in rows if row[1] != "-"]
    if not rows:
        print(f"SKIPPED: {folder} holds no topology file, of {others} files")
        return 0
    width = max(len(row[0]) for row in rows)
    for name, form, fine, what in rows:
        print(f"{name:{width}}  {form:13}  {what}")
    bad = [row[0] for row in rows if not row[2]]
    imported = sum(row[3].startswith("imported") for row in rows)
    refused = sum(row[3].startswith("refused") for row in rows)
    print(f"\n{imported} imported, {refused} refused with a reason, {len(bad)} failed; {others} files are of no format that Rowen imports")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
