"""What the measurements of attack strength share: attacks whose results are kept, and their pairing image by image."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, network, write_json
from torch import Tensor

from soae_ext.attacks import Attack
from soae_ext.data import ImageData
from soae_ext.evaluation import Accuracy, Measurement, Runner, paired_difference
from soae_ext.evaluation.document import attack_options, strict
from soae_ext.evaluation.store import digest

# So many images at once; as fast as any on a CPU.
BATCH = 200


class Laboratory:
    """Runs attacks and keeps every result in a folder, so that an interrupted study goes on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runners: dict[str, Runner] = {}
        self.machine = machine()

    def runner(self, key: str) -> Runner:
        if key not in self.runners:
            self.runners[key] = Runner(network(key), torch.device("cpu"), BATCH)
        return self.runners[key]

    def measure(self, key: str, name: str, attack: Attack, data: ImageData) -> Measurement:
        """Run it now, adversarial images and all."""
        return self.runner(key).run(name, name, attack, data)

    def row(self, key: str, name: str, attack: Attack, data: ImageData) -> dict[str, Any]:
        """The numbers of one attack, from the folder if they are there; `robust_bits` has a bit for each image."""
        what = digest(self.runner(key).fingerprint, str(attack_options(attack)), data.fingerprint)
        path = self.folder / f"{what}.json"
        if path.exists():
            return {**json.loads(path.read_text()), "attack": name}
        m = self.measure(key, name, attack, data)
        row = {
            "network": key,
            "attack": name,
            "options": attack_options(attack),
            "robust": m.robust.as_json(),
            "gradients_mean": m.gradients,
            "gradients_max": int(m.gradient_calls.max()),
            "forwards_mean": m.forwards,
            "krylov_mean": m.krylov_mean,
            "fooled_after": fooled_after(m),
            "commit": self.machine["git"],
            "robust_bits": pack(~m.success),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, strict(row))
        print(f"{key} {name}: {m.robust}, {m.gradients:.1f} gradients, {m.seconds:.0f} s", flush=True)
        return row


def fooled_after(m: Measurement) -> list[int] | None:
    """How many images SOAE fools after 0, 1, 2, ... second-order steps; `None` for other attacks."""
    if m.krylov_dims is None:
        return None
    made = (m.krylov_dims > 0).sum(1)[m.success]
    return torch.bincount(made, minlength=m.krylov_dims.shape[1] + 1).tolist()


def pack(bits: Tensor) -> str:
    """A bit for each image as hexadecimal digits, the first image in the highest bit."""
    return f"{int(''.join(str(int(bit)) for bit in bits), 2):0{-(-len(bits) // 4)}x}"


def unpack(text: str, count: int) -> Tensor:
    """Inverse of :func:`pack`."""
    return torch.tensor([digit == "1" for digit in f"{int(text, 16):0{count}b}"])


def pair(ours: dict[str, Any], other: dict[str, Any], count: int) -> dict[str, Any]:
    """Share fooled by `ours` minus share fooled by `other`, on the same images; positive: `ours` is stronger."""
    fooled = [~unpack(row["robust_bits"], count) for row in (ours, other)]
    difference, low, high = paired_difference(*fooled)
    verdict = "stronger" if low > 0 else "weaker" if high < 0 else "no difference shown"
    return {"than": other["attack"], "difference": difference, "interval_95": [low, high], "verdict": verdict}


def union(rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """Accuracy on the images that none of the attacks fools."""
    robust = torch.stack([unpack(row["robust_bits"], count) for row in rows]).all(0)
    return Accuracy(int(robust.sum()), count).as_json()


def points(pairing: dict[str, Any]) -> str:
    """A paired difference in percentage points, as Markdown has it."""
    low, high = pairing["interval_95"]
    mark = {"stronger": " ▲", "weaker": " ▼"}.get(pairing["verdict"], "")
    return f"{100 * pairing['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){mark}"


def percent(robust: dict[str, Any]) -> str:
    """Robust accuracy with its interval."""
    low, high = robust["interval_95"]
    return f"{100 * robust['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def parser(text: str | None, name: str) -> argparse.ArgumentParser:
    """Options that every script has."""
    made = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    made.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="the JSON file")
    made.add_argument("--keep", type=Path, default=Path("build/claims"), help="folder for the results of each attack")
    made.add_argument("--threads", type=int, default=1)
    return made


def start(arguments: argparse.Namespace) -> Laboratory:
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    return Laboratory(arguments.keep)


def save(
    path: Path, laboratory: Laboratory, claim: str, content: dict[str, Any], earlier: dict[str, Any] | None = None
) -> None:
    """Write the numbers with the commands, commits and machine that they came from; `earlier` is what they add to."""
    words = sys.argv[1:]
    if "--keep" in words:  # where results lie meanwhile is nobody's business
        del words[words.index("--keep") : words.index("--keep") + 2]
    command = " ".join(["python", f"bench/claims/{Path(sys.argv[0]).name}", *map(shlex.quote, words)])
    before = earlier["command"] if earlier else []
    commands = [*([before] if isinstance(before, str) else before), command]
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"claim": claim, "command": commands, "machine": laboratory.machine, **content}
    write_json(path, strict(record))
    print(f"wrote {path}")
