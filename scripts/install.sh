#!/usr/bin/env bash
# Set up one of Relief's two environments (docs/decisions/0001): called by `make install`.
#   install.sh train   PYTHON VENV TORCH_VERSION
#   install.sh blender PYTHON VENV
set -euo pipefail
which=$1 python=$2 venv=$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$here"

if ! command -v "$python" >/dev/null; then
  echo "error: $python is not installed: install Python 3.11 (Debian 12: apt-get install python3.11 python3.11-venv), or give make install PYTHON=/path/to/python3.11" >&2
  exit 1
fi
if [ "$which" = blender ] && ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  # Training runs on 3.11 and 3.12; Blender's wheel is for 3.11 alone.
  if command -v python3.11 >/dev/null; then python=python3.11; else
    echo "error: Blender 4.5 needs Python 3.11 exactly, and $python is another: install python3.11 beside it" >&2
    exit 1
  fi
fi
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
  echo "error: $python cannot make virtual environments: apt-get install python3.11-venv" >&2
  exit 1
fi
echo "installing $which packages into $venv (minutes, the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
"${pip[@]}" "pip>=24" "setuptools>=77"
if [ "$which" = train ]; then
  # torch first and alone, so that pip takes the build that its configuration prefers: a plain
  # install takes the CUDA build on Linux; for the CPU build set PIP_INDEX_URL as pytorch.org says.
  "${pip[@]}" "torch==$4"
  "${pip[@]}" -c requirements/train.txt -e ".[dev]"
  "$venv/bin/python" -c 'import lightning, diffusers, embreex, xatlas, igl'
else
  "${pip[@]}" -r requirements/blender.txt
  if ! message=$("$venv/bin/python" -c 'import bpy, cv2, OpenEXR, embreex' 2>&1); then
    packages="libx11-6 libxrender1 libxxf86vm1 libxfixes3 libxi6 libxkbcommon0 libsm6 libgl1 libegl1"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "Blender needs system libraries: installing $packages"
      apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages >/dev/null
      "$venv/bin/python" -c 'import bpy, cv2, OpenEXR, embreex'
    else
      echo "$message" >&2
      echo "error: Blender cannot start: sudo apt-get install $packages; then run make install again" >&2
      exit 1
    fi
  fi
fi
touch "$venv/.installed"
