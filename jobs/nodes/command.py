"""Probes the nodes of a cluster, and reports what is wrong with them."""

from blip3o.config.pipeline import TrainingPipeline
from blip3o.errors import ConfigError
from blip3o.train.preflight.memory import count_parameters
from blip3o.train.preflight.start import start_memory
from jobs.nodes.judge import judge
from jobs.nodes.options import ProbeOptions
from jobs.nodes.report import as_json, print_report, write_json
from jobs.nodes.survey import survey


def probe_nodes(pipeline: TrainingPipeline, options: ProbeOptions) -> None:
    """Probes all nodes and prints what they are. Raises `ConfigError` if a finding is a blocker."""
    memory = max(start_memory(recipe, count_parameters(recipe)).first for recipe in pipeline.stages)
    nodes = survey(pipeline.stages[0].run.storage, options.patience)
    findings = judge(nodes, memory=memory, patience=options.patience)
    if options.json:
        write_json(options.json, as_json(nodes, findings))
    if options.json != "-":
        print_report(nodes, findings)
    blockers = [finding for finding in findings if finding.level == "blocker"]
    if blockers:
        first = blockers[0]
        found = f"{len(blockers)} blocker(s) on {len(nodes)} node(s)"
        raise ConfigError(f"preflight: {found}; first: {first.node}: {first.what}: {first.fix}")
