# An SSH server for one connection, on standard input and output. Argument: the public key that may log in.
# Exit code 127: the image has no OpenSSH server.
set -eu
umask 077
export PATH="$PATH:/usr/local/sbin:/usr/sbin"
server="$(command -v sshd)" && command -v ssh-keygen >/dev/null || exit 127

# The host's key lasts as long as the home does.
home="${HOME:-/tmp}"
[ -w "$home" ] || home="${TMPDIR:-/tmp}"
keys="$home/.sp-ray/ssh"
mkdir -p "$keys"
if ! [ -s "$keys/host_ed25519" ]; then
    ssh-keygen -q -t ed25519 -N "" -f "$keys/host.$$" </dev/null >&2
    mv "$keys/host.$$" "$keys/host_ed25519" && rm "$keys/host.$$.pub"
fi

place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
printf '%s\n' "$1" >"$place/authorized_keys"

# A session begins with an empty environment: it gets what the container's processes have and Ray needs.
session=""
for name in HOME PATH LANG SHELL VIRTUAL_ENV RAY_ADDRESS RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED \
    LD_LIBRARY_PATH KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT; do
    value="$(printenv "$name" | sed 's/[\\"]/\\&/g')" || continue
    [ -z "$value" ] || session="$session \"$name=$value\""
done

cat >"$place/config" <<END
HostKey $keys/host_ed25519
AuthorizedKeysFile $place/authorized_keys
# The home's group may write to it, as Kubernetes gives volumes; the file above is nobody else's.
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
PrintMotd no
PrintLastLog no
LogLevel ERROR
AllowTcpForwarding yes
X11Forwarding no
Subsystem sftp internal-sftp
SetEnv$session
END
"$server" -i -e -f "$place/config"
