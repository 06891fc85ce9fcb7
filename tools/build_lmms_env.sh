#!/usr/bin/env bash
# Makes a virtual environment with the real lmms-eval and Aurora, apart from Aurora's own: their dependencies do not fit
# beside each other in one resolution. Usage: tools/build_lmms_env.sh FOLDER
# tools/try_lmms_eval.py runs Aurora's model there; tools/check_lmms_scores.py compares the `lmms_compat` scorers with it.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: tools/build_lmms_env.sh FOLDER}
python=${PYTHON:-python3}

"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check)
"${pip[@]}" install --quiet --upgrade pip  # an old one takes minutes to find versions that fit
# torch first, and the same afterwards: nothing may bring another build of it
"${pip[@]}" install --quiet torch==2.13.0
echo "torch==2.13.0" > "$folder/constraints.txt"
"${pip[@]}" install --quiet --constraint "$folder/constraints.txt" lmms-eval==0.7.3 \
    lightning simplejpeg tensorboard torchmetrics webdataset
# without their dependencies: lmms-eval asks for another ANTLR than Hydra, which says so and works; it names an older
# PyAV, and imports a module that newer filelocks do not have
"${pip[@]}" install --quiet --no-deps hydra-core omegaconf decord "av>=17" "filelock==3.20.0" .
# built for another torch, its import fails; lmms-eval goes without it
"${pip[@]}" uninstall --quiet --yes torchvision
"$folder/bin/python" -c 'from importlib.metadata import version; print("lmms-eval", version("lmms-eval"), "with auroralong", version("auroralong"))'
