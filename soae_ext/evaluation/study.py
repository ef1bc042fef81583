"""A whole evaluation: clean accuracy, attacks, worst case, curves, analyses, sanity checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..attacks import Attack
from ..attacks.geometry import Norm
from ..data import ImageData
from .curves import Curve, run_curves
from .document import attack_entries, data_entry, example_entries
from .edges import EdgeStatistics, edge_analysis
from .features import FeatureAnalysis, feature_analysis
from .measure import Clean, Measurement, WorstCase, worst_case
from .notes import attack_notes
from .provenance import git_commits, hardware, versions
from .runner import Runner
from .sanity import Check, SanityContext, sanity_section

__all__ = ["Study", "make_study"]


@dataclass(eq=False)
class Study:
    """What an evaluation found; the fields are the parts of the document."""

    clean: Clean
    measurements: list[Measurement]
    worst: WorstCase
    curves: list[Curve]
    edges: list[EdgeStatistics]
    features: FeatureAnalysis | None
    sanity: list[Check]
    hardware: dict[str, object]
    notes: list[str] = field(default_factory=list)

    def as_json(self, attacks: Mapping[str, Attack], data: ImageData) -> dict[str, object]:
        """The document but for the command and the network."""
        return {
            "data": data_entry(data),
            "versions": versions(),
            "git": git_commits(),
            "hardware": self.hardware,
            "clean": self.clean.as_json(),
            "attacks": attack_entries(attacks, self.measurements),
            "worst_case": self.worst.as_json(),
            "curves": [curve.as_json() for curve in self.curves],
            "edges": [each.as_json() for each in self.edges],
            "features": self.features.as_json() if self.features else None,
            "sanity": [check.as_json() for check in self.sanity],
            "notes": self.notes,
            "examples": example_entries(data, self.clean, self.measurements, self.worst),
        }


def make_study(
    runner: Runner,
    data: ImageData,
    attacks: Mapping[str, Attack],
    *,
    curves: tuple[Sequence[str], str, ImageData],
    others: Mapping[str, nn.Module],
    network: str,
    eps: float,
    norm: Norm,
    seed: int,
    referee: bool,
    sanity: bool = True,
    layer: str | None = None,
) -> Study:
    """Run everything; every process of the runner's shard must call it.

    Args:
        runner: attacks the network.
        data: the images.
        attacks: by the name that they are reported under.
        curves: the keys of the curves, the preset and the images for them.
        others: further networks for the curve against the difference step, by name.
        network: name of the network.
        eps, norm, seed: what the attacks share.
        referee: run AutoAttack on all images.
        sanity: run the sanity checks; without them the section is empty and the notes say so.
        layer: name of the module whose features are analysed; `None` chooses one.

    Raises:
        ValueError, TypeError: an attack cannot be run on this network.
        OSError: a result cannot be written.
        FailedElsewhere: another process failed.
    """
    clean = runner.clean(data)
    measurements = [runner.run(f"attacks/{name}", name, attack, data) for name, attack in attacks.items()]
    keys, preset, shown = curves
    lines = run_curves(
        keys,
        runner,
        shown,
        attacks,
        others={name: runner.on(model) for name, model in others.items()},
        network=network,
        preset=preset,
    )
    context = SanityContext(
        model=runner.model,
        data=data,
        attacks=attacks,
        measurements=measurements,
        eps=eps,
        norm=norm,
        seed=seed,
        device=runner.device,
        referee=referee,
        batch_size=runner.batch_size,
        run=runner.run,
        network=runner.network,
    )
    checks = sanity_section(context) if sanity else []
    notes = attack_notes(attacks)
    if not sanity:
        notes.append("The sanity checks were not run.")
    moved = {m.name: m.x_adv for m in measurements}
    features = None
    edges: list[EdgeStatistics] = []
    if runner.shard.leader:
        edges = edge_analysis(data.images, moved, norm, seed)
        try:
            features = feature_analysis(
                runner.model,
                data.images,
                moved,
                {m.name: m.success for m in measurements},
                layer=layer,
                device=runner.device,
                batch_size=runner.batch_size,
            )
        except ValueError as error:
            notes.append(f"The features were not analysed: {str(error).partition(': ')[2] or error}.")
    return Study(
        clean=clean,
        measurements=measurements,
        worst=worst_case(clean, measurements),
        curves=lines,
        edges=edges,
        features=features,
        sanity=checks,
        hardware=hardware(runner.device),
        notes=notes,
    )
