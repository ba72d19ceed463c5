#!/usr/bin/env bash
# Makes the environments of the libraries we compare with:
#   benchmarks/peers.sh DIR [sb3] [rllib] [torchrl] [tianshou] [sf] [cleanrl] [benchmarl] [sbx] [rejax] [fastapi] [d3rlpy]
#   [rayserve] [litserve] [bentoml] [raytune] [synetune] [dask]
set -euo pipefail
peers="sb3 rllib torchrl tianshou sf cleanrl benchmarl sbx rejax fastapi d3rlpy rayserve litserve bentoml raytune synetune dask"
[ $# -ge 1 ] || { echo "usage: benchmarks/peers.sh DIR [peer ...]; peers: $peers" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$1
shift
# shellcheck disable=SC2086 # words
[ $# -gt 0 ] || set -- $peers
ours=$(grep '^torch==' "$root/constraints.txt")
for name in "$@"; do
  torch=$ours
  case $name in
    sb3) packages=("stable-baselines3==2.9.2" "gymnasium[mujoco]" "ale-py==0.12.1" opencv-python-headless) ;;
    rllib) packages=("ray[rllib]==2.60.0" "gymnasium[mujoco]" "ale-py==0.12.1" opencv-python-headless) ;;
    torchrl) torch="torch==2.14.1" packages=("torchrl==0.14.1") ;; # its compiled part needs this torch
    tianshou) packages=("tianshou==2.0.1") ;;
    sf) packages=("sample-factory[atari]==2.1.1" "gymnasium[mujoco]" "numpy<2") ;; # and the games: AutoROM --accept-license
    cleanrl)
      packages=("gym==0.23.1" "numpy<2" cloudpickle pandas matplotlib tensorboard pygame-ce "ale-py==0.12.1")
      packages+=("opencv-python-headless<4.12") ;; # and, below, itself
    sbx) packages=("sbx-rl==0.28.0" "gymnasium[mujoco]") ;;
    rejax) packages=("rejax==0.1.3" "gymnax==0.0.9") ;; # it calls the step function of gymnax before 1.0
    # Newer PettingZoo has no mpe of its own; torchvision is the one that belongs to this torch.
    benchmarl) packages=("benchmarl==1.5.2" "torchrl==0.11.1" "torchvision==0.28.0" "pettingzoo[mpe]==1.24.3") ;;
    d3rlpy) packages=("d3rlpy==2.8.0" "gymnasium[mujoco,box2d]") ;;
    fastapi) packages=("fastapi" "uvicorn==0.54.0" "httptools==0.9.0" "uvloop==0.23.0" "onnxruntime==1.32.0") ;;
    rayserve) packages=("ray[serve]==2.60.0" "onnxruntime==1.32.0") ;;
    litserve) packages=("litserve==0.2.19" "onnxruntime==1.32.0") ;;
    bentoml) packages=("bentoml==1.4.40" "onnxruntime==1.32.0") ;;
    raytune) packages=("ray[tune]==2.60.0" "$root") ;; # and rltrain, which its trials train with
    synetune) packages=("syne-tune==0.16.0" "$root") ;;
    dask) packages=("distributed==2026.8.0" psutil numpy) ;;
    *) echo "peers.sh: no peer $name; there are $peers" >&2; exit 2 ;;
  esac
  echo "making $dir/$name (once; minutes) ..." >&2
  mkdir -p "$dir"
  "${PYTHON:-python3}" -m venv "$dir/$name"
  # torch by itself first, so that nothing below asks for another build of it.
  "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$torch"
  "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
  # It asks for a Python before 3.11 and for packages it does not need here.
  [ "$name" != cleanrl ] || "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --ignore-requires-python "cleanrl==1.2.0" "stable-baselines3==1.8.0"
done
