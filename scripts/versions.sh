#!/usr/bin/env bash
# Install the wheel on other Pythons, with the lowest and the newest versions of its dependencies, and run it. Started by hand.
#
#     scripts/versions.sh                               every Python from 3.10 to 3.13, both ends of the ranges
#     PYTHONS="3.12" ENDS="highest" scripts/versions.sh one combination
#     TESTS="tests/test_config.py" scripts/versions.sh  other tests than those below
#
# In each environment: a run, a sweep and its review from the installed wheel, outside the checkout; then quick tests of the
# last commit. uv finds the interpreters, or downloads them, and resolves the versions. The last lines are a table of what ran.
# Needs a network, and minutes for each combination. PyPI's torch brings CUDA, 4 GB of disk: UV_TORCH_BACKEND=cpu avoids that
# where PyTorch's own index can be reached. UV_CACHE_DIR, UV_FIND_LINKS and uv's other variables work.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHONS=${PYTHONS:-3.10 3.11 3.12 3.13}
ENDS=${ENDS:-lowest-direct highest}
TESTS=${TESTS:-$(printf 'tests/test_%s.py ' config overrides prompts designs display samplers shapes nanogpt meta results written_by_0_1 \
    hydra_internals own_metrics kernels registry notebook progress unfinished backend damaged_results)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! command -v uv >/dev/null; then
    python3 -m venv "$scratch/uv" && "$scratch/uv/bin/python" -m pip install --quiet uv || exit 1
    PATH=$PATH:$scratch/uv/bin
fi
git archive HEAD | tar -x --one-top-level="$scratch/source" && uv build --quiet --out-dir "$scratch/dist" "$scratch/source" || exit 1
wheel=$(ls "$scratch"/dist/*.whl) # uv builds it from the source distribution
layout='%-8s %-15s %-46s %-8s %s\n'
table=$(printf "$layout" Python versions 'torch, numpy, numba, pandas, hydra-core' wheel tests)
failed=0

row() { table+=$'\n'$(printf "$layout" "$python" "$end" "$1" "$2" "$3"); }

for python in $PYTHONS; do
    for end in $ENDS; do
        environment=$scratch/environment work=$(mktemp -d -p "$scratch")
        rm -rf "$environment"
        uv venv --quiet --python "$python" "$environment" || { row 'no such interpreter' - -; continue; }
        export VIRTUAL_ENV=$environment
        if ! { uv pip install --quiet --resolution "$end" -r pyproject.toml && uv pip install --quiet --no-deps "$wheel" \
            && uv pip install --quiet pytest pytest-xdist hypothesis transformers; }; then
            row 'cannot be installed' - -; failed=1; continue
        fi
        versions=$("$environment/bin/python" -c 'from importlib.metadata import version
print(", ".join(map(version, ("torch", "numpy", "numba", "pandas", "hydra-core"))))')
        short='quiet=true sampling.max_new_tokens=20 sampling.num_samples=2'
        wheel_says=passed
        (cd "$work" && PATH=$environment/bin:$PATH && python -m gptsweep name=run $short && gptsweep -m name=sweep seed=1,2 $short \
            && python -m gptsweep.review outputs/sweeps/sweep) || { wheel_says=FAILED; failed=1; }
        (cd "$scratch/source" && "$environment/bin/python" -m pytest --durations=0 --durations-min=60 $TESTS) 2>&1 | tee "$work/tests"
        tests_say=$(tail -1 "$work/tests" | tr -d = | sed 's/ in .*//')
        [[ $tests_say == *passed* && $tests_say != *failed* && $tests_say != *error* ]] || failed=1
        row "$versions" "$wheel_says" "$tests_say"
    done
done
printf '\n%s\n' "$table"
exit $failed
