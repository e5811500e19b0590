#!/usr/bin/env bash
# Builds plumb for NVIDIA GPUs where there is no GPU and no CUDA toolkit. Linux on x86-64; needs cargo, cc and Python 3.
#
#   tools/cuda.sh check [cargo options]   type-check and lint the CUDA code; needs no toolkit (what continuous integration runs)
#   tools/cuda.sh setup                   fetch the compiler (nvcc 13.0, from NVIDIA's Python packages, 100 MB)
#   tools/cuda.sh build [cargo options]   release build whose executable also starts where there is no CUDA
#   tools/cuda.sh kit                     bench and unit tests with what benches/gpu/lease.sh needs, as .kit, for a bare machine
#   tools/cuda.sh emulate                 run the tests of the CUDA code, and the program, on tools/emulated-gpu, where there is no GPU
#   tools/cuda.sh env                     print the variables that `build` sets, for a shell
#
# With a CUDA toolkit none of this is needed: `cargo build --release --features cuda`.
#
# PLUMB_CUDA_FOLDER   where the compiler goes (default: cuda in cargo's target folder)
# CUDA_COMPUTE_CAP    the GPU to build for: 80 runs on every GPU from Ampere on (default), 90 on Hopper alone
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${PLUMB_CUDA_FOLDER:-${CARGO_TARGET_DIR:-target}/cuda}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
target=x86_64-unknown-linux-gnu
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
# The bindings' version; the driver of the GPU must be at least as new.
export CUDARC_CUDA_VERSION=13000

# What candle's build scripts ask of nvcc, answered with empty files: enough to type-check.
stand_in_compiler() {
    mkdir -p "$folder/stand-in"
    cat > "$folder/stand-in/nvcc.new" <<'NVCC'
#!/usr/bin/env bash
case " $* " in *" --version "*)
    echo "Cuda compilation tools, release 13.0, V13.0.88"
    exit ;;
esac
into=. kind=ptx result=
while [ $# -gt 0 ]; do
    case $1 in
    -o) result=$2; shift ;;
    --output-directory) into=$2; shift ;;
    -c) kind=object ;;
    --lib) kind=archive ;;
    *.cu) source=$1 ;;
    esac
    shift
done
[ -n "$result" ] || result=$into/$(basename "${source%.*}").ptx
case $kind in
object) echo | cc -x c -c -o "$result" - ;;
archive) rm -f "$result" && ar rcs "$result" ;;
ptx) : > "$result" ;;
esac
NVCC
    chmod +x "$folder/stand-in/nvcc.new"
    # In place at once, and never touched again: cargo builds anew whenever it changes.
    cmp -s "$folder/stand-in/nvcc.new" "$folder/stand-in/nvcc" || mv "$folder/stand-in/nvcc.new" "$folder/stand-in/nvcc"
    rm -f "$folder/stand-in/nvcc.new"
}

toolkit() { echo "$folder"/python/lib/python3*/site-packages/nvidia/cu13; }

setup() {
    [ -x "$folder/python/bin/pip" ] || "${PYTHON:-python3}" -m venv "$folder/python"
    "$folder/python/bin/pip" install --quiet --no-deps --only-binary=:all: \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    # The libraries that the linker is told of. Nothing is taken from them: the program opens the real ones when it runs.
    mkdir -p "$(toolkit)/lib/stubs"
    for library in cuda nvrtc curand cublas cublasLt; do
        cc -shared -x c -o "$(toolkit)/lib/stubs/lib$library.so" /dev/null
    done
    ln -sf ../libcudart_static.a "$(toolkit)/lib/stubs/libcudart.a"
    "$(toolkit)/bin/nvcc" --version | tail -n 2
}

variables() {
    [ -x "$(toolkit)/bin/nvcc" ] || { echo "no compiler in $folder: run tools/cuda.sh setup first" >&2; exit 1; }
    echo "export CUDA_HOME=$(toolkit) CUDA_COMPUTE_CAP=$CUDA_COMPUTE_CAP CUDARC_CUDA_VERSION=$CUDARC_CUDA_VERSION"
    echo "export PATH=$(toolkit)/bin:\$PATH NVCC=$(toolkit)/bin/nvcc CUDAFORGE_THREADS=$(nproc)"
}

# Not `eval "$(variables)"`, which goes on where there is no compiler.
set_variables() {
    local settings
    settings=$(variables)
    eval "$settings"
}

# cargo, so that what it builds opens the CUDA libraries when they are first used, where candle would link to them. It is a
# configuration flag for all crates, but only the binding has such a feature, and its build script must not see it: hence
# --target.
dynamic() {
    unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
    cargo "$@" --features cuda --target $target \
        --config "target.$target.rustflags=[\"--cfg\", \"feature=\\\"dynamic-loading\\\"\"]"
}

# executable NAME: the path of the program that cargo says it built of the target with this name.
executable() { sed -n 's/.*"name":"'"$1"'".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1; }
# The unit tests of both crates, as cargo tells of them.
unit_tests() { dynamic test --no-run --release --lib --message-format=json; }

kit() {
    local bench built
    bench=$(dynamic bench --no-run --bench benches --message-format=json | executable benches)
    built=$(unit_tests)
    rm -rf .kit && mkdir .kit
    cp "$bench" .kit/bench
    cp "$(executable plumb_core <<< "$built")" .kit/tests
    cp "$(executable plumb <<< "$built")" .kit/tests-above
    strip .kit/bench .kit/tests .kit/tests-above
    if ldd .kit/bench .kit/tests .kit/tests-above | grep -iE 'libcu|nvrtc'; then
        echo "linked to CUDA: it would not start without it" >&2
        exit 1
    fi
    .kit/tests cuda:: --test-threads=1 | tail -n 3
    (cd .kit && tar c bench tests tests-above | xz -T0 -9 > bin.tar.xz && rm bench tests tests-above)
    # What the peer lacks on a machine with torch, transformers and peft; kept, since it never changes.
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
        --platform manylinux2014_x86_64 -d .kit diffusers==0.42.1 httpx==0.28.1
    ls -l .kit
}

emulate() {
    local built name
    built=$(unit_tests)
    tools/emulated-gpu/build.sh "$folder/emulated"
    export PLUMB_REQUIRE_GPU=1
    for name in plumb_core plumb; do
        LD_LIBRARY_PATH="$folder/emulated" "$(executable $name <<< "$built")" cuda:: nn:: autograd:: optim:: graphs:: --test-threads="$(nproc)"
    done
    EMULATED_GPU_NEWER_NVRTC=1 LD_LIBRARY_PATH="$folder/emulated" "$(executable plumb_core <<< "$built")" cuda::tests::norms
    dynamic build --release --bin plumb
    tools/emulated-gpu/try.sh "$folder/emulated" "${CARGO_TARGET_DIR:-target}/$target/release/plumb"
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
check)
    stand_in_compiler
    NVCC="$folder/stand-in/nvcc" cargo clippy --all-targets --features cuda "$@" -- -D warnings
    ;;
setup) setup ;;
kit)
    set_variables
    kit
    ;;
emulate)
    set_variables
    emulate
    ;;
env) variables ;;
build)
    set_variables
    dynamic build --release "$@"
    ls -l "${CARGO_TARGET_DIR:-target}/$target/release/plumb"
    ;;
*)
    sed -n '2,16p' "$0" | cut -c3-
    exit 2
    ;;
esac
