"""How all of it was made: commands, versions, machines, time, and an estimate of the energy."""

from __future__ import annotations

from typing import Any

from brics_cli.errors import BricsError
from brics_cli.report.blocks import Chapter, Commands, Note, Table, number
from brics_cli.report.context import Context
from brics_cli.report.diffusion import sample_command
from brics_cli.report.gathering import Node
from brics_cli.report.runs import seconds_of
from brics_cli.runtime.reporting import command_line
from brics_cli.wording import count, duration
from brics_cli.workspace.files import read_json

WATTS_PER_CPU = 10.0
"""Of a core under load: a 64-core server processor of 280 to 360 W, its memory and what feeds it (rounded up)."""
BOARD_WATTS = {
    "H200": 700, "H100 PCIe": 350, "H100": 700, "A100-PCIE": 250, "A100 80GB PCIe": 300, "A100": 400, "V100": 300,
    "L40S": 350, "L4": 72, "T4": 70, "RTX 4090": 450, "RTX 3090": 350, "A6000": 300, "B200": 1000,
}  # fmt: skip
"""Board power of NVIDIA's data sheets; the first name that is part of the device's counts."""
MOST = 20


def chapter(context: Context) -> Chapter:
    """Commands and cost of what is shown, the newest first."""
    made = Chapter("making", "How it was made")
    commands, costs = list[tuple[str, str]](), list[list[str]]()
    versions: dict[str, tuple[str, tuple[str, ...]]] = {}
    for stage in ("autoencoder", "diffusion", "samples"):
        for node in context.gathered.of(stage)[:MOST]:
            environment = _environment(node)
            command = environment.get("command")
            if isinstance(command, list) and all(isinstance(word, str) for word in command):
                commands.append((f"{node.kind} {node.name}, as it was started", command_line(*command)))
            elif stage == "samples" and (words := sample_command(node)):
                commands.append((f"{node.kind} {node.name}, from its settings", command_line(*words)))
            if environment:
                packages = environment.get("packages")
                listed = packages.items() if isinstance(packages, dict) else []
                row = tuple(f"{name} {each}" for name, each in [("brics", environment.get("brics")), *listed])
                versions.setdefault(_text(environment), (node.name, row))
            seconds = seconds_of(node, context) if stage != "samples" else _sum(node.details.get("seconds"))
            if seconds:
                costs.append(_cost(node, environment, seconds, context.watts))
    if commands:
        made.blocks.append(Commands(commands))
    if versions:
        rows = [[where, name, ", ".join(row)] for where, (name, row) in versions.items()]
        made.blocks.append(Table(["machine", "first used by", "versions"], rows))
    if costs:
        made.blocks.append(Table(["", "machine", "time", "energy, Wh"], costs, "Time and energy"))
        how = f"{WATTS_PER_CPU:g} W per CPU core, or the board power in NVIDIA's data sheet; --watts says otherwise"
        how = how if context.watts is None else f"{context.watts:g} W, as given"
        said = f"Energy is an estimate, nothing was measured: time in training steps or sampling x power ({how})."
        made.blocks.append(Note(said))
    if demo := context.gathered.demo_seconds:
        rows = [[name, duration(float(value))] for name, value in demo.items() if isinstance(value, int | float)]
        made.blocks.append(Table(["step of brics demo", "time"], rows, f"{count(len(rows), 'step')}"))
    return made


def _environment(node: Node) -> dict[str, Any]:
    try:
        found = read_json(node.path / "environment.json", what="environment") if node.path.is_dir() else {}
    except (BricsError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(environment: dict[str, Any]) -> str:
    device, cpus = environment.get("device", ""), environment.get("num_cpus", "")
    return f"{device}, {cpus} CPU cores, {environment.get('platform', '')}, Python {environment.get('python', '')}"


def _sum(seconds: Any) -> float | None:
    if not isinstance(seconds, dict):
        return None
    return sum(value for value in seconds.values() if isinstance(value, int | float)) or None


def watts_of(device: str, num_threads: Any) -> float | None:
    """The power that is assumed of a device, W; None where it is not known."""
    if device == "cpu":
        return WATTS_PER_CPU * (num_threads if isinstance(num_threads, int) else 1)
    return next((float(watts) for name, watts in BOARD_WATTS.items() if name in device), None)


def _cost(node: Node, environment: dict[str, Any], seconds: float, watts: float | None) -> list[str]:
    device = str(environment.get("device") or node.details.get("device") or "")
    power = watts or watts_of(device, environment.get("num_threads"))
    energy = "" if power is None else number(seconds * power / 3600, ".3g")
    return [f"{node.kind} {node.name}", device, duration(seconds), energy]
