# Starts the servers that people work with on a head, and starts them anew when they end. Returns at once, always with
# success: the container's life does not hang on them. Arguments: those wanted, `notebook` and `vscode`.
logs=/tmp/ray-workbench
umask 077
mkdir -p "$logs" "$HOME" || exit 0
cd "$HOME" || exit 0

notebook() {
    if ! command -v jupyter >/dev/null || ! jupyter lab --version >/dev/null 2>&1; then
        echo "this image has no JupyterLab" >"$logs/notebook.missing"
        return 1
    fi
    # Beside the user's own settings: no question whether to fetch news.
    mkdir -p "$logs/jupyter/labconfig"
    echo '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}' \
        >"$logs/jupyter/labconfig/page_config.json"
    JUPYTER_TOKEN="$SP_RAY_WORKBENCH_TOKEN" JUPYTER_CONFIG_PATH="$logs/jupyter:${JUPYTER_CONFIG_PATH:-}" jupyter lab \
        --no-browser --allow-root --ServerApp.ip=0.0.0.0 --ServerApp.port=8081 --ServerApp.port_retries=0 \
        --ServerApp.root_dir="$HOME" --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
}

vscode() {
    if command -v openvscode-server >/dev/null; then
        printf %s "$SP_RAY_WORKBENCH_TOKEN" >"$logs/vscode.token"
        openvscode-server --host 0.0.0.0 --port 3000 --connection-token-file "$logs/vscode.token" \
            --telemetry-level off --default-folder "$HOME"
    elif command -v code-server >/dev/null; then
        PASSWORD="$SP_RAY_WORKBENCH_TOKEN" code-server --bind-addr 0.0.0.0:3000 --auth password --disable-telemetry \
            --disable-update-check --disable-workspace-trust --disable-getting-started-override "$HOME"
    else
        echo "this image has neither openvscode-server nor code-server" >"$logs/vscode.missing"
        return 1
    fi
}

supervise() {
    pause=1
    while :; do
        began=$(date +%s)
        "$1" && code=0 || code=$?
        [ -e "$logs/$1.missing" ] && return
        # One that ran for a while was all right.
        [ $(($(date +%s) - began)) -ge 60 ] && pause=1
        echo "$1 ended with code $code; again in $pause s"
        sleep "$pause"
        pause=$((pause * 2 > 30 ? 30 : pause * 2))
    done
}

for name in "$@"; do
    # Its streams are files: whoever runs this waits for those that it was given to be closed.
    (trap '' HUP && supervise "$name") </dev/null >>"$logs/$name.log" 2>&1 &
done
exit 0
