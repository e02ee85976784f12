//go:build linux

package waysin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay/coord"
)

const jumpHost = lab.VPSAddr + ":2222"

// Alice has OpenSSH and her key. By the relay's jump host she gets a shell on the
// LAN host, and nothing else; her session ends when she is revoked, and all of it
// is in the record.
func TestJump(t *testing.T) {
	ctx, s := newSite(t, lab.Options{Home: lab.Hard, Lab: lab.Hard}, "--ssh", ":2222")
	alice, bob := labtest.SSHKey(ctx, t, s.Lab, "alice"), labtest.SSHKey(ctx, t, s.Lab, "bob")
	labtest.SSHD(ctx, t, s.Lab, s.Host, lab.HostAddr, alice+".pub", bob+".pub")
	for user, key := range map[string]string{"alice": alice, "bob": bob} {
		out := must[string](t)(s.VPS.Overlayd(ctx, "users", "add-key", user, key+".pub"))
		if !strings.Contains(out, "SHA256:") {
			t.Errorf("add-key: %s", out)
		}
	}
	if out, err := s.VPS.Overlayd(ctx, "users", "add-key", "bob", alice); err == nil || !strings.Contains(err.Error(), "private key") {
		t.Errorf("a private key was taken: %s, %v", out, err)
	}
	a := &jumper{site: s, user: "alice", config: labtest.SSHConfig(t, s.Lab, "alice", alice)}
	b := &jumper{site: s, user: "bob", config: labtest.SSHConfig(t, s.Lab, "bob", bob)}

	began := time.Now()
	if out := a.must(ctx, t, "-J", "alice@"+jumpHost, "root@"+lab.HostAddr, "echo from $SSH_CONNECTION"); !strings.Contains(out, "from "+lab.GatewayAddr) {
		t.Errorf("the LAN host says %q", out)
	}
	t.Logf("the first command by the jump host took %v", time.Since(began).Round(time.Millisecond))
	if out := a.must(ctx, t, "-J", "alice@"+jumpHost, "root@nas", "echo by name"); !strings.Contains(out, "by name") {
		t.Errorf("by name: %q", out)
	}
	a.refuses(ctx, t)
	strangers(ctx, t, s)
	if out := a.must(ctx, t, "-J", "alice@"+jumpHost, "root@"+lab.HostAddr, "echo still there"); !strings.Contains(out, "still there") {
		t.Errorf("after the strangers: %q", out)
	}

	if out, err := s.VPS.Overlayd(ctx, "expose", "nas:80", "--on", ":2222"); err == nil || !strings.Contains(err.Error(), "is the jump host's") {
		t.Errorf("the jump host's port is published: %s, %v", out, err)
	}
	live := a.session(ctx, t)
	asked := time.Now()
	r := must[coord.Revoked](t)(s.admin.Revoke(ctx, "alice"))
	live.ends(t, asked, "alice's session after a revocation")
	cut := map[string]int{}
	for _, n := range r.Nodes {
		cut[n.Node] = n.FlowsCut
		if !n.Applied {
			t.Errorf("%s has not applied it", n.Node)
		}
	}
	if cut["vps"] == 0 {
		t.Errorf("the answer to the revocation is %+v", r.Nodes)
	}
	if out, err := a.run(ctx, "-J", "alice@"+jumpHost, "root@"+lab.HostAddr, "true"); err == nil {
		t.Errorf("alice is back: %s", out)
	}

	live = b.session(ctx, t)
	asked = time.Now()
	must[string](t)(s.VPS.Overlayd(ctx, "users", "remove-key", "bob", "bob"))
	live.ends(t, asked, "bob's session after remove-key")
	remembers(ctx, t, s)
}

// jumper is somebody with OpenSSH on the laptop, which runs nothing of ours.
type jumper struct {
	*site
	user, config string
}

func (j *jumper) run(ctx context.Context, args ...string) (string, error) {
	return j.Laptop.Run(ctx, "ssh", append([]string{"-F", j.config}, args...)...)
}

func (j *jumper) must(ctx context.Context, t *testing.T, args ...string) string {
	t.Helper()
	return must[string](t)(j.run(ctx, args...))
}

// refuses tries what a jump host is not for.
func (j *jumper) refuses(ctx context.Context, t *testing.T) {
	t.Helper()
	at := []string{"-p", "2222", "alice@" + lab.VPSAddr}
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"a command":           {append(at, "id"), "no shell, commands or files here"},
		"a shell":             {append([]string{"-tt"}, at...), "no shell, commands or files here"},
		"a remote forward":    {append([]string{"-N", "-o", "ExitOnForwardFailure=yes", "-R", "9090:127.0.0.1:22"}, at...), "remote port forwarding failed"},
		"policy":              {append([]string{"-W", "nas:80"}, at...), "administratively prohibited: refused by policy"},
		"a name of another's": {append([]string{"-W", "lab-gw:22"}, at...), "no machine of the network"},
		"the VPS itself":      {append([]string{"-W", "127.0.0.1:2222"}, at...), "open failed"},
		"the internet":        {append([]string{"-W", "198.51.100.1:22"}, at...), "open failed"},
		"a closed port":       {append([]string{"-W", lab.HostAddr + ":22", "-o", "ConnectTimeout=5"}, append(at[:2:2], "bob@"+lab.VPSAddr)...), "Permission denied"},
	} {
		out, err := j.run(ctx, c.args...)
		if err == nil || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	out, err := j.Laptop.Run(ctx, "sftp", "-F", j.config, "-P", "2222", "alice@"+lab.VPSAddr)
	if err == nil || !strings.Contains(out, "no shell, commands or files here") {
		t.Errorf("sftp: %v\n%s", err, out)
	}
}

// strangers speak nonsense to the jump host.
func strangers(ctx context.Context, t *testing.T, s *site) {
	t.Helper()
	for _, say := range []string{"GET / HTTP/1.1\r\n\r\n", strings.Repeat("\x00\xff", 5000), "SSH-2.0-x\r\n\xff\xff\xff\xff", ""} {
		c, err := s.Internet.DialContext(ctx, "tcp", jumpHost)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(say)) // what comes of it is the server's business
		c.Close()
	}
}

// liveSession is a shell on the LAN host that goes on.
type liveSession struct {
	out  *bytes.Buffer
	done chan error // holds how ssh ended
}

func (j *jumper) session(ctx context.Context, t *testing.T) *liveSession {
	t.Helper()
	ready := make(chan struct{})
	live := &liveSession{out: &bytes.Buffer{}, done: make(chan error, 1)}
	cmd := j.Laptop.Command(ctx, "ssh", "-F", j.config, "-J", j.user+"@"+jumpHost, "root@"+lab.HostAddr, "echo ready; sleep 100")
	out := must[io.ReadCloser](t)(cmd.StdoutPipe())
	cmd.Stderr = live.out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with ssh
		buf := make([]byte, 100)
		if n, _ := out.Read(buf); strings.Contains(string(buf[:n]), "ready") {
			close(ready)
		}
		live.done <- cmd.Wait()
	}()
	select {
	case <-ready:
	case err := <-live.done:
		t.Fatalf("%s's session: %v\n%s", j.user, err, live.out)
	case <-ctx.Done():
		t.Fatalf("%s's session does not begin: %v", j.user, ctx.Err())
	}
	return live
}

// ends waits for ssh to end, which it has to within a second of a moment.
func (l *liveSession) ends(t *testing.T, moment time.Time, what string) {
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s goes on", what)
	}
	took := time.Since(moment)
	t.Logf("%s ended after %v", what, took.Round(time.Millisecond))
	if took > endsWithin {
		t.Errorf("%s ended after %v, want %v", what, took, endsWithin)
	}
}

// remembers asks both records about what was done.
func remembers(ctx context.Context, t *testing.T, s *site) {
	t.Helper()
	err := lab.Until(ctx, func(ctx context.Context) error {
		gateway, err := s.Gateway.Overlayd(ctx, "audit", "--user", "alice")
		if err != nil {
			return err
		}
		relay, err := s.VPS.Overlayd(ctx, "audit", "--user", "alice")
		if err != nil {
			return err
		}
		if !strings.Contains(gateway, lab.HostAddr+":22 tcp  allowed by alice-ssh") {
			return fmt.Errorf("the gateway's record:\n%s", gateway)
		}
		for _, want := range []string{
			"alice on vps from " + lab.HomePublic, "by ssh", lab.HostAddr + ":22 tcp  allowed by alice-ssh, began", "ended after",
			lab.HostAddr + ":80 tcp  denied: policy", "login refused",
		} {
			if !strings.Contains(relay, want) {
				return fmt.Errorf("the relay's record lacks %q:\n%s", want, relay)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Relay and gateway are killed and come back: the jump host has the same key, and
// works again at once.
func TestJumpAfterRestart(t *testing.T) {
	ctx, s := newSite(t, lab.Options{}, "--ssh", ":2222")
	bob := labtest.SSHKey(ctx, t, s.Lab, "bob")
	labtest.SSHD(ctx, t, s.Lab, s.Host, lab.HostAddr, bob+".pub")
	must[string](t)(s.VPS.Overlayd(ctx, "users", "add-key", "bob", bob+".pub"))
	b := &jumper{site: s, user: "bob", config: labtest.SSHConfig(t, s.Lab, "bob", bob)}
	hello := []string{"-J", "bob@" + jumpHost, "root@" + lab.HostAddr, "echo hello"}
	b.must(ctx, t, hello...)
	for _, who := range []string{"gateway", "relay"} {
		if who == "gateway" {
			s.gateway.Kill()
			s.gateway = s.serve(ctx, t, s.Gateway, "gateway")
		} else {
			s.relay.Kill()
			s.relay = s.serve(ctx, t, s.VPS, "relay", "--public", lab.VPSAddr, "--ssh", ":2222")
		}
		began := time.Now()
		var tries int
		err := lab.Until(ctx, func(ctx context.Context) error {
			tries++
			_, err := b.run(ctx, hello...)
			return err
		})
		if err != nil {
			t.Fatalf("after the %s was killed: %v", who, err)
		}
		took := time.Since(began)
		t.Logf("%s killed and ready again: a command after %v, %d tries", who, took.Round(time.Millisecond), tries)
		if took > time.Second+slack { // which holds two logins
			t.Errorf("after the %s was killed a command took %v", who, took)
		}
	}
	if c, err := s.Internet.DialContext(ctx, "tcp", jumpHost); err != nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the jump host: %v", err)
	} else {
		_ = c.(*net.TCPConn).Close()
	}
}
