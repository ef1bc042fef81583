"""FGSM and PGD beside the same attacks of other libraries: the same network, images, radius, step size and steps.

    pip install --no-deps --target build/peers/attacks torchattacks adv-lib
    python bench/bench_attacks.py [--quick] [--threads N] [--peers build/peers/attacks] [--output run.json]

foolbox is imported from the environment. A library that is missing is named and left out. No attack stops early: all
libraries make every step on every image, and this project's default, which leaves out images that are fooled, has a row
of its own. Besides the adversarial images this project's result says which were classified right at first, keeps the
best iterate, and evaluates what it returns; the others return the last iterate, unseen. So each of them is measured
twice: alone, and with the forward pass that tells its user who is fooled. `fooled` is what we count on the images that
come back. `ratio` is the library's time over this project's, taken in turns, with the 10-90 % range.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn

from soae_ext.attacks import FGSM, PGD
from soae_ext.data import load_digits
from soae_ext.models import digits_network, load_checkpoint, resnet18

OURS = "soae_ext"
VERDICTS = ", and who is fooled"
ROOT = Path(__file__).resolve().parents[1]
Attacked = Callable[[], Tensor]


def cases(quick: bool, device: torch.device) -> list[tuple[str, nn.Module, Tensor, Tensor, float, int]]:
    """Name, network, images, labels, radius, steps of PGD."""
    data = load_digits().first(100 if quick else 250)
    found = [("small CNN, 28 x 28", digits_network(), data.images, data.labels, 0.3, 40)]
    torch.manual_seed(0)
    x = torch.rand(16 if quick or device.type == "cpu" else 256, 3, 32, 32)
    narrow = ROOT / "bench" / "networks" / "cifar10_pgd.safetensors"
    model = resnet18() if device.type == "cuda" else load_checkpoint(narrow)
    model.eval()
    with torch.no_grad():
        y = model(x).argmax(1)
    name = "ResNet-18" if device.type == "cuda" else "ResNet-18 of width 16"
    found.append((f"{name}, 32 x 32", model, x, y, 8 / 255, 10))
    return [
        (name, m.to(device).requires_grad_(False), x.to(device), y.to(device), e, s) for name, m, x, y, e, s in found
    ]


def libraries(peers: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The modules that there are, and why others are not."""
    if peers is not None:
        sys.path.append(str(peers))
    found, missing = {}, {}
    for name in ("torchattacks", "foolbox", "adv_lib.attacks"):
        try:
            if name == "adv_lib.attacks":
                _stand_in()
            found[name.partition(".")[0]] = importlib.import_module(name)
        except ImportError as error:
            missing[name] = str(error)
            print(f"{name} is not measured: {error}")
    return found, missing


def _stand_in() -> None:
    """adv-lib imports torchvision and visdom for a distance and a log that are not used here; neither is needed."""
    for name, attribute in (("torchvision", "models"), ("visdom", "Visdom")):
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError):
            sys.modules[name] = types.ModuleType(name)
            setattr(sys.modules[name], attribute, None)


def fgsm(found: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor, eps: float) -> dict[str, Attacked]:
    ours = FGSM(eps, early_stop=False)
    made: dict[str, Attacked] = {OURS: lambda: ours(model, x, y).x_adv}
    if "torchattacks" in found:
        theirs = found["torchattacks"].FGSM(model, eps=eps)
        made["torchattacks"] = lambda: theirs(x, y)
    if "foolbox" in found:
        made["foolbox"] = _foolbox(found["foolbox"], "LinfFastGradientAttack", {}, model, x, y, eps)
    return made


def pgd(found: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> dict[str, Attacked]:
    size = 2.5 / steps * eps
    ours = PGD(eps, steps=steps, step_size=size, early_stop=False)
    default = PGD(eps, steps=steps, step_size=size)
    made: dict[str, Attacked] = {
        OURS: lambda: ours(model, x, y).x_adv,
        f"{OURS}, fooled images left out": lambda: default(model, x, y).x_adv,
    }
    if "torchattacks" in found:
        theirs = found["torchattacks"].PGD(model, eps=eps, alpha=size, steps=steps, random_start=True)
        made["torchattacks"] = lambda: theirs(x, y)
    if "foolbox" in found:
        options = {"abs_stepsize": size, "steps": steps, "random_start": True}
        made["foolbox"] = _foolbox(found["foolbox"], "LinfProjectedGradientDescentAttack", options, model, x, y, eps)
    if "adv_lib" in found:
        run = found["adv_lib"].pgd_linf
        made["adv_lib"] = lambda: run(model, x, y, eps, steps=steps, absolute_step_size=size)
    return made


def with_verdicts(made: dict[str, Attacked], model: nn.Module, y: Tensor) -> dict[str, Attacked]:
    """The attacks, and those of other libraries once more with the forward pass that says who is fooled."""

    def verified(attack: Attacked) -> Attacked:
        def run() -> Tensor:
            adversarial = attack()
            with torch.no_grad():
                (model(adversarial).argmax(1) != y).sum().item()
            return adversarial

        return run

    theirs = {name: attack for name, attack in made.items() if not name.startswith(OURS)}
    return made | {f"{name}{VERDICTS}": verified(attack) for name, attack in theirs.items()}


def _foolbox(
    library: Any, name: str, options: dict[str, Any], model: nn.Module, x: Tensor, y: Tensor, eps: float
) -> Attacked:
    attack = getattr(library.attacks, name)(**options)
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
    criterion = library.criteria.Misclassification(y)
    return lambda: attack(wrapped, x, criterion, epsilons=eps)[1]


def compare(
    case: str, attack: str, made: dict[str, Attacked], judge: Callable[[Tensor], float], quick: bool, cuda: bool
) -> list[Any]:
    times = measure.interleaved(made, cuda=cuda, repeats=5 if quick else 15, least_seconds=0.1 if quick else 0.3)
    rows = []
    for name, seconds in times.items():
        row = {
            "case": case,
            "attack": attack,
            "library": name,
            "ms": {key: 1e3 * value for key, value in measure.spread(seconds).items()},
            "ratio": measure.ratio(seconds, times[OURS]),
            "fooled": judge(made[name]()),
        }
        rows.append(row)
        r = row["ratio"]
        print(
            f"{case:30}{attack:8}{name:34}{row['ms']['median']:9.1f} ms  {r['median']:5.2f} "
            f"({r['p10']:.2f}-{r['p90']:.2f})  fooled {row['fooled']:.1%}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--peers", type=Path, help="folder that torchattacks and adv-lib were installed into")
    options = parser.parse_args()
    machine = measure.start(options)
    found, missing = libraries(options.peers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for case, model, x, y, eps, steps in cases(options.quick, device):

        def judge(adversarial: Tensor, model: nn.Module = model, y: Tensor = y) -> float:
            with torch.no_grad():
                return (model(adversarial).argmax(1) != y).float().mean().item()

        cuda = device.type == "cuda"
        rows += compare(
            case, "FGSM", with_verdicts(fgsm(found, model, x, y, eps), model, y), judge, options.quick, cuda
        )
        made = with_verdicts(pgd(found, model, x, y, eps, steps), model, y)
        rows += compare(case, f"PGD-{steps}", made, judge, options.quick, cuda)
    if options.output is not None:
        command = measure.command("bench/bench_attacks.py")
        versions = {name: str(getattr(sys.modules[name], "__version__", "unknown")) for name in found}
        measure.write_json(
            options.output,
            {"command": command, "machine": machine, "versions": versions, "not_measured": missing, "rows": rows},
        )


if __name__ == "__main__":
    main()
