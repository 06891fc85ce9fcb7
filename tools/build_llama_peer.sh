#!/usr/bin/env bash
# Builds llama-cpp-python from source for this processor, as a peer of `python -m tools.bench prefill` and `decode`.
# usage: tools/build_llama_peer.sh FOLDER     then: PYTHONPATH=FOLDER python -m tools.bench decode
# Needs cmake and a C++ compiler; JOBS=1 builds with one process. PYTHON is the interpreter that will import it.
set -euo pipefail

VERSION=0.3.36
GGUF_VERSION=0.19.0
PYTHON=${PYTHON:-python3}
target=$(realpath -m "${1:?usage: tools/build_llama_peer.sh FOLDER}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$target"

"$PYTHON" -m pip download --quiet --no-deps --no-binary :all: --dest "$work" \
    "llama-cpp-python==$VERSION"
tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work"

# GCC 12 drops the stores into the tile configuration before it is loaded, which crashes every q8_0 prefill on a
# processor with AMX. Telling it that the whole configuration is read keeps them; the code is the same otherwise.
sed -i 's|^\( *\)_tile_loadconfig(&tc);|\1__asm__ volatile("" : : "m"(tc));\n&|' \
    "$work"/llama_cpp_python-*/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp

CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF"
for part in TESTS EXAMPLES TOOLS SERVER; do CMAKE_ARGS+=" -DLLAMA_BUILD_$part=OFF"; done
export CMAKE_ARGS
export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)}
"$PYTHON" -m pip install --quiet --upgrade --no-deps --target "$target" "$work"/llama_cpp_python-*/ \
    "gguf==$GGUF_VERSION" diskcache
PYTHONPATH=$target "$PYTHON" -c 'import gguf, llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'
