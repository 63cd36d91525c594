#!/usr/bin/env bash
# The GPU day. On the device machine, from the repository's root: bash .gpu-day/day.sh measure | train
# Every stage has its own limit, adds to $OUT/results.jsonl and $OUT/log.txt at once, and never stops the next one.
set -u
what=${1:?measure or train}
here=$(cd "$(dirname "$0")" && pwd)
root=$PWD
export OUT=${OUT:-$root/gpu-day-out}
export DAY_DEVICE=${DAY_DEVICE:-cuda} DAY_QUICK=${DAY_QUICK:-0}
deadline=${DAY_DEADLINE:-$([ "$what" = measure ] && echo 390 || echo 270)} # seconds of this script, all stages together
work=${DAY_WORK:-$(mktemp -d)} # where runs, stores and caches go
site=${DAY_SITE:-$work/site}
python=${DAY_PYTHON:-python3}
mkdir -p "$OUT" "$work"
export PYTHONPATH=$site:$root:$here PYTHONUNBUFFERED=1 NO_COLOR=1 COLUMNS=160
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
log=$OUT/log.txt
data=$here/data
quick=$([ "$DAY_QUICK" = 1 ] && echo yes || true)
pick() { [ -n "$quick" ] && echo "$1" || echo "$2"; } # the tiny setting, the real one

stage() { # NAME SECONDS COMMAND...: with a limit, cut to what is left of the script's time
  local name=$1 limit=$(($2 * ${DAY_SLOW:-1})) code begin=$SECONDS left=$((deadline - SECONDS - 3)) # DAY_SLOW: of a rehearsal
  shift 2
  ((limit > left)) && limit=$left
  if ((limit < 5)); then
    printf '{"stage": "stage", "name": "%s", "skipped": "no time left"}\n' "$name" >>"$OUT/results.jsonl"
    return 1
  fi
  printf '\n=== %s: at %d s, limit %d s\n' "$name" "$SECONDS" "$limit" | tee -a "$log"
  timeout -k 15 "$limit" "$@" >>"$log" 2>&1
  code=$?
  printf '{"stage": "stage", "name": "%s", "exit": %d, "seconds": %d, "limit": %d}\n' \
    "$name" "$code" "$((SECONDS - begin))" "$limit" >>"$OUT/results.jsonl"
  return $code
}

py() { "$python" "$here/$1.py" "${@:2}"; }
run() { local name=$1 limit=$2; shift 2; stage "$name" "$limit" "$python" "$here/$1.py" "${@:2}"; }
brics() { local name=$1 limit=$2; shift 2; stage "$name" "$limit" "$python" -m brics_cli "$@"; }

pytest() { # NAME SECONDS ARGUMENTS...
  local name=$1 limit=$2
  shift 2
  local timeouts=(--timeout 75)
  "$python" -c 'import pytest_timeout' 2>/dev/null || timeouts=()
  stage "$name" "$limit" "$python" -m pytest -m gpu tests/gpu -q -rfE --tb=short -p no:cacheprovider "${timeouts[@]}" \
    --junitxml "$work/$name.xml" -n "${DAY_TEST_PROCESSES:-10}" --dist worksteal "$@"
  py tests_result "$name" "$work/$name.xml" >>"$log" 2>&1
}
with_compile="tests/gpu/test_training.py::test_bf16_with_a_discriminator_learns[true]"

install() { # the wheels that the machine's image has not
  compgen -G "$here/whl/*.whl" >/dev/null || return 0
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$here"/whl/*.whl
}

preflight() { # nothing could run: better to end at once and keep the GPU's time for another try
  "$python" -c "import torch, brics_cli.cli.app, brics_cli.autoencoder.build, sys; sys.exit(torch.device('$DAY_DEVICE').type == 'cuda' and not torch.cuda.is_available())" >>"$log" 2>&1 && return
  echo "PREFLIGHT FAILED: brics cannot be imported, or there is no CUDA; the end of the log says which"
  tail -20 "$log"
  exit 1
}

measure() {
  stage install 40 bash -c "$(declare -f install); here='$here' site='$site' python='$python'; install"
  preflight
  run env 60 env
  # Beside the tests, which measure nothing: the compiler's caches are filled for a later stage.
  if [ -z "$quick" ]; then
    timeout -k 5 150 "$python" "$here/train.py" brics-256:compile:warm >"$work/warm.log" 2>&1 &
    warm=$!
  fi
  pytest tests 90 -k "not compile" --deselect "$with_compile"
  if [ -z "$quick" ]; then
    for _ in $(seq 20); do kill -0 "$warm" 2>/dev/null || break; sleep 1; done # at most 20 s more
    kill "$warm" 2>/dev/null
    tail -5 "$work/warm.log" >>"$log"
  fi
  run retrieval 60 retrieval
  run train 110 train "$main_recipe:profile" "$paper_recipe:profile" "$main_recipe:clnorm" "$main_recipe:placenorm" "$ae_recipe@64"
  run network 60 network "$main_recipe" "$dit_recipe"
  run bench-encode 50 bench_cli bench-encode bench encode --recipe "$main_recipe" --device "$DAY_DEVICE" \
    --n "$(pick 100 8000)" --repeats 2
  run bench-sample 60 bench_cli --dtypes bench-sample bench sample --recipe "$dit_recipe" --ae-recipe "$main_recipe" \
    --sampler dpmpp-2m --steps "$(pick 2 32)" --batch-size "$(pick 2 64)" --budget 4 --repeats 2 --device "$DAY_DEVICE"
  run train-compiled 60 train "$main_recipe:compile"
  run nccl 15 distributed_smoke nccl
  run two-processes 45 distributed_smoke pair "$data/val"
  run train-paper-compiled 110 train "$paper_recipe:compile"
}

train() {
  # 90 s are for everything but the two trainings (wheels, two short runs, codes, samples, scores).
  local seconds=$((deadline - 90)) steps batch=64 dit_batch=256 probe=150
  [ -n "$quick" ] && batch=2 dit_batch=4 probe=2 seconds=20
  local ae_s=$((seconds * 6 / 10)) dit_s=$((seconds * 4 / 10))
  local small=(--set denoiser.dim=256 --set denoiser.depth=8 --set denoiser.num_heads=4)
  [ -n "$quick" ] && small=(--set denoiser.dim=32 --set denoiser.depth=1 --set denoiser.num_heads=2)
  local ae=(train-ae "$data/train" --val "$data/val" --recipe "${ae_recipe}" --set training.batch_size=$batch
    --set optimiser.warmup_steps=300 --device "$DAY_DEVICE")
  local dit=(train-diffusion "$work/codes.h5" --recipe brics-dit-s --device "$DAY_DEVICE" "${small[@]}"
    --set training.batch_size=$dit_batch --set 'training.ema_widths=[]' --set training.ema_half_life_kimg=100
    --set optimiser.warmup_steps=300 --set training.snapshot_every=1000000 --set training.log_every=50)
  stage install 40 bash -c "$(declare -f install); here='$here' site='$site' python='$python'; install"
  preflight

  brics ae-probe 40 "${ae[@]}" --steps $probe --set training.log_every=$((probe / 2)) --out "$work/ae-probe"
  steps=$(py steps "$work/ae-probe/metrics.jsonl" "$ae_s" $batch $((probe * 2)))
  [ -n "$quick" ] && steps=4
  # Beside the training, which is no benchmark: the tests that compile.
  if [ -z "$quick" ]; then
    (export TORCHINDUCTOR_COMPILE_THREADS=4 DAY_TEST_PROCESSES=4
      pytest tests-compile 140 -k "compile or (learns and true)" >>"$work/tests.log" 2>&1) &
    tests=$!
  fi
  brics ae-train $((ae_s + 20)) "${ae[@]}" --steps "$steps" --set training.val_every=2000 \
    --set training.log_every=100 --out "$work/ae"
  py bring_home "$work/ae" ae >>"$log" 2>&1

  run encode 40 bench_cli encode encode-dataset "$data/train" --ae "$work/ae" --flips --out "$work/codes.h5" --device "$DAY_DEVICE"
  run encode-val 25 bench_cli encode encode-dataset "$data/val" --ae "$work/ae" --out "$work/val.h5" --device "$DAY_DEVICE"
  brics dit-probe 30 "${dit[@]}" --steps $probe --set training.fd_samples=0 --out "$work/dit-probe"
  steps=$(py steps "$work/dit-probe/metrics.jsonl" "$dit_s" $dit_batch $((probe * 2)))
  [ -n "$quick" ] && steps=4
  brics dit-train $((dit_s + 20)) "${dit[@]}" --steps "$steps" ${quick:+--set training.fd_samples=4} --out "$work/dit"
  py bring_home "$work/dit" dit --half >>"$log" 2>&1

  run sample 45 bench_cli sample sample --model "$work/dit" --n "$(pick 8 2000)" --out "$work/samples" \
    --device "$DAY_DEVICE" --batch-size "$(pick 4 250)"
  cp "$work/samples/images/sheet.png" "$OUT/sheet.png" 2>>"$log"
  run eval-fd-random 30 bench_cli eval eval --metric fd-random --limit "$(pick 8 2000)" \
    --fake "$work/samples" --real "$data/train" --device "$DAY_DEVICE"
  run eval-reconstruction 30 bench_cli eval eval --metric psnr --metric ssim --fake "$work/val.h5" --real "$data/val" --device "$DAY_DEVICE"
  [ -z "$quick" ] && wait "$tests" 2>/dev/null
  tail -30 "$work/tests.log" >>"$log" 2>/dev/null
}

# Only with --device cpu: the same commands with models that a CPU can take.
main_recipe=brics-256 paper_recipe=brics-paper-church256-64x64x4 dit_recipe=brics-dit-s ae_recipe=brics-64
if [ -n "$quick" ]; then
  main_recipe=tiny ae_recipe=tiny dit_recipe=tiny
  paper_recipe=tiny
fi
case $what in
  measure) measure ;;
  train) train ;;
esac
py summary | tee -a "$log" | tail -c 11000
ls -la "$OUT"
