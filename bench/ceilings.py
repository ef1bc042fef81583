"""What this machine could do at best: memory bandwidth and, on a GPU, what a launch costs.

python bench/ceilings.py [--threads N] [--output ceilings.json]
"""

from __future__ import annotations

import measure
import torch


def main() -> None:
    options = measure.parser(__doc__).parse_args()
    machine = measure.start(options)
    ceilings = {"cpu": measure.bandwidth(torch.device("cpu"))}
    if torch.cuda.is_available():
        ceilings["cuda"] = measure.bandwidth(torch.device("cuda")) | measure.launch_costs()
    for device, values in ceilings.items():
        print(f"{device}: " + ", ".join(f"{name} {value:.1f}" for name, value in values.items()))
    if options.output is not None:
        measure.write_json(options.output, {"machine": machine, "ceilings": ceilings})


if __name__ == "__main__":
    main()
