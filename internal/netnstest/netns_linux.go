package netnstest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// In runs a test in a network and mount namespace of its own, which has no
// name and ends with the thread, whatever happens to the test.
func In(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI must not skip it")
		}
		t.Skip("SKIPPED: needs root for a network namespace")
	}
	done := make(chan struct{})
	go func() { // runs f on a thread that is thrown away
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Errorf("private mounts: %v", err)
			return
		}
		f(t)
	}()
	<-done
}

// Run runs a command, given as words, in the calling thread's namespace.
func Run(t *testing.T, command string) string {
	t.Helper()
	words := strings.Fields(command)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// Settle waits until the links carry packets and have the routes that the kernel
// adds by itself, a moment after they came up.
func Settle(t *testing.T, links ...string) {
	t.Helper()
	for range 2000 {
		ready := true
		off := strings.TrimSpace(Run(t, "sysctl -n net.ipv6.conf.all.disable_ipv6")) == "1"
		for _, l := range links {
			ready = ready && strings.Contains(Run(t, "ip link show dev "+l), "state UP") &&
				(off || Run(t, "ip -6 route show table local dev "+l) != "")
		}
		if ready {
			return
		}
	}
	t.Errorf("%v did not come up", links)
}
