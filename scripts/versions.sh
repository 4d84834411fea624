#!/usr/bin/env bash
# The tests on other Pythons, and with the lowest and the newest versions of what the package needs; start it by hand.
#
#     scripts/versions.sh                          every Python from 3.10 to 3.13 that there is, lowest and newest versions
#     PYTHONS="3.12" scripts/versions.sh           one of them
#     TESTS="tests/test_chain.py" scripts/versions.sh   other tests than the few below
#
# uv finds interpreters, or fetches them, and resolves the versions; it takes a network, 3 GB of disk, and minutes for each. The last
# lines say for each Python and each end of the ranges what ran: torch's, numpy's and pandas' version, and whether the tests passed.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHONS=${PYTHONS:-3.10 3.11 3.12 3.13}
TESTS=${TESTS:-tests/test_chain.py tests/test_config.py tests/test_results.py tests/test_nanogpt.py tests/test_install.py}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/uv" && "$scratch/uv/bin/python" -m pip install --quiet uv || exit 1
uv=$scratch/uv/bin/uv
said=()
failed=0
for python in $PYTHONS; do
    for end in lowest-direct highest; do
        environment=$scratch/$python-$end
        "$uv" venv --quiet --python "$python" "$environment" || { said+=("$python $end: no interpreter"); continue; }
        export VIRTUAL_ENV=$environment
        if ! "$uv" pip install --quiet --resolution "$end" -e '.[test]'; then
            said+=("$python $end: cannot be installed"); failed=1; continue
        fi
        versions=$("$environment/bin/python" -c 'import numpy, pandas, torch; print(torch.__version__, numpy.__version__, pandas.__version__)')
        if "$environment/bin/python" -m pytest $TESTS; then
            said+=("$python $end: passed (torch, numpy, pandas: $versions)")
        else
            said+=("$python $end: FAILED (torch, numpy, pandas: $versions)"); failed=1
        fi
        rm -rf "$environment"
    done
done
printf '%s\n' "${said[@]}"
exit $failed
