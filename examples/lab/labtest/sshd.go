//go:build linux

package labtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"overlayd/examples/lab"
)

// SSHKey makes a key pair in the lab's directory and returns the private key's
// file; the public one has .pub behind it.
func SSHKey(ctx context.Context, t testing.TB, l *lab.Lab, name string) string {
	t.Helper()
	file := filepath.Join(l.Dir, name+"_ed25519")
	Run(ctx, t, l.Host, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", file)
	return file
}

// SSHD starts Debian's own server on a machine's address, at port 22, with a key
// and a configuration of its own. It lets root in with the public keys in the
// files.
func SSHD(ctx context.Context, t testing.TB, l *lab.Lab, m *lab.Machine, addr string, public ...string) {
	t.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatalf("find sshd: %v\nhint: apt-get install openssh-server", err)
	}
	host := SSHKey(ctx, t, l, m.Name+"-host")
	keys := filepath.Join(l.Dir, m.Name+"-authorized_keys")
	var all []byte
	for _, file := range public {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	config := filepath.Join(l.Dir, m.Name+"-sshd_config")
	text := "HostKey " + host + "\nListenAddress " + addr + "\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n" +
		"AuthorizedKeysFile " + keys + "\nSubsystem sftp internal-sftp\n"
	for file, b := range map[string][]byte{keys: all, config: []byte(text)} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// sshd wants /run/sshd. Programs in a namespace see mounts of their own, so
	// the real /run stays as it is.
	p, err := m.Start("sh", "-c", `mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$0" -D -e -f "$1"`, sshd, config)
	if err != nil {
		t.Fatal(err)
	}
	err = lab.Until(ctx, func(context.Context) error {
		if tail := p.Tail(); !strings.Contains(tail, "Server listening") {
			return fmt.Errorf("sshd does not listen: %s", tail)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// SSHConfig writes a client's configuration that knows nothing but a key, and
// returns its file, for ssh -F.
func SSHConfig(t testing.TB, l *lab.Lab, name, key string) string {
	t.Helper()
	file := filepath.Join(l.Dir, name+"-ssh_config")
	text := "Host *\n  IdentityFile " + key + "\n  IdentitiesOnly yes\n  UserKnownHostsFile " + filepath.Join(l.Dir, name+"-known_hosts") +
		"\n  StrictHostKeyChecking accept-new\n  BatchMode yes\n  ConnectTimeout 20\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
