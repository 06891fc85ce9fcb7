#!/usr/bin/env bash
# Makes a virtual environment with the real lmms-eval, apart from Aurora's: its dependencies do not fit beside Hydra.
# tools/check_lmms_scores.py compares Aurora's `lmms_compat` scorers with it. Usage: tools/build_lmms_env.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: tools/build_lmms_env.sh FOLDER}
python=${PYTHON:-python3}

"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check)
# torch first, and the same afterwards: nothing may bring another build of it
"${pip[@]}" install --quiet torch==2.13.0
echo "torch==2.13.0" > "$folder/constraints.txt"
"${pip[@]}" install --quiet --constraint "$folder/constraints.txt" lmms-eval==0.7.3
# built for another torch, its import fails; lmms-eval goes without it
"${pip[@]}" uninstall --quiet --yes torchvision
"$folder/bin/python" -c 'from importlib.metadata import version; print("lmms-eval", version("lmms-eval"), "in", "'"$folder"'")'
