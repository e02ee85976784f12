package main

import (
	"fmt"
	"path/filepath"
	"strings"
)

// unit is a systemd service that runs a daemon of ours.
type unit struct {
	Name     string   // without .service
	Program  string   // absolute path of this program
	Args     []string // the verb and its flags
	StateDir string
	Socket   string
	Link     string // the interface's name
	LinkFile string // holds the invite until the first start; "": none
	Own      bool   // a user's own systemd runs it, without any right
}

// unitMark is how we know a unit file of ours.
const unitMark = "# Written by overlayd service install; overlayd service uninstall takes it away."

// String returns the unit file. What is switched off by the sandbox is what a
// daemon of ours has no business with; what it needs is: its two directories,
// /dev/net/tun, sysctls below net (so no ProtectKernelTunables), netlink, and
// /run/xtables.lock (so no ProtectSystem=strict).
func (u unit) String() string {
	start := append([]string{u.Program}, u.Args...)
	if u.LinkFile != "" {
		start = append(start, "--link-file="+u.LinkFile)
	}
	cleanup := []string{u.Program, "cleanup", "--state-dir=" + u.StateDir, "--interface=" + u.Link}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	line(unitMark)
	line("[Unit]")
	line("Description=overlayd %s", u.Args[0])
	if !u.Own {
		// Not after network-online.target: the daemon waits for the network by itself.
		line("After=network-pre.target network.target nftables.service firewalld.service ufw.service docker.service")
		line("Wants=network-pre.target")
	}
	line("StartLimitIntervalSec=0")
	line("")
	line("[Service]")
	line("Type=notify")
	line("NotifyAccess=main")
	if !u.Own {
		line("ExecStartPre=-+/sbin/modprobe --quiet tun")
	}
	line("ExecStart=%s", systemdLine(start))
	if u.LinkFile != "" {
		// runs when the daemon is ready, that is, when the link has served
		line("ExecStartPost=-/bin/rm -f %s", systemdWord(u.LinkFile))
	}
	if !u.Own {
		line("ExecStopPost=%s", systemdLine(cleanup))
	}
	line("Restart=always")
	line("RestartSec=500ms")
	// stopped by overlayd down, usage, not joined, denied: trying again changes nothing
	line("RestartPreventExitStatus=0 2 4 6")
	line("TimeoutStartSec=infinity") // waits for approval, or for the relay to come
	line("TimeoutStopSec=20")
	line("UMask=0077")
	target := "multi-user.target"
	if u.Own { // there are no rights to take away, and no directories to make
		line("NoNewPrivileges=yes")
		target = "default.target"
	} else {
		u.writeDirectories(line)
		b.WriteString(sandbox)
	}
	line("")
	line("[Install]")
	line("WantedBy=%s", target)
	return b.String()
}

// writeDirectories has systemd make the daemon's directories.
func (u unit) writeDirectories(line func(string, ...any)) {
	if dir, ok := below("/var/lib", u.StateDir); ok {
		line("StateDirectory=%s", systemdWord(dir))
		line("StateDirectoryMode=0700")
	}
	if dir, ok := below("/run", filepath.Dir(u.Socket)); ok {
		line("RuntimeDirectory=%s", systemdWord(dir))
		line("RuntimeDirectoryPreserve=yes") // other daemons may have their sockets there
	}
}

const sandbox = `
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_CHOWN
NoNewPrivileges=yes
ProtectSystem=full
ProtectHome=read-only
PrivateTmp=yes
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectClock=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
`

// below returns path relative to dir when it lies inside.
func below(dir, path string) (string, bool) {
	rel, err := filepath.Rel(dir, path)
	if err != nil || rel == "." || strings.HasPrefix(rel, "..") {
		return "", false
	}
	return rel, true
}

func systemdLine(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = systemdWord(w)
	}
	return strings.Join(quoted, " ")
}

// systemdWord quotes a word for a unit file: specifiers and variables are not
// expanded (systemd.service(5), COMMAND LINES).
func systemdWord(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(s)
	if s == "" || strings.ContainsAny(s, " \t'\";\\") {
		return `"` + s + `"`
	}
	return s
}
