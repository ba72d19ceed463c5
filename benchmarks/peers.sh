#!/usr/bin/env bash
# Makes the environments of the libraries we compare with:
#   benchmarks/peers.sh DIR [sb3] [rllib] [torchrl] [tianshou] [sf]
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: benchmarks/peers.sh DIR [sb3] [rllib] [torchrl] [tianshou] [sf]" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=$1
shift
[ $# -gt 0 ] || set -- sb3 rllib torchrl tianshou sf
ours=$(grep '^torch==' "$root/constraints.txt")
for name in "$@"; do
  torch=$ours
  case $name in
    sb3) packages=("stable-baselines3==2.9.2" "gymnasium[mujoco]" "ale-py==0.12.1" opencv-python-headless) ;;
    rllib) packages=("ray[rllib]==2.60.0" "gymnasium[mujoco]" "ale-py==0.12.1" opencv-python-headless) ;;
    torchrl) torch="torch==2.14.1" packages=("torchrl==0.14.1") ;; # its compiled part needs this torch
    tianshou) packages=("tianshou==2.0.1") ;;
    sf) packages=("sample-factory[atari]==2.1.1" "gymnasium[mujoco]" "numpy<2") ;; # and the games: AutoROM --accept-license
    *) echo "peers.sh: no peer $name; there are sb3, rllib, torchrl, tianshou and sf" >&2; exit 2 ;;
  esac
  echo "making $dir/$name (once; minutes) ..." >&2
  mkdir -p "$dir"
  "${PYTHON:-python3}" -m venv "$dir/$name"
  # torch by itself first, so that nothing below asks for another build of it.
  "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$torch"
  "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
done
