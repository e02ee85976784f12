package tunnel

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplain(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		if err := explain("ovl0", unix.ENOENT); !strings.Contains(err.Error(), "modprobe tun") {
			t.Error(err)
		}
		return
	}
	for errno, want := range map[error]string{
		unix.EPERM:  "run as root",
		unix.EACCES: "NET_ADMIN",
		unix.EBUSY:  "exists",
		unix.ENODEV: "modprobe tun",
		unix.EINVAL: "invalid argument",
	} {
		if err := explain("ovl0", errno); !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if _, err := OpenTUN("a-name-that-is-too-long", 1420); err == nil {
		t.Error("a name of 23 characters was taken")
	}
}

// TestOpenTUN makes interfaces in a network namespace that lives as long as the
// test's thread.
func TestOpenTUN(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: needs root for a network namespace")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		dev, err := OpenTUN("ovl0", 1400)
		if err != nil {
			t.Error(err)
			return
		}
		if mtu, err := dev.MTU(); mtu != 1400 || err != nil {
			t.Errorf("mtu %d, %v", mtu, err)
		}
		if _, err := OpenTUN("ovl0", 1400); err == nil || !strings.Contains(err.Error(), "hint") {
			t.Errorf("taken name: %v", err)
		}
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	}()
	<-done
}
