#!/bin/bash
# The paper's settings in full on one node of a SLURM cluster. The job continues itself until every cell is measured:
#
#     sbatch examples/reproduce_slurm.sh
#
# RUN_DIR, DATA and TABLES say where to and of what; MINUTES must leave a batch of AutoAttack time before the limit.
# Try the same line at small size first: OPTIONS="--scale 0.001 --device cpu" PROCESSES=2 bash examples/reproduce_slurm.sh
#SBATCH --job-name=soae-reproduce
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
RUN_DIR=${RUN_DIR:-runs/paper}
DATA=${DATA:-data}
TABLES=${TABLES:-all}
MINUTES=${MINUTES:-1380}
PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
BUDGET=${BUDGET:-paper}
OPTIONS=${OPTIONS:-}

# Several words in TABLES and OPTIONS are several arguments.
# shellcheck disable=SC2086
torchrun --standalone --nproc-per-node="$PROCESSES" -m soae_ext.cli -- reproduce \
    --table $TABLES --budget "$BUDGET" --run-dir "$RUN_DIR" --data "$DATA" --minutes "$MINUTES" \
    --output "$RUN_DIR.json" $OPTIONS
status=$?

# "left" lists the cells that are not measured yet. A failed command is not tried again.
left=$(python -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["left"]))' "$RUN_DIR.json")
if [ "$status" -eq 0 ] && [ "${left:-0}" -gt 0 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
