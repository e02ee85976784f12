#!/usr/bin/env bash
# Installs what is missing on Debian or Ubuntu, and says so.
#   install.sh demo|test|bench
set -euo pipefail

lab=(ip:iproute2 iptables:iptables ethtool:ethtool sysctl:procps ping:iputils-ping tcpdump:tcpdump)
demo=(curl:curl ssh-keyscan:openssh-client sshd:openssh-server)
case "${1:-}" in
demo) want=("${lab[@]}" "${demo[@]}") ;;
test) want=("${lab[@]}" "${demo[@]}" rsync:rsync traceroute:traceroute tc:iproute2 conntrack:conntrack nft:nftables miniupnpd:miniupnpd-nftables wg:wireguard-tools wireguard-go:wireguard-go pebble:pebble) ;;
bench) want=("${lab[@]}" iperf3:iperf3 wg:wireguard-tools conntrack:conntrack) ;;
*)
	echo "usage: install.sh demo|test|bench" >&2
	exit 2
	;;
esac

# A user's PATH may lack the sbin directories, where most of these live.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
packages=()
for pair in "${want[@]}"; do
	if ! command -v "${pair%%:*}" >/dev/null; then
		packages+=("${pair#*:}")
	fi
done
if [ ${#packages[@]} -eq 0 ]; then
	exit 0
fi
mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
	echo "missing: ${packages[*]}" >&2
	echo "hint: install what your system calls these, then run this again" >&2
	exit 1
fi
sudo=()
if [ "$(id -u)" != 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "missing: ${packages[*]}" >&2
		echo "hint: as root: apt-get install ${packages[*]}" >&2
		exit 1
	fi
	sudo=(sudo)
fi

echo "installing with apt-get: ${packages[*]}"
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made_policy=
clean_up() {
	rm -f "$log"
	if [ -n "$made_policy" ]; then
		"${sudo[@]}" rm -f "$policy"
	fi
}
trap clean_up EXIT

# The lab starts an sshd of its own inside a namespace. The machine's own is
# neither started now nor at the next boot.
new_sshd=
if [[ " ${packages[*]} " == *" openssh-server "* ]]; then
	new_sshd=yes
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
		made_policy=yes
		"${sudo[@]}" chmod 755 "$policy"
	fi
fi
apt() {
	if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -q "$@" >"$log" 2>&1; then
		cat "$log" >&2
		echo "apt-get $1 failed" >&2
		exit 1
	fi
}
apt update
apt install --no-install-recommends "${packages[@]}"
if [ -n "$new_sshd" ] && [ -d /run/systemd/system ]; then
	"${sudo[@]}" systemctl disable --now --quiet ssh.service
	if "${sudo[@]}" systemctl cat ssh.socket >/dev/null 2>&1; then
		"${sudo[@]}" systemctl disable --now --quiet ssh.socket
	fi
	echo "the new ssh server of this machine stays off (systemctl enable --now ssh starts it)"
fi
