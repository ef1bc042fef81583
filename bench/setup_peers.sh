#!/usr/bin/env bash
# Install the libraries that bench/compare.py compares with, each into a virtual environment of its own.
#
#     bench/setup_peers.sh [DIR] [PEER...]        DIR defaults to build/peers, PEER to all of them
#
# What cannot be installed does not stop the others: its reason goes to DIR/PEER.failed and into the table. With an NVIDIA
# GPU JAX gets CUDA, and CuPy is installed. PYTHON chooses the interpreter (python3). Exit status: 0 all installed or
# not for this machine, 1 something failed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
peers=${1:-$root/build/peers}
shift || true
[ $# -gt 0 ] || set -- scipy jax warp cola xitorch cupy
gpu=$(command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | head -1)
torch="torch==2.13.0 -c $root/constraints.txt"
mkdir -p "$peers" && peers=$(cd "$peers" && pwd) || exit 1

packages() {
  case $1 in
  scipy) echo "scipy numpy" ;;
  jax) [ -n "$gpu" ] && echo "jax[cuda12] numpy" || echo "jax numpy" ;;
  warp) echo "warp-lang numpy" ;;
  cola) echo "cola-ml numpy $torch" ;;
  xitorch) echo "xitorch numpy $torch" ;;
  cupy) echo "cupy-cuda12x numpy" ;;
  esac
}

module() {
  case $1 in
  jax) echo jax.scipy.sparse.linalg ;;
  warp) echo warp.optim.linear ;;
  cola) echo cola ;;
  xitorch) echo xitorch.linalg ;;
  cupy) echo cupyx.scipy.sparse.linalg ;;
  *) echo scipy.sparse.linalg ;;
  esac
}

failed=0
for peer in "$@"; do
  wanted=$(packages "$peer")
  if [ -z "$wanted" ]; then
    echo "$peer: unknown; known are scipy jax warp cola xitorch cupy" >&2
    exit 2
  fi
  rm -f "$peers/$peer.failed"
  if [ "$peer" = cupy ] && [ -z "$gpu" ]; then
    echo "this machine has no NVIDIA GPU" >"$peers/$peer.failed"
    echo "$peer: skipped: no NVIDIA GPU"
    continue
  fi
  log=$peers/$peer.log
  # shellcheck disable=SC2086  # the package list is split into words on purpose
  if { "${PYTHON:-python3}" -m venv "$peers/$peer" && "$peers/$peer/bin/python" -m pip install $wanted &&
    (cd "$peers" && "$peers/$peer/bin/python" -c "import $(module "$peer")"); } >"$log" 2>&1; then
    echo "$peer: $("$peers/$peer/bin/python" -m pip list --format=freeze 2>/dev/null |
      grep -iE '^(scipy|jax|warp-lang|cola-ml|xitorch|cupy[a-z0-9-]*|torch)==' | tr '\n' ' ')"
  else
    reason=$(grep -iE 'error' "$log" | tail -1)
    echo "${reason:-see $log}" >"$peers/$peer.failed"
    rm -rf "${peers:?}/$peer" # compare.py takes the presence of the interpreter for an installation
    echo "$peer: FAILED: ${reason:-see $log}"
    failed=1
  fi
done
exit $failed
