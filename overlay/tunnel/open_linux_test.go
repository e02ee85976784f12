package tunnel

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"overlayd/internal/netnstest"
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

// TestOpenTUN makes interfaces in a network namespace.
func TestOpenTUN(t *testing.T) {
	netnstest.In(t, func(t *testing.T) {
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
	})
}
