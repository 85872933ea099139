"""A plan as people read it, and as programs do."""

from __future__ import annotations

from typing import Any

from astroclip_dist.plan.estimate import Plan
from astroclip_dist.plan.memory import Need, engine_name
from astroclip_dist.plan.verdict import COMFORTABLE, fits, fits_well
from astroclip_dist.runs.wording import amount, many, table
from astroclip_dist.train.dry_run import NOT_COUNTED

_STAGES = {"dinov2": "image pre-training", "masked_spectrum": "spectrum pre-training", "clip": "alignment"}
_NOT_KNOWN = "not known: this GPU's rate is not; give --device-flops"


def in_words(plan: Plan) -> str:
    """Sections of lines; the last line is the verdict."""
    sections = (_head(plan), _memory(plan), _length(plan), _time(plan), _storage(plan), _failures(plan), _list(plan))
    return "\n\n".join("\n".join(section) for section in (*sections, [verdict(plan)]))


def verdict(plan: Plan) -> str:
    """One line: whether it fits."""
    share = plan.needs[0].total / plan.device.memory
    if not plan.fits:
        return f"does not fit: {share:.0%} of the memory of a GPU"
    little = "" if fits_well(plan.needs[0], plan.device.memory) else ", which leaves little for what is not counted"
    return f"fits: {share:.0%} of the memory of a GPU{little}"


def mend(plan: Plan) -> str:
    """What would fit, to be added to the command."""
    if not plan.proposals:
        return "Nothing that was tried fits: take GPUs with more memory, or a smaller model."
    changes = [f"{' '.join(map(_quoted, need.overrides))} ({_gb(need.total)} GB)" for need in plan.proposals]
    return f"These fit, each by the same dry run: {'; '.join(changes)}."


def as_json(plan: Plan) -> dict[str, Any]:
    """All numbers in base units: bytes, seconds, FLOP; hours where the name says so."""
    step, saves, duration = plan.step, plan.saves, plan.duration
    return {
        "stage": _STAGES[plan.config.objective.name],
        "engine": engine_name(plan.config),
        "workers": plan.config.workers,
        "nodes": plan.nodes,
        "device": {"name": plan.device.name, "bytes": plan.device.memory, "flops_per_second": plan.device.flops},
        "parameters": dict(zip(("trained", "other"), plan.needs[0].found.parameters, strict=True)),
        "memory": [
            {"engine": engine_name(need.config), "bytes": need.found.kinds, "total_bytes": need.total}
            for need in plan.needs
        ],
        "steps": plan.steps.total,
        "epochs": plan.steps.total / plan.steps.per_epoch,
        "samples": plan.steps.total * plan.steps.global_batch,
        "data": {"samples": plan.size.samples, "sample_bytes": plan.size.sample_bytes, "local": plan.size.is_local},
        "step": {
            "flops": step.flops,
            "compute_s": step.compute,
            "network_s": step.network,
            "data_s": step.data,
            "network_bytes_of_a_node": step.network_bytes,
            "read_bytes": step.data_bytes,
            "limit": step.limit,
        },
        "hours": duration and duration.hours,
        "gpu_hours": duration and duration.hours * plan.config.workers,
        "read_bytes": plan.reads.bytes,
        "checkpoint": {
            "bytes": saves.bytes,
            "count": saves.count,
            "kept": saves.kept,
            "written_bytes": saves.written,
            "left_bytes": saves.left,
            "stall_s": duration and duration.stall,
        },
        "failures": duration and {"expected": duration.failures, "hours_lost_by_each": duration.lost},
        "fits": plan.fits,
        "proposals": [{"overrides": need.overrides, "total_bytes": need.total} for need in plan.proposals],
        "assumptions": [vars(assumption) for assumption in plan.assumptions],
        "notes": [*plan.needs[0].found.notes, NOT_COUNTED],
    }


def _head(plan: Plan) -> list[str]:
    config, (trained, kept) = plan.config, plan.needs[0].found.parameters
    return [
        f"{_STAGES[config.objective.name]} by {engine_name(config)} in {config.engine.precision} on "
        f"{many(config.workers, 'GPU')}, {many(plan.nodes, 'node')}",
        f"{config.batch.global_size:,} samples a step, {config.local_batch:,} a GPU, {config.micro_batch:,} at once; "
        f"{trained:,} parameters trained, {kept:,} not",
    ]


def _memory(plan: Plan) -> list[str]:
    own, memory = plan.needs[0], plan.device.memory
    rows = [[f"memory of a GPU ({_gb(memory)} GB)", "GB", ""]]
    rows += [[f"  {kind}", _gb(size), ""] for kind, size in own.found.kinds.items()]
    rows += [
        [f"  {engine_name(need.config)}{', in all' if need is own else ''}", _gb(need.total), _room(need, memory)]
        for need in plan.needs
    ]
    return [*_figures(rows), *own.found.notes, NOT_COUNTED]


def _room(need: Need, memory: float) -> str:
    if not fits(need, memory):
        return "does not fit"
    return "fits" if fits_well(need, memory) else f"fits, but fills more than {COMFORTABLE:.0%}"


def _length(plan: Plan) -> list[str]:
    steps = plan.steps
    return [
        "length",
        f"  {steps.total:,} steps, {steps.total * steps.global_batch:,} samples: "
        f"{steps.total / steps.per_epoch:.4g} epochs of {steps.per_epoch:,} steps",
    ]


def _time(plan: Plan) -> list[str]:
    step, duration = plan.step, plan.duration
    rows = [["time of a step", "s", ""]]
    rows.append(["  arithmetic", _seconds(step.compute), f"{step.flops / 1e12:,.0f} TFLOP"])
    rows.append(
        [
            "  network",
            _seconds(step.network),
            f"{amount(step.network_bytes)} from each node to the others" if plan.nodes > 1 else "one node",
        ]
    )
    source = "local disk: not counted" if plan.size.is_local else f"{amount(step.data_bytes)} by all nodes"
    rows.append(["  data", _seconds(step.data), source])
    if duration is None or step.seconds is None:
        return [*_figures(rows), f"  hours are {_NOT_KNOWN}"]
    names = {"compute": "arithmetic", "network": "the network between nodes", "data": "the way to object storage"}
    assert step.limit is not None
    rate = plan.config.batch.global_size / step.seconds
    return [
        *_figures(rows),
        f"  the limit is {names[step.limit]}: {rate:,.0f} samples/s, {rate / plan.config.workers:,.0f} a GPU",
        f"  {duration.hours:,.3g} hours, {duration.hours * plan.config.workers:,.4g} GPU-hours",
    ]


def _storage(plan: Plan) -> list[str]:
    saves, size = plan.saves, plan.size
    data = f"{size.samples:,} samples of {size.sample_bytes / 1e3:,.1f} kB, {amount(size.bytes)}"
    if size.is_local:
        read = f"  read: {data}, on this machine's disk"
    else:
        seconds = plan.step.seconds
        rate = f", {amount(plan.step.data_bytes / seconds)}/s" if seconds else ""
        cached = "" if plan.reads.share == 1 else f" ({1 - plan.reads.share:.1%} of what is used comes from the cache)"
        read = f"  read, and leaving the object storage: {amount(plan.reads.bytes)}{rate}{cached}; data: {data}"
    return [
        "storage",
        read,
        f"  checkpoint: {amount(saves.bytes)}, {many(saves.count, 'save')}, {amount(saves.written)} written, "
        f"{amount(saves.left)} there at the end ({saves.kept} checkpoints, weights)",
    ]


def _failures(plan: Plan) -> list[str]:
    duration = plan.duration
    if duration is None:
        return ["saves and failures", f"  {_NOT_KNOWN}"]
    late = ""
    if duration.write > duration.between:
        late = "; it takes longer than what lies between two saves: save more seldom"
    return [
        "saves and failures",
        f"  every {_clock(duration.between)} training stands still for {duration.stall:.2g} s, in all "
        f"{_clock(3600 * duration.saving)}; a save is complete after {_clock(duration.write)}{late}",
        f"  {duration.failures:.2g} failures to be expected, each costs {_clock(3600 * duration.lost)}, in all "
        f"{_clock(3600 * duration.failures * duration.lost)}",
    ]


def _list(plan: Plan) -> list[str]:
    rows = [[f"  {assumption.what}", assumption.value, assumption.source] for assumption in plan.assumptions]
    return [
        "taken as given",
        *table(rows),
        "  between nodes by rings over all ranks; arithmetic, network and data go on at the same time",
        "  not counted: what is computed again to save memory (lower --mfu for it), start-up, queues",
    ]


def _figures(rows: list[list[str]]) -> list[str]:
    width = max(len(row[0]) for row in rows)
    return [f"{name:<{width}}  {figure:>9}  {words}".rstrip() for name, figure, words in rows]


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _seconds(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds:.4f}"


def _clock(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def _quoted(override: str) -> str:
    return f'"{override}"' if " " in override else override
