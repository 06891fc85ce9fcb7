#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment and runs it from another folder: nothing of the clone may be
# needed. The dependencies are lent by the environment of $PYTHON, so that gigabytes are not installed twice.
set -euo pipefail
cd "$(dirname "$0")/.."
clone=$PWD
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --wheel --no-isolation --outdir "$work/dist" . > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv --without-pip "$work/fresh"
"$python" -m pip --python "$work/fresh" install --quiet --disable-pip-version-check --no-deps "$work"/dist/*.whl
site=$("$work/fresh/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$site/lent.pth"

mkdir "$work/elsewhere" && cd "$work/elsewhere"
spilled=$(ls "$site" | grep -v -e '^aurora$' -e '^auroralong-.*dist-info$' -e '^lent.pth$' -e '^__pycache__$' || true)
[ -z "$spilled" ] || { echo "the wheel spills into site-packages: $spilled"; exit 1; }
"$work/fresh/bin/python" -c "
import aurora, pathlib
where = pathlib.Path(aurora.__file__).resolve()
assert not where.is_relative_to('$clone'), where
"
"$work/fresh/bin/aurora" --help > help.txt
grep -q train help.txt
"$work/fresh/bin/aurora" version | grep -q "^aurora [0-9]"
"$work/fresh/bin/aurora" list > list.txt
grep -q rwkv6 list.txt
"$work/fresh/bin/aurora" demo demo --scale 0.005 > demo.txt 2>&1 || { cat demo.txt; exit 1; }
test -s demo/report.html
echo "wheel: $(basename "$work"/dist/*.whl), $(du -h "$work"/dist/*.whl | cut -f1); help, version, list and a small demo ran from elsewhere"
