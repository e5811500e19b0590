#!/usr/bin/env bash
# Builds the emulated GPU into a folder: tools/emulated-gpu/build.sh OUTDIR. Needs g++ and, for candle's kernels, cargo's registry.
set -euo pipefail
[ $# -eq 1 ] || { sed -n 2p "$0" | cut -c3- >&2; exit 2; }
mkdir -p "$1"/{include,empty/cuda/std,cache}
out=$(cd "$1" && pwd)
cd "$(dirname "$0")"
version=$(sed -n '/^name = "candle-kernels"/{n;s/version = "\(.*\)"/\1/p}' ../../Cargo.lock)
kernels=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/candle-kernels-"$version"/src | head -n 1)

cp kernel.h threads.h "$out/include"
# Headers that kernels ask for; what they need of them is in kernel.h.
for header in cuda.h cuda_fp16.h cuda_bf16.h cuda_fp8.h cuda/std/limits assert.h math.h cmath stdint.h; do
    : > "$out/empty/$header"
done
g++ -std=c++17 -O2 -march=native -Wall -Wextra -fPIC -ftls-model=initial-exec -shared -DCANDLE_KERNELS="\"$kernels\"" \
    ./*.cpp -o "$out/libemulated-gpu.so" -Wl,-soname,libemulated-gpu.so -Wl,-z,defs -ldl -pthread
for name in libcuda.so.1 libnvrtc.so.13 libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libcudnn.so.9; do
    ln -sf libemulated-gpu.so "$out/$name"
done
echo "run a program built with --features cuda with LD_LIBRARY_PATH=$out"
