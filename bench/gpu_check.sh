#!/usr/bin/env bash
# Everything that needs a CUDA GPU, in one command: build for this GPU, measure its ceilings, test, sanitize, measure.
#
#     bench/gpu_check.sh OUT_DIR [--quick]
#
# Needs nvcc, cmake, ninja, and a Python with torch, numpy, pytest, pybind11 and setuptools; no network. Each part has a
# time limit of its own, all of them together stay under 9 minutes (3 with --quick). OUT_DIR receives summary.json, one
# log per part, and the benchmark's JSON. Exits 0 when no part failed; a part that cannot run here says why.
set -uo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
  echo "usage: bench/gpu_check.sh OUT_DIR [--quick]" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
quick=${2:-}
if [ -n "$quick" ] && [ "$quick" != --quick ]; then
  echo "bench/gpu_check.sh: unknown option $quick" >&2
  exit 2
fi
python=${PYTHON:-python3}
parts=$out/parts.tsv
: >"$parts"
failed=0

# part NAME SECONDS COMMAND...: run it under its limit, keep its log, record how it ended.
part() {
  local name=$1 limit=$2 begin rc
  shift 2
  echo "== $name (at most $limit s)"
  begin=$(date +%s)
  timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
  rc=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$rc" "$(($(date +%s) - begin))" "$limit" >>"$parts"
  tail -n 5 "$out/$name.log"
  [ $rc -eq 0 ] || { failed=1; echo "== $name failed with status $rc; the whole log is $out/$name.log"; }
  return $rc
}

skip() {
  echo "== $1 skipped: $2"
  printf '%s\tskipped: %s\t0\t0\n' "$1" "$2" >>"$parts"
}

limits() { if [ -n "$quick" ]; then echo "$2"; else echo "$1"; fi; }

# The working directory must not hide the installed package behind the source tree: hence -P.
if part install "$(limits 110 70)" env SOAE_CUDA=on SOAE_CUDA_ARCH=native "$python" -m pip install \
  --no-build-isolation --no-deps --force-reinstall --no-cache-dir .; then
  part ceilings 15 "$python" -P bench/ceilings.py --output "$out/ceilings.json"
  part doctor 20 "$python" -P -m soae_ext --output "$out/doctor.json"
  part tests "$(limits 100 40)" "$python" -P -m pytest -m cuda tests/cuda -q -rs -p no:cacheprovider
  if ! command -v compute-sanitizer >/dev/null; then
    skip sanitizer "compute-sanitizer is not installed"
  elif [ -n "$quick" ]; then
    skip sanitizer "--quick"
  else
    for tool in memcheck racecheck; do
      part "sanitizer-$tool" 35 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$python" -P bench/gpu_smoke.py
    done
  fi
  part gmres "$(limits 80 30)" "$python" -P bench/bench_gmres.py $quick --gpu-only --output "$out/bench_gmres.json"
  part decisions "$(limits 70 25)" "$python" -P bench/gpu_decisions.py $quick --output "$out/decisions.json"
  part hvp "$(limits 25 10)" "$python" -P bench/bench_hvp.py --quick --output "$out/bench_hvp.json"
  if [ -n "$quick" ]; then
    skip attacks "--quick"
    skip training "--quick"
  else
    part attacks 20 "$python" -P bench/bench_attacks.py --quick --output "$out/bench_attacks.json"
    part training 25 "$python" -P bench/bench_training.py --quick --output "$out/bench_training.json"
  fi
else
  for name in ceilings doctor tests sanitizer gmres decisions hvp attacks training; do
    skip "$name" "the installation failed"
  done
fi

"$python" - "$parts" "$out/summary.json" <<'PY'
import json, sys
parts = []
for line in open(sys.argv[1]):
    name, status, seconds, limit = line.rstrip("\n").split("\t")
    ended = {"0": "passed", "124": "timed out", "137": "timed out"}.get(status, f"failed ({status})")
    parts.append({
        "part": name, "result": status if status.startswith("skipped") else ended,
        "seconds": int(seconds), "limit": int(limit),
    })
json.dump({"schema": 1, "parts": parts}, open(sys.argv[2], "w"), indent=1)
for p in parts:
    print(f"{p['part']:20} {p['result']:40} {p['seconds']:4} s of {p['limit']}")
PY
rm -f "$parts"
exit $failed
